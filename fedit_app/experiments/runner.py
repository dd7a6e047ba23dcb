"""The runs of a comparison: each has its own folder and is started, resumed or restarted."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from fedit_app.config.run_config import RunConfig
from fedit_app.editing.editors import editor_named
from fedit_app.experiments.baselines import run_baseline
from fedit_app.experiments.plan import Plan, PlannedRun
from fedit_app.experiments.preflight import check_simulation
from fedit_app.facts.partition import take_over_partition
from fedit_app.report import load_results
from fedit_app.server.record import resumable_results
from fedit_app.server.strategies import keeps_its_state
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import duration
from fedit_app.support.log import set_up_logging
from fedit_app.support.processes import cores

logger = logging.getLogger(__name__)

LOGS = "logs"
_COMPLETED = "finished:completed"
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception): (?P<text>.+)")
_FOLLOWS = re.compile("(direct cause of the following|another) exception( occurred)?:$")
# What Flower raises whatever has failed.
_SAYS_NOTHING = ("Simulation Runtime crashed.", "An error was encountered. Ending simulation.")


class Todo(Enum):
    """What a run still needs."""

    DONE = "complete"
    START = "to be started"
    RESUME = "to be resumed"
    RESTART = "to be restarted"


@dataclass(frozen=True)
class Step:
    """A run and what it still needs.

    Attributes:
        run: the run.
        todo: what it still needs.
        nodes: number of virtual nodes.
    """

    run: PlannedRun
    todo: Todo
    nodes: int


Simulate = Callable[[Mapping[str, Any], int, Callable[[str], None]], str]
"""(run config, nodes, a function that gets each log line) -> Flower's status; `launch.simulate`."""


def prepare(plan: Plan, app: Path | None = None) -> list[Step]:
    """Check all unfinished runs before the first one starts.

    Args:
        plan: the comparison.
        app: see `check_simulation`.

    Raises:
        FedEditError: a run cannot be started or resumed; names the run and the reason.
    """
    return [_checked(run, app) for run in plan.runs]


def _checked(run: PlannedRun, app: Path | None) -> Step:
    todo = what_is_left(run)
    try:
        config = RunConfig.parse(_values(run, todo))
        if todo is Todo.DONE:
            return Step(run, todo, run.nodes or 0)
        if todo is Todo.RESTART:  # the folder is deleted only when the run starts
            config = RunConfig.parse({**run.values, "output-dir": f"{run.folder}.new"})
        if run.is_baseline:  # not known to the server, where such a run is none
            config = config.model_copy(update={"strategy": "central"})
        nodes = check_simulation(config, run.nodes, app)
    except FedEditError as error:
        raise FedEditError(f"{run.title}: {error}") from None
    return Step(run, todo, nodes)


def what_is_left(run: PlannedRun) -> Todo:
    """What a run still needs, from the files of its folder.

    Raises:
        FedEditError: its results cannot be read.
    """
    folder = run.folder
    if not folder.exists() or not any(folder.iterdir()):
        return Todo.START
    if not (folder / "results.json").exists():
        return Todo.RESTART
    results = load_results(folder / "results.json")
    complete = results.slots_complete
    if complete >= int(run.values["num-slots"]):
        return Todo.DONE
    if not complete or run.is_baseline or not keeps_its_state(str(run.values["strategy"])):
        return Todo.RESTART
    resumable_results(RunConfig.parse(_values(run, Todo.RESUME)), folder)
    return Todo.RESUME


def cores_of(jobs: int) -> int:
    """How many cores each of so many runs has, if they go on side by side."""
    return max(1, cores() // jobs)


def execute(steps: Sequence[Step], simulate: Simulate, jobs: int = 1) -> dict[str, str]:
    """Execute all unfinished runs; a failed run does not stop the others.

    Args:
        steps: see `prepare`.
        simulate: executes one run; with several jobs a function of a module, or a partial of one.
        jobs: how many runs go on side by side, each in a process of its own. The first of those
            that optimise the same values is waited for, so that the work-cache has them.

    Returns:
        Name of a failed run -> the reason.
    """
    left = [step for step in steps if step.todo is not Todo.DONE]
    if len(left) < len(steps):
        logger.info("%d of %d runs are complete", len(steps) - len(left), len(steps))
    all_runs = [step.run for step in steps]
    if jobs == 1:
        ended = _one_by_one(left, all_runs, simulate)
    else:
        ended = _side_by_side(left, all_runs, simulate, jobs)
    failures: dict[str, str] = {}
    for step, seconds, reason in ended:
        if reason:
            failures[step.run.name] = reason
            logger.error("%s failed after %s: %s", step.run.title, duration(seconds), reason)
        else:
            logger.info("%s: %s", step.run.title, duration(seconds))
    return failures


_Ended = tuple[Step, float, str]
"""A step, the seconds that it took, and why it failed; an empty text if it did not."""


def _one_by_one(
    left: Sequence[Step], all_runs: Sequence[PlannedRun], simulate: Simulate
) -> Iterator[_Ended]:
    for number, step in enumerate(left, start=1):
        logger.info("run %d of %d: %s", number, len(left), step.run.title)
        yield step, *_timed(step, all_runs, simulate)


def _side_by_side(
    left: Sequence[Step], all_runs: Sequence[PlannedRun], simulate: Simulate, jobs: int
) -> Iterator[_Ended]:
    waiting, known = list(left), set[Hashable]()
    running: dict[Future[tuple[float, str]], Step] = {}
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), _begin, (cores_of(jobs),)
    ) as pool:
        try:
            while waiting or running:
                while len(running) < jobs and (step := _next(waiting, running, known)):
                    waiting.remove(step)
                    number = len(left) - len(waiting)
                    logger.info("run %d of %d: %s", number, len(left), step.run.title)
                    running[pool.submit(_job, step, all_runs, simulate)] = step
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step = running.pop(future)
                    known.add(_whose_values(step.run))
                    yield step, *future.result()
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


def _next(
    waiting: Sequence[Step], running: Mapping[Future[tuple[float, str]], Step], known: set[Hashable]
) -> Step | None:
    """The first step none of whose values a running one is the first to optimise."""
    awaited = {_whose_values(step.run) for step in running.values()} - known
    return next((step for step in waiting if _whose_values(step.run) not in awaited), None)


def _whose_values(run: PlannedRun) -> Hashable:
    """What runs have in common that may optimise the same values v*."""
    if run.is_baseline:
        return run.name
    name = str(run.values["editor"])
    method = editor_named(name)
    return method.site, method.objective, run.editor.removeprefix(name), run.seed, run.value


def _begin(threads: int) -> None:
    """Prepare a process that executes runs.

    It is in a process group of its own and deaf between two runs: who is interrupted passes it on.
    """
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_logging()
    torch.set_num_threads(threads)


def _job(step: Step, all_runs: Sequence[PlannedRun], simulate: Simulate) -> tuple[float, str]:
    """Execute a step in such a process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _timed(step, all_runs, simulate)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _timed(step: Step, all_runs: Sequence[PlannedRun], simulate: Simulate) -> tuple[float, str]:
    """Execute a step: the seconds that it took, and why it failed."""
    started = time.perf_counter()
    reason = _run(step, all_runs, simulate)
    return time.perf_counter() - started, reason


def _run(step: Step, all_runs: Sequence[PlannedRun], simulate: Simulate) -> str:
    """Execute one run; the reason if it fails, else an empty text."""
    folder = step.run.folder
    log = folder.parent / LOGS / f"{step.run.name}.log"
    if step.todo is Todo.RESTART:
        shutil.rmtree(folder)
    if step.todo is not Todo.RESUME:
        _share_partition(step, all_runs)
    if step.run.is_baseline:
        return _baseline(step)
    log.parent.mkdir(parents=True, exist_ok=True)
    cause = _Cause()
    with log.open("a" if step.todo is Todo.RESUME else "w", encoding="utf-8") as stream:

        def keep(line: str) -> None:
            stream.write(f"{line}\n")
            stream.flush()
            cause.read(line)

        try:
            status = simulate(_values(step.run, step.todo), step.nodes, keep)
        except FedEditError as error:
            return str(error)
    if status == _COMPLETED:
        return ""
    return f"{cause.text or status} (log: {LOGS}/{log.name})"


class _Cause:
    """Why a run failed: the last exception in its log, of several that follow from one the first.

    Attributes:
        text: what the exception says; "" if there is none.
    """

    def __init__(self) -> None:
        self.text, self._follows = "", False

    def read(self, line: str) -> None:
        """Take in a line of the log."""
        if _FOLLOWS.search(line):
            self._follows = True
        elif found := _ERROR.search(line):
            if not self._follows and found["text"] not in _SAYS_NOTHING:
                self.text = found["text"]
            self._follows = False


def _baseline(step: Step) -> str:
    """Execute a baseline in this process; the reason if it fails, else an empty text."""
    try:
        run_baseline(_values(step.run, step.todo), step.nodes)
    except FedEditError as error:
        return str(error)
    return ""


def _share_partition(step: Step, all_runs: Sequence[PlannedRun]) -> None:
    """Copy the partition of a run that has computed it already, since clustering is slow."""
    config = RunConfig.parse(step.run.values)
    for other in all_runs:
        if other.values["data-path"] == step.run.values["data-path"]:
            if take_over_partition(config, step.nodes, other.folder, step.run.folder):
                return


def _values(run: PlannedRun, todo: Todo) -> dict[str, Any]:
    return {**run.values, "resume": todo is Todo.RESUME}
