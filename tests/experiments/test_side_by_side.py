"""`fedit compare --jobs`: work that goes on side by side, in processes of its own."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedit_app.experiments import side_by_side as module
from fedit_app.experiments.side_by_side import side_by_side
from fedit_app.support.errors import FedEditError


def note(folder, what):
    with open(folder / "told", "a") as stream:
        stream.write(f"{what}\n")


def told(folder):
    file = folder / "told"
    return file.read_text().splitlines() if file.exists() else []


def until(folder, count):
    """Wait until so many tasks have begun."""
    for _ in range(2400):
        if sum("begins" in line for line in told(folder)) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(told(folder))


def meeting(folder, first, task):
    """A task; all but the first one wait for one another."""
    note(folder, f"{task} begins")
    if task == first:
        time.sleep(0.3)
    else:
        until(folder, 3 if first else 2)
    note(folder, f"{task} ends")
    return task.upper()


def share(task):
    return task[0]


def test_the_first_of_those_that_share_is_waited_for(tmp_path):
    work = functools.partial(meeting, tmp_path, "a1")
    ended = list(side_by_side(["a1", "a2", "a3"], work, 2, share))
    assert ended[0] == ("a1", "A1") and sorted(ended[1:]) == [("a2", "A2"), ("a3", "A3")]
    lines = told(tmp_path)
    assert lines[:2] == ["a1 begins", "a1 ends"]
    assert [line.split()[-1] for line in lines[2:]] == ["begins", "begins", "ends", "ends"]


@pytest.mark.parametrize(("tasks", "known"), [(["a1", "b1"], ()), (["a1", "a2"], "a")])
def test_what_shares_nothing_or_what_is_known_begins_at_once(tmp_path, tasks, known):
    work = functools.partial(meeting, tmp_path, "")
    assert dict(side_by_side(tasks, work, 2, share, known)).keys() == set(tasks)


def threads(task):
    import torch

    return torch.get_num_threads()


def test_each_job_has_its_share_of_the_cores(monkeypatch):
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    monkeypatch.setattr(module, "cores", lambda: 4 * allowed)
    assert list(side_by_side(["a"], threads, 4, share)) == [("a", allowed)]


def endless(folder, task):
    """A task that takes a moment to end once it is interrupted."""
    note(folder, f"{os.getpid()} begins")
    try:
        time.sleep(600)
    finally:
        time.sleep(0.3)
        note(folder, f"{os.getpid()} ends")


def interrupted():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under nohup
    try:
        list(side_by_side(["a", "b"], functools.partial(endless, Path(sys.argv[1])), 2, share))
    except KeyboardInterrupt:
        sys.exit(130)


def endless_jobs(folder):
    """A process with two endless jobs, which have begun."""
    code = f"from {__name__} import interrupted; interrupted()"
    process = subprocess.Popen([sys.executable, "-c", code, folder], stderr=subprocess.PIPE)
    until(folder, 2)
    return process


def jobs_and_what_they_do(folder):
    lines = [line.split() for line in told(folder)]
    return {int(pid) for pid, _ in lines}, [what for _, what in lines]


def test_an_interrupt_reaches_all_jobs_and_waits_for_their_end(tmp_path):
    process = endless_jobs(tmp_path)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and b"Traceback" not in errors
    assert jobs_and_what_they_do(tmp_path)[1] == ["begins", "begins", "ends", "ends"]


def test_jobs_whose_parent_is_killed_end_their_tasks_and_themselves(tmp_path):
    process = endless_jobs(tmp_path)
    pids, _ = jobs_and_what_they_do(tmp_path)
    jobs = [psutil.Process(pid) for pid in pids]
    process.kill()
    gone, alive = psutil.wait_procs(jobs, timeout=60)
    assert len(gone) == 2 and not alive
    assert jobs_and_what_they_do(tmp_path)[1] == ["begins", "begins", "ends", "ends"]
    process.communicate(timeout=60)


def killed(task):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_told():
    with pytest.raises(FedEditError, match="--jobs: the process of a run was killed"):
        list(side_by_side(["a", "b"], killed, 2, share))
