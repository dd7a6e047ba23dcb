"""`fedit compare --jobs`: runs that go on side by side, in processes of their own."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fedit_app.experiments import runner
from fedit_app.experiments.plan import make_plan
from fedit_app.experiments.runner import Step, Todo, execute
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.integration


def note(folder, what):
    with open(folder / "told", "a") as stream:
        stream.write(f"{what}\n")


def told(folder):
    file = folder / "told"
    return file.read_text().splitlines() if file.exists() else []


def until(folder, count):
    """Wait until so many runs have begun."""
    for _ in range(2400):
        if sum("begins" in line for line in told(folder)) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(told(folder))


def simulated(folder, values, nodes, on_line):
    """Stands for a run: the first one is alone, the others meet, and some of them fail."""
    name = f"{values['strategy']}, {values['editor']}"
    note(folder, f"{name} begins")
    time.sleep(0.3)
    if name != "fedit, memit":
        until(folder, 3)
    on_line(f"on {torch.get_num_threads()} threads")
    note(folder, f"{name} ends")
    if values["strategy"] == "local":
        raise FedEditError("no such federation")
    return "finished:completed"


def endless(folder, values, nodes, on_line):
    """A run that is interrupted, and takes a moment to end."""
    note(folder, "begins")
    try:
        time.sleep(600)
    finally:
        time.sleep(0.3)
        note(folder, "ends")


def steps(folder, strategies, seeds="1", editors="memit"):
    made = make_plan(folder / "all", {"num-slots": 1}, None, strategies, editors, seeds)
    return [Step(run, Todo.START, 4) for run in made.runs]


def test_the_first_of_those_with_the_same_values_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "cores", lambda: 2)
    simulate = functools.partial(simulated, tmp_path)
    failures = execute(steps(tmp_path, "fedit,local", editors="memit,alphaedit"), simulate, jobs=2)
    assert set(failures) == {"local_memit_seed-1", "local_alphaedit_seed-1"}
    assert set(failures.values()) == {"no such federation"}
    lines = told(tmp_path)
    assert lines[:2] == ["fedit, memit begins", "fedit, memit ends"]
    assert [line.split()[-1] for line in lines[2:4]] == ["begins", "begins"] and len(lines) == 8
    logs = [file.read_text() for file in (tmp_path / "all" / "logs").iterdir()]
    assert logs == ["on 1 threads\n"] * 4


def test_an_interrupt_of_two_seeds_reaches_the_runs_and_waits_for_their_end(tmp_path):
    code = f"from {__name__} import interrupted; interrupted()"
    command = [sys.executable, "-c", code, tmp_path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and told(tmp_path) == ["begins", "begins", "ends", "ends"]
    assert "Traceback" not in errors


def interrupted():
    """What Ctrl-C meets."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it
    folder = Path(sys.argv[1])
    try:
        execute(steps(folder, "fedit", "1,2"), functools.partial(endless, folder), jobs=2)
    except KeyboardInterrupt:
        sys.exit(130)


def killed(values, nodes, on_line):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_is_killed_is_told(tmp_path):
    with pytest.raises(FedEditError, match="--jobs: the process of a run was killed"):
        execute(steps(tmp_path, "fedit", "1,2"), killed, jobs=2)
