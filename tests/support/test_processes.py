"""Flower's processes and all that they start are found and ended."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from fedit_app.support import processes

pytestmark = pytest.mark.integration

SLEEP = "import time; time.sleep(60)"
# A child that nobody would recognise by its environment.
PARENT = f"""\
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], env={{}})
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds processes to cores")
def test_only_cores_that_may_be_used_are_counted(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert processes.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_command_ends_what_it_has_started(number):
    """Python by itself ends at once, without a `finally`."""
    code = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
from fedit_app.support.processes import interrupt_when_terminated
interrupt_when_terminated()
try:
    print("begun", flush=True)
    time.sleep(600)
finally:
    print("cleaned up", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.communicate(timeout=60)[0] == "cleaned up\n"


@pytest.fixture
def handlers():
    """Restores this process's handlers of signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_command_under_nohup_outlives_its_terminal(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    processes.interrupt_when_terminated()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


@pytest.fixture
def run(tmp_path):
    """Gives `run(code)`: Python code as a process of the home `tmp_path`; all end at the end."""
    started = []

    def run(code: str, **environment: str) -> subprocess.Popen:
        given = {**processes.environment(tmp_path), **environment}
        process = processes.start([sys.executable, "-c", code], tmp_path, given, subprocess.PIPE)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait(60)
        process.stdout.close()


def test_a_family_is_found_by_home_and_by_descent(run, tmp_path):
    parent, cousin, stranger = run(PARENT), run(SLEEP), run(SLEEP, FLWR_HOME="/elsewhere")
    child = int(parent.stdout.readline())

    found = {process.pid for process in processes.family(tmp_path, parent.pid)}
    assert found == {parent.pid, child, cousin.pid}
    assert {process.pid for process in processes.family(tmp_path)} == {parent.pid, cousin.pid}

    assert processes.stop_family(tmp_path, parent.pid) == 3
    assert parent.wait(60) is not None and cousin.wait(60) is not None
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"
    assert stranger.poll() is None


def test_only_the_processes_of_a_tool_are_killed_by_its_name(run, tmp_path, monkeypatch):
    server, other = (run(SLEEP + f"  # {name}") for name in ("server", "other"))
    monkeypatch.setattr(processes, "tool", lambda name: SLEEP + f"  # {name}")
    processes.kill_tool(tmp_path, "server")
    assert server.wait(60) == -9 and other.poll() is None


def test_who_does_not_listen_is_killed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.5)
    stubborn = run(
        f"import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); {SLEEP}"
    )
    stubborn.stdout.readline()
    processes.stop_family(tmp_path)

    assert stubborn.wait(60) == -9


def test_this_process_is_not_its_own_family(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(processes.flower_home(tmp_path)))

    assert os.getpid() not in [process.pid for process in processes.family(tmp_path, os.getpid())]


def test_a_free_port():
    assert 1024 < processes.free_port() < 65536
