"""The coverage-guided runs: every test that can be one is one, and one is tried."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.guided import TESTS


def test_every_parser_test_without_fixtures_is_there():
    for module in ("test_formats", "test_messages", "test_sealed"):
        functions = vars(importlib.import_module(f"fuzz.{module}")).items()
        found = {
            name.removeprefix("test_")
            for name, function in functions
            if name.startswith("test_")
            and hasattr(function, "hypothesis")
            and not inspect.signature(function).parameters
        }
        assert found == set(TESTS[module])


def test_one_runs():
    pytest.importorskip("atheris", reason="atheris is not installed here")
    command = [sys.executable, "-m", "tests.fuzz.guided", "edit_requests", "200"]
    ran = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    assert "Done 200 runs" in ran.stderr
    assert "stat::new_units_added:          0" not in ran.stderr
