"""The runs of a comparison: each has its own folder and is started, resumed or restarted."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from fedit_app.config.run_config import RunConfig
from fedit_app.editing.editors import editor_named
from fedit_app.experiments.baselines import run_baseline
from fedit_app.experiments.plan import Plan, PlannedRun
from fedit_app.experiments.preflight import check_simulation
from fedit_app.experiments.side_by_side import side_by_side
from fedit_app.facts.partition import take_over_partition
from fedit_app.report import load_results
from fedit_app.server.record import resumable_results
from fedit_app.server.strategies import keeps_its_state
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import duration

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


def execute(steps: Sequence[Step], simulate: Simulate, jobs: int = 1) -> dict[str, str]:
    """Execute all unfinished runs; a failed run does not stop the others.

    Args:
        steps: see `prepare`.
        simulate: executes one run; with several jobs it is pickled.
        jobs: how many runs go on side by side. The first of those that optimise the same values is
            waited for, so that the work-cache has them.

    Returns:
        Name of a failed run -> the reason.
    """
    left = [step for step in steps if step.todo is not Todo.DONE]
    if len(left) < len(steps):
        logger.info("%d of %d runs are complete", len(steps) - len(left), len(steps))
    numbers = {step.run.name: number for number, step in enumerate(left, start=1)}
    work = partial(_timed, [step.run for step in steps], simulate, numbers)
    ended: Iterable[tuple[Step, tuple[float, str]]]
    if jobs == 1:
        ended = ((step, work(step)) for step in left)
    else:
        known = {_whose_values(step) for step in steps if step.todo is Todo.DONE}
        ended = side_by_side(left, work, jobs, _whose_values, known)
    failures: dict[str, str] = {}
    for step, (seconds, reason) in ended:
        if reason:
            failures[step.run.name] = reason
            logger.error("%s failed after %s: %s", step.run.title, duration(seconds), reason)
        else:
            logger.info("%s: %s", step.run.title, duration(seconds))
    return failures


def _whose_values(step: Step) -> Hashable:
    """What runs have in common that may optimise the same values v*."""
    run = step.run
    if run.is_baseline:
        return run.name
    name = str(run.values["editor"])
    method = editor_named(name)
    return method.site, method.objective, run.editor.removeprefix(name), run.seed, run.value


def _timed(
    all_runs: Sequence[PlannedRun], simulate: Simulate, numbers: Mapping[str, int], step: Step
) -> tuple[float, str]:
    """Execute a run: the seconds that it took, and why it failed."""
    run = step.run
    logger.info("run %d of %d: %s", numbers[run.name], len(numbers), run.title)
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
