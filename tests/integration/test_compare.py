"""`fedit compare` through Flower's simulation engine, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from fedit_app.report import load_results

ROOT = Path(__file__).parents[2]
SMALL = {
    **tiny.RUN_CONFIG,
    "num-slots": 1,
}


@pytest.mark.slow
def test_compare(tiny_folder, tmp_path):
    folder = tmp_path / "all"
    command = [sys.executable, "-m", "fedit_app.cli.main", "compare", "-c", f"model={tiny_folder}"]
    command += [f"-c={key}={value}" for key, value in SMALL.items()]
    command += ["--nodes", "2", "--strategies", "local,central", "--seeds", "3"]
    command += ["--app", str(ROOT), "--output-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def compare(*more):
        return subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    first = compare()
    assert first.returncode == 0, first.stderr
    found = {
        name: load_results(folder / f"{name}_memit_seed-3" / "results.json").as_json()["slots"][0]
        for name in ("local", "central")
    }
    requests = found["local"]["requests"]
    assert [found["local"][name] for name in ("optimised", "cached")] == [requests, 0]
    assert [found["central"][name] for name in ("optimised", "cached")] == [requests, requests]
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    assert [row["strategy"] for row in rows] == ["unedited", "local", "central"]
    assert (folder / "comparison.html").read_text().count("<svg") == 1
    again = compare("--dry-run")
    assert again.stdout.count("complete") == 2
