"""Work that goes on side by side, in processes of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from fedit_app.support.errors import FedEditError
from fedit_app.support.log import set_up_logging
from fedit_app.support.processes import cores

T = TypeVar("T")
R = TypeVar("R")

_working = threading.Lock()
"""Held in a process of `side_by_side` while it does a task."""


def cores_of(jobs: int) -> int:
    """How many cores each of so many jobs has."""
    return max(1, cores() // jobs)


def side_by_side(
    tasks: Sequence[T],
    work: Callable[[T], R],
    jobs: int,
    shares: Callable[[T], Hashable],
    known: Iterable[Hashable] = (),
) -> Iterator[tuple[T, R]]:
    """Do tasks in so many processes; an interrupt reaches those that are under way.

    Args:
        tasks: in the order in which they are begun.
        work: does one; pickled, as are task and result.
        jobs: number of processes.
        shares: what a task computes that others with an equal share can use. While the first task
            of a share is under way, no other of it is begun.
        known: the shares that are computed already.

    Yields:
        Each task and its result, in the order in which they end.

    Raises:
        FedEditError: a process was killed.
    """
    waiting, done = list(tasks), set(known)
    running: dict[Future[R], T] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin, (cores_of(jobs),)) as pool:
        try:
            while waiting or running:
                while len(running) < jobs:
                    awaited = {shares(task) for task in running.values()} - done
                    ready = [task for task in waiting if shares(task) not in awaited]
                    if not ready:
                        break
                    waiting.remove(ready[0])
                    running[pool.submit(_do, work, ready[0])] = ready[0]
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    done.add(shares(task))
                    yield task, future.result()
        except BrokenProcessPool:
            raise FedEditError(
                "--jobs: the process of a run was killed, as happens when memory runs out; choose "
                "fewer jobs: what is complete is kept"
            ) from None
        except BaseException:
            for process in multiprocessing.active_children():
                if process.pid is not None:
                    os.kill(process.pid, signal.SIGINT)
            raise


def _begin(threads: int) -> None:
    """Prepare a process, before it loads torch.

    It leaves the terminal's process group, so that Ctrl-C reaches it once, through `side_by_side`,
    and ignores interrupts between two tasks.
    """
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_up_logging()
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _end_with_parent() -> None:
    """End this process once its parent has ended, which may have been killed: first its task."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGINT)
    with _working:
        os._exit(1)


def _do(work: Callable[[T], R], task: T) -> R:
    """Do a task in such a process."""
    with _working:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return work(task)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
