"""One process in the foreground, once, and nothing left of it."""

import io
import subprocess
import sys
import time

import psutil
import pytest

from fedit_app.deployment.foreground import alone, foreground, is_running
from fedit_app.support import processes
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.integration

SLEEP = "import time; time.sleep(60)"


def test_a_folder_is_run_once(tmp_path):
    home = tmp_path / "node" / "flower"
    assert not is_running(home)
    with alone(home):
        assert is_running(home)
        with pytest.raises(FedEditError, match="node: is already running"):
            with alone(home):
                raise AssertionError("never entered")
    assert not is_running(home)


def test_what_an_earlier_start_left_is_ended(tmp_path):
    command = [sys.executable, "-c", f"print(flush=True); {SLEEP}"]
    left = processes.start(command, tmp_path, processes.environment(tmp_path), subprocess.PIPE)
    left.stdout.readline()  # a process that is only being started has no environment to see yet
    with alone(tmp_path):
        assert left.wait(60) is not None


def test_output_is_handed_on_and_the_family_ends(tmp_path, monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], env={{}})\n"
        "print('\\x1b[92mINFO\\x1b[0m: child', child.pid, flush=True)\n"
        "print('to stderr', file=sys.stderr, flush=True)\n"
    )
    with foreground([sys.executable, "-c", code + SLEEP], tmp_path) as process:
        while output.getvalue().count("\n") < 2 and process.poll() is None:
            time.sleep(0.01)
    lines = output.getvalue().splitlines()
    assert process.poll() is not None
    assert lines[0].startswith("INFO: child") and lines[1] == "to stderr"
    child = int(lines[0].split()[-1])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"
