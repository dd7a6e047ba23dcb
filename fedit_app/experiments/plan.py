"""Which runs a comparison is made of, and the folder that they share."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedit_app.config.overrides import toml_value
from fedit_app.config.retired import modernised
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.experiments.variants import Variant, parse_variants
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_json_atomic

PLAN_FILE = "plan.json"
_LOCK = ".lock"
NODES = "nodes"  # the one axis that is not a run-config key
_VERSION = 1
# Keys in which the runs differ, or that they may not share.
_PER_RUN = ("strategy", "editor", "seed", "output-dir", "resume", "state-dir", "federation")
_TAKEN = (*_PER_RUN, "pool-uri", "work-cache")
# Keys that may differ when a comparison is resumed.
_MAY_CHANGE = ("work-cache", "device", "device-map", "slot-timeout")


@dataclass(frozen=True)
class Axis:
    """What a sweep varies.

    Attributes:
        key: a run-config key, or `nodes`.
        values: at least one.
    """

    key: str
    values: tuple[ConfigValue, ...]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    Attributes:
        name: of its folder.
        strategy, editor: labels of the variants.
        seed: the run's seed.
        value: on the axis; None without one.
        nodes: number of virtual nodes; None for one per data file.
        values: its whole run configuration.
    """

    name: str
    strategy: str
    editor: str
    seed: int
    value: ConfigValue | None
    nodes: int | None
    values: dict[str, ConfigValue]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(str(self.values["output-dir"]))

    @property
    def title(self) -> str:
        """The run in words."""
        value = "" if self.value is None else f", {self.value}"
        return f"{self.strategy}, {self.editor}, seed {self.seed}{value}"


@dataclass(frozen=True)
class Plan:
    """A comparison.

    Attributes:
        folder: the comparison's folder.
        values: run configuration that its runs have in common.
        nodes: number of virtual nodes; None for one per data file, or if it is the axis.
        strategies, editors: the variants.
        seeds: the seeds.
        axis: what a sweep varies; None for a comparison.
    """

    folder: Path
    values: dict[str, ConfigValue]
    nodes: int | None
    strategies: tuple[Variant, ...]
    editors: tuple[Variant, ...]
    seeds: tuple[int, ...]
    axis: Axis | None = None

    @property
    def runs(self) -> list[PlannedRun]:
        """All runs, seed by seed: an unfinished comparison is balanced.

        Raises:
            FedEditError: two of them would share a folder.
        """
        values: Sequence[ConfigValue | None] = self.axis.values if self.axis else (None,)
        parts = itertools.product(self.seeds, self.editors, values, self.strategies)
        runs = [self._run(strategy, editor, seed, value) for seed, editor, value, strategy in parts]
        names = [run.name for run in runs]
        for run in runs:
            if names.count(run.name) > 1:
                raise FedEditError(
                    f"comparison: two runs would have the folder {run.name}; give variants and "
                    "values that differ in letters or digits"
                )
        return runs

    def _run(
        self, strategy: Variant, editor: Variant, seed: int, value: ConfigValue | None
    ) -> PlannedRun:
        parts = [strategy.label, editor.label]
        nodes, on_axis = self.nodes, {}
        if self.axis and value is not None:
            parts.append(f"{self.axis.key}={value}")
            if self.axis.key == NODES:
                nodes = int(value)
            else:
                on_axis = {self.axis.key: value}
        name = "_".join(map(_slug, [*parts, f"seed={seed}"]))
        values = {
            **self.values,
            **editor.changes,
            **strategy.changes,
            **on_axis,
            "strategy": strategy.name,
            "editor": editor.name,
            "seed": seed,
            "output-dir": str(self.folder / name),
        }
        return PlannedRun(name, strategy.label, editor.label, seed, value, nodes, values)

    def as_dict(self) -> dict[str, Any]:
        """The plan as `plan.json` holds it."""
        axis = {"key": self.axis.key, "values": list(self.axis.values)} if self.axis else None
        return {
            "version": _VERSION,
            "config": self.values,
            "nodes": self.nodes,
            "strategies": [variant.label for variant in self.strategies],
            "editors": [variant.label for variant in self.editors],
            "seeds": list(self.seeds),
            "axis": axis,
        }


def make_plan(
    folder: Path,
    values: Mapping[str, ConfigValue],
    nodes: int | None,
    strategies: str,
    editors: str,
    seeds: str,
    axis: Axis | None = None,
) -> Plan:
    """A plan from what the command line says.

    The values v* are optimised one by one unless `edit-batch` says otherwise: then they do not
    depend on which requests share a batch, and all runs can use them.

    Args:
        folder: the comparison's folder.
        values: run-config values that the runs have in common.
        nodes: number of virtual nodes.
        strategies, editors: lists of variants, see `parse_variants`.
        seeds: list of integers.
        axis: what a sweep varies.

    Raises:
        FedEditError: naming the option that is wrong.
    """
    shared = dict(values)
    for key in ("state-dir", "federation", "pool-uri", "output-dir", "resume"):
        if shared.pop(key, ""):
            raise FedEditError(f"run config: {key} cannot be set here: every run has its own")
    shared.setdefault("edit-batch", 1)
    shared.setdefault("work-cache", str(folder / "work-cache"))
    for key in _PER_RUN:
        shared.pop(key, None)
    taken = [*_TAKEN, axis.key] if axis else _TAKEN
    complete = RunConfig.parse(shared).as_dict()
    plan = Plan(
        folder,
        {key: value for key, value in complete.items() if key not in _PER_RUN},
        nodes,
        tuple(parse_variants(strategies, "--strategies", taken)),
        tuple(parse_variants(editors, "--editors", taken)),
        _seeds(seeds),
        axis,
    )
    if axis and axis.key == NODES and nodes is not None:
        raise FedEditError("--nodes cannot be given beside --axis nodes=...")
    for run in plan.runs:
        try:
            RunConfig.parse(run.values)
        except FedEditError as error:
            raise FedEditError(f"{run.title}: {error}") from None
    return plan


def _seeds(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        raise FedEditError(f"--seeds: {text!r}: write numbers such as 1,2,3")
    seeds = [int(part) for part in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise FedEditError(f"--seeds: {text!r}: a seed is given twice")
    return tuple(seeds)


def parse_axis(text: str) -> Axis:
    """The axis of a sweep, from `KEY=VALUE,VALUE,...`.

    Raises:
        FedEditError: not of this form, or a key that cannot be an axis.
    """
    key, equals, rest = (part.strip() for part in text.partition("="))
    values = tuple(toml_value(part.strip()) for part in rest.split(","))
    if not equals or not rest or any(value == "" for value in values):
        raise FedEditError(f"--axis {text}: write KEY=VALUE,VALUE,... such as overlap=0,0.25,0.5")
    if len(set(values)) < len(values):
        raise FedEditError(f"--axis {text}: a value is given twice")
    if key in _TAKEN:
        raise FedEditError(f"--axis {text}: {key} cannot be an axis; see --strategies and --seeds")
    if key == NODES:
        if not all(isinstance(value, int) and value > 0 for value in values):
            raise FedEditError(f"--axis {text}: write numbers of nodes such as nodes=2,4,8")
    elif key not in RunConfig().as_dict():
        raise FedEditError(f"--axis {text}: {key} is neither a run-config key nor nodes")
    return Axis(key, values)


def joined(plan: Plan) -> Plan:
    """A plan together with the one that its folder was begun with.

    Strategies, editors, seeds and values of the axis may be added to a comparison.

    Args:
        plan: what is wanted now.

    Returns:
        The plan with all that the folder has and all that is wanted.

    Raises:
        FedEditError: the folder was begun with other settings, or is not a comparison's.
    """
    folder = plan.folder
    if (folder / PLAN_FILE).exists():
        return _joined(load_plan(folder), plan)
    if folder.exists() and not folder.is_dir():
        raise FedEditError(f"--output-dir: {folder} is a file; name a folder")
    if folder.exists() and any(file.name != _LOCK for file in folder.iterdir()):
        raise FedEditError(
            f"--output-dir: {folder} is neither empty nor a comparison's folder; name another"
        )
    return plan


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from doing runs of the same comparison.

    Raises:
        FedEditError: one does, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise FedEditError(
            f"--output-dir: another process is working on {folder}; wait for its end, or end it"
        ) from None
    except OSError as error:
        raise FedEditError(f"--output-dir: {folder} cannot be written ({error.strerror})") from None
    try:
        yield
    finally:
        lock.release()


def save_plan(plan: Plan) -> None:
    """Write a plan into its folder, for `load_plan`."""
    write_json_atomic(plan.folder / PLAN_FILE, plan.as_dict())


def load_plan(folder: Path) -> Plan:
    """The plan of a comparison's folder.

    Raises:
        FedEditError: it has none, or one of another version.
    """
    try:
        stored = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FedEditError(
            f"{folder / PLAN_FILE}: cannot be read ({error}); name the folder of a comparison"
        ) from None
    if stored.get("version") != _VERSION:
        raise FedEditError(
            f"{folder / PLAN_FILE}: version {stored.get('version')}, this FedEdit reads {_VERSION}"
        )
    axis = stored["axis"] and Axis(stored["axis"]["key"], tuple(stored["axis"]["values"]))
    return Plan(
        folder,
        modernised(stored["config"]),
        stored["nodes"],
        tuple(parse_variants(",".join(stored["strategies"]), "plan: strategies", ())),
        tuple(parse_variants(",".join(stored["editors"]), "plan: editors", ())),
        tuple(stored["seeds"]),
        axis,
    )


def _joined(begun: Plan, wanted: Plan) -> Plan:
    before = {**RunConfig().as_dict(), **begun.values}  # the folder may be older than a key
    differences = [
        f"{key} = {value!r} (begun with {before[key]!r})"
        for key, value in sorted(wanted.values.items())
        if key not in _MAY_CHANGE and before[key] != value
    ]
    if begun.nodes != wanted.nodes:
        differences.append(f"--nodes {wanted.nodes} (begun with {begun.nodes})")
    axes = [plan.axis.key if plan.axis else "none" for plan in (wanted, begun)]
    if axes[0] != axes[1]:
        differences.append(f"--axis {axes[0]} (begun with {axes[1]})")
    if differences:
        raise FedEditError(
            f"--output-dir: {begun.folder} was begun with other settings: "
            f"{', '.join(differences)}; name another folder"
        )
    axis = wanted.axis and Axis(
        wanted.axis.key, tuple(dict.fromkeys([*begun.axis.values, *wanted.axis.values]))
    )
    return Plan(
        wanted.folder,
        wanted.values,
        wanted.nodes,
        _united(begun.strategies, wanted.strategies),
        _united(begun.editors, wanted.editors),
        tuple(dict.fromkeys([*begun.seeds, *wanted.seeds])),
        axis,
    )


def _united(begun: Sequence[Variant], wanted: Sequence[Variant]) -> tuple[Variant, ...]:
    return tuple({variant.label: variant for variant in [*begun, *wanted]}.values())


def _slug(text: str) -> str:
    """A text as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.")
