"""Flower and Ray for real: `fedit run` as a user starts it, and `flwr run` beside it."""

import io
import json
import os
import shutil
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path

import psutil
import pytest
import tiny
import tomli_w
from flwr.cli.build import build_fab_from_disk

from benchmarks.loopback import PATIENCE
from fedit_app.flower_compat import launch
from fedit_app.flower_compat.connection import Connection
from fedit_app.report import load_results

ROOT = Path(__file__).parents[2]
MARK = "FEDIT_TEST_MARK"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The demo's files, one of them faulty."""
    folder = Path(shutil.copytree(tiny.DEMO, tmp_path_factory.mktemp("data") / "requests"))
    with (folder / "museum.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "museum-16", "subject": "Louvre", "prompt": "It is in"}\n')
    return folder


@pytest.fixture(scope="module")
def preset(tmp_path_factory, tiny_folder, data) -> Path:
    """Run-config file of a small run."""
    file = tmp_path_factory.mktemp("preset") / "small.toml"
    values = {
        "model": str(tiny_folder),
        "dataset": "jsonl",
        "data-path": str(data),
        **tiny.RUN_CONFIG,
    }
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    return file


def fedit_run(preset: Path, output: Path, cwd: Path, *more: str):
    """Run the command in a folder; returns its result and the processes that it left behind."""
    mark = uuid.uuid4().hex
    cwd.mkdir()
    command = [sys.executable, "-m", "fedit_app.cli.main", "run", "--config", str(preset)]
    command += ["--app", str(ROOT), "--output-dir", str(output), *more]
    temporary = cwd.parent / ("a-rather-long-path-" * 4)  # longer than a socket's may be
    temporary.mkdir()
    environment = {**os.environ, MARK: mark, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    result = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    return result, [process for process in psutil.process_iter() if marked(process, mark)]


def marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except psutil.Error:
        return False


@pytest.fixture(scope="module")
def first(preset, tmp_path_factory):
    """A run over the whole demo with a faulty file: (result, left over processes, folder, cwd)."""
    folder = tmp_path_factory.mktemp("first")
    return *fedit_run(preset, folder / "run", folder / "cwd"), folder / "run", folder / "cwd"


def test_a_run_goes_on_without_a_faulty_node(first):
    result, _, folder, _ = first

    assert result.returncode == 0, result.stdout + result.stderr
    results = load_results(folder / "results.json").as_json()
    assert results["status"] == "completed"
    assert sorted(results["nodes"]) == ["bank", "hospital", "newsroom"]
    (failure,) = results["failed_nodes"]
    assert (failure["node"], failure["slot"], failure["stage"]) == ("museum", 0, "hello")
    assert "line 16" in failure["reason"] and "target_new is missing" in failure["reason"]
    assert [slot["requests"] for slot in results["slots"]] == [15, 15, 15]
    assert sum(slot["accepted"] for slot in results["slots"]) > 45
    for file in ("report.html", "metrics.jsonl", "config.toml"):
        assert (folder / file).stat().st_size > 100


def test_the_user_is_told(first):
    result, _, folder, _ = first

    assert str(folder / "results.json") in result.stdout
    assert "museum" in result.stderr and "left out" in result.stderr
    assert "slot 3 evaluate: newsroom answered, 3 of 3" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_nothing_is_left_behind(first):
    _, left_over, _, cwd = first

    assert left_over == []
    assert list(cwd.iterdir()) == []


@pytest.mark.slow
def test_a_run_in_which_every_node_fails(preset, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("Too short.", encoding="utf-8")
    result, left_over = fedit_run(
        preset, tmp_path / "run", tmp_path / "cwd", "-c", f"covariance-source={text}"
    )

    assert result.returncode == 1, result.stdout + result.stderr
    assert "the run failed (finished:failed)" in result.stderr
    assert left_over == []
    results = load_results(tmp_path / "run" / "results.json").as_json()
    assert results["status"] == "failed"
    failed = {f["node"]: f["reason"] for f in results["failed_nodes"] if f["stage"] == "edit"}
    assert sorted(failed) == ["bank", "hospital", "newsroom"]
    assert all("short.txt" in reason for reason in failed.values())


@pytest.mark.slow
def test_a_run_that_is_ended_from_outside_is_not_complete_and_leaves_nothing_behind(
    preset, tmp_path
):
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "fedit_app.cli.main", "run", "--config", str(preset)]
    command += ["--app", str(ROOT), "--output-dir", str(tmp_path / "run")]
    with subprocess.Popen(
        command,
        env={**os.environ, MARK: mark, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            if "slot 1 edit: bank answered, 1 of 3" in line:
                process.terminate()
        assert process.wait(PATIENCE) == 130
    assert [left for left in psutil.process_iter() if marked(left, mark)] == []
    results = load_results(tmp_path / "run" / "results.json")
    assert (results.status, results.slots_complete, results.failed) == ("running", 0, ["museum"])


def test_flwr_run_gives_the_same_figures(first, preset, tmp_path):
    """What `fedit run` adds is comfort: the plain command does the same."""
    overrides = tmp_path / "overrides.toml"
    values = f'output-dir = "{tmp_path / "run"}"\n' + preset.read_text(encoding="utf-8")
    overrides.write_text(values, encoding="utf-8")
    with launch.temporary_home() as home, launch.simulation_superlink(home) as superlink:
        connection = Connection.to(superlink, home)
        command = [str(Path(sys.executable).parent / "flwr"), "run", str(ROOT), "--stream"]
        command += ["--run-config", str(overrides), "--federation-config"]
        command += [f"num-supernodes=4 client-resources-num-cpus={os.cpu_count()}"]
        result = subprocess.run(
            command,
            cwd=tmp_path,
            env=connection.environment,
            timeout=PATIENCE,
            capture_output=True,
            text=True,
        )
    assert (tmp_path / "run" / "results.json").exists(), result.stdout + result.stderr

    figures = []
    for folder in (first[2], tmp_path / "run"):
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        for slot in results["slots"]:
            for record in (slot, *slot["nodes"].values()):
                del record["seconds"]
                for name in ("ledger_head", "peak_bytes"):
                    record.pop(name, None)
        figures.append([results[part] for part in ("status", "nodes", "model", "slots")])
    assert figures[0] == figures[1]


def test_the_bundle_holds_the_app_and_nothing_else():
    names = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))).namelist()

    def belongs(name: str) -> bool:
        path = Path(name)
        if path.parts[0] == "fedit_app":
            return path.suffix == ".py" or path.match("fedit_app/facts/demo/*.jsonl")
        alone = ("pyproject.toml", "LICENSE", "README.md", "server_app.py", "client_app.py")
        return path.match("configs/*.toml") or name in alone or name.startswith(".info/")

    assert [name for name in names if not belongs(name)] == []
    code = {str(file.relative_to(ROOT)) for file in (ROOT / "fedit_app").rglob("*.py")}
    demo = {f"fedit_app/facts/demo/{file.name}" for file in tiny.DEMO.glob("*.jsonl")}
    needed = code | demo | {"pyproject.toml", "LICENSE", "server_app.py", "client_app.py"}
    assert needed - set(names) == set()
    assert len(demo) == 4
