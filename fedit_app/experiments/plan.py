"""Which runs a comparison is made of, and the folder that they share."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock, Timeout
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)

from fedit_app.config.overrides import toml_value
from fedit_app.config.retired import modernised
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.experiments.baselines.methods import BASELINES
from fedit_app.experiments.variants import Variant, parse_variants
from fedit_app.support.errors import FedEditError, shown
from fedit_app.support.files import write_json_atomic

PLAN_FILE = "plan.json"
_LOCK = ".lock"
NODES = "nodes"  # the one axis that is not a run-config key
# Keys that every run has a value of its own for.
_PER_RUN = ("strategy", "editor", "seed", "output-dir", "resume", "state-dir", "federation")
_TAKEN = (*_PER_RUN, "pool-uri", "work-cache")
# Keys that may change when a comparison is resumed.
_MAY_CHANGE = ("work-cache", "device", "device-map", "slot-timeout")


@dataclass(frozen=True)
class Axis:
    """What a sweep varies.

    Attributes:
        key: a run-config key, or `nodes`.
        values: one or more.
    """

    key: str
    values: tuple[ConfigValue, ...]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    Attributes:
        name: of its folder.
        strategy, editor: labels of the variants; no editor for a baseline.
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
    def is_baseline(self) -> bool:
        """Whether it is no federation, but what `experiments.baselines` has."""
        return not self.editor

    @property
    def title(self) -> str:
        """The run in words."""
        value = "" if self.value is None else f", {self.value}"
        method = self.strategy if self.is_baseline else f"{self.strategy}, {self.editor}"
        return f"{method}, seed {self.seed}{value}"


def _from_labels(found: object) -> object:
    """The variants of a list of labels, as `plan.json` holds them."""
    if isinstance(found, list) and all(isinstance(label, str) for label in found):
        return tuple(parse_variants(",".join(found), "plan", ())) if found else ()
    return found


def _to_labels(variants: Sequence[Variant]) -> list[str]:
    return [variant.label for variant in variants]


Variants = Annotated[
    tuple[Variant, ...], BeforeValidator(_from_labels), PlainSerializer(_to_labels)
]


class Plan(BaseModel):
    """A comparison, as `plan.json` in its folder holds it.

    Attributes:
        folder: the comparison's folder; not in the file.
        version: of the file.
        config: run configuration that all runs share.
        nodes: number of virtual nodes; None for one per data file, or if it is the axis.
        strategies, editors: the variants.
        seeds: the seeds.
        axis: what a sweep varies; None for a comparison.
        baselines: variants of `experiments.baselines`.
        star: whether only the first strategy meets every editor, and only the first editor every
            strategy, instead of each the other.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path = Field(exclude=True)
    version: Literal[1] = 1
    config: Annotated[dict[str, ConfigValue], BeforeValidator(modernised)]
    nodes: int | None
    strategies: Variants
    editors: Variants
    seeds: tuple[int, ...]
    axis: Axis | None = None
    baselines: Variants = ()
    star: bool = False

    @property
    def runs(self) -> list[PlannedRun]:
        """All runs, seed by seed, so that an unfinished comparison is balanced.

        Raises:
            FedEditError: two of them would share a folder.
        """
        values: Sequence[ConfigValue | None] = self.axis.values if self.axis else (None,)
        runs: list[PlannedRun] = []
        for seed in self.seeds:
            parts = itertools.product(self.editors, values, self.strategies)
            runs += [
                self._run(strategy, editor, seed, value)
                for editor, value, strategy in parts
                if not self.star or editor == self.editors[0] or strategy == self.strategies[0]
            ]
            pairs = itertools.product(values, self.baselines)
            runs += [self._run(baseline, None, seed, value) for value, baseline in pairs]
        names = [run.name for run in runs]
        for run in runs:
            if names.count(run.name) > 1:
                raise FedEditError(
                    f"comparison: two runs would have the folder {run.name}; give variants and "
                    "values that differ in letters or digits"
                )
        return runs

    def _run(
        self, strategy: Variant, editor: Variant | None, seed: int, value: ConfigValue | None
    ) -> PlannedRun:
        label = editor.label if editor else ""
        parts = [strategy.label, *([label] if editor else ["baseline"])]
        nodes, on_axis = self.nodes, {}
        if self.axis and value is not None:
            parts.append(f"{self.axis.key}={value}")
            if self.axis.key == NODES:
                nodes = int(value)
            else:
                on_axis = {self.axis.key: value}
        name = "_".join(map(_slug, [*parts, f"seed={seed}"]))
        values = {
            **self.config,
            **(editor.changes if editor else {}),
            **strategy.changes,
            **on_axis,
            "strategy": strategy.name,
            **({"editor": editor.name} if editor else {}),
            "seed": seed,
            "output-dir": str(self.folder / name),
        }
        return PlannedRun(name, strategy.label, label, seed, value, nodes, values)


def make_plan(
    folder: Path,
    values: Mapping[str, ConfigValue],
    nodes: int | None,
    strategies: str,
    editors: str,
    seeds: str,
    axis: Axis | None = None,
    baselines: str = "",
    star: bool = False,
) -> Plan:
    """Make a plan from the options of the command line.

    `edit-batch` is 1 unless it is given: the values v* then do not depend on which requests share
    a batch, so all runs can use them.

    Args:
        folder: the comparison's folder.
        values: run-config values that all runs share.
        nodes: number of virtual nodes.
        strategies, editors: lists of variants, see `parse_variants`.
        seeds: comma-separated integers.
        axis: what a sweep varies.
        baselines: list of variants of `experiments.baselines`; empty: none.
        star: see `Plan`.

    Raises:
        FedEditError: an option or a run-config value is invalid.
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
        folder=folder,
        config={key: value for key, value in complete.items() if key not in _PER_RUN},
        nodes=nodes,
        strategies=tuple(parse_variants(strategies, "--strategies", taken)),
        editors=tuple(parse_variants(editors, "--editors", taken)),
        seeds=_seeds(seeds),
        axis=axis,
        baselines=_baselines(baselines, taken) if baselines else (),
        star=star,
    )
    if axis and axis.key == NODES and nodes is not None:
        raise FedEditError(f"--nodes {nodes} cannot be given together with --axis nodes=...")
    for run in plan.runs:
        try:
            RunConfig.parse(run.values)
        except FedEditError as error:
            raise FedEditError(f"{run.title}: {error}") from None
    return plan


def _baselines(text: str, taken: Collection[str]) -> tuple[Variant, ...]:
    found = tuple(parse_variants(text, "--baselines", taken))
    for variant in found:
        if variant.name not in BASELINES:
            raise FedEditError(
                f"--baselines: {variant.name!r} must be one of {', '.join(BASELINES)}"
            )
    return found


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
    """Join a plan with the one that its folder already holds.

    Strategies, editors, seeds and values of the axis may be added to a comparison.

    Args:
        plan: what is wanted now.

    Returns:
        The plan of all that the folder holds and all that is wanted.

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
            f"--output-dir: {folder} is not empty and holds no comparison; name another folder"
        )
    return plan


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a comparison, so that no other process does its runs.

    Raises:
        FedEditError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise FedEditError(
            f"--output-dir: another process is working on {folder}; wait for it, or stop it"
        ) from None
    except OSError as error:
        raise FedEditError(f"--output-dir: {folder} cannot be written ({error.strerror})") from None
    try:
        yield
    finally:
        lock.release()


def save_plan(plan: Plan) -> None:
    """Write a plan into its folder, for `load_plan`."""
    write_json_atomic(plan.folder / PLAN_FILE, plan.model_dump(mode="json"))


def load_plan(folder: Path) -> Plan:
    """The plan of a comparison's folder.

    Raises:
        FedEditError: the folder holds no plan, or one that this version cannot read.
    """
    file = folder / PLAN_FILE
    try:
        return Plan.model_validate({**json.loads(file.read_bytes()), "folder": folder})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise FedEditError(
            f"{file}: invalid {key}: {shown(first['input'])} found; {first['msg']}"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise FedEditError(
            f"{file}: cannot be read ({error}); name the folder of a comparison"
        ) from None


def _joined(begun: Plan, wanted: Plan) -> Plan:
    before = {**RunConfig().as_dict(), **begun.config}  # the folder may be older than a key
    differences = [
        f"{key} = {value!r} (begun with {before[key]!r})"
        for key, value in sorted(wanted.config.items())
        if key not in _MAY_CHANGE and before[key] != value
    ]
    if begun.star != wanted.star:
        differences.append("strategies and editors that meet each other in another way")
    if begun.nodes != wanted.nodes:
        differences.append(f"--nodes {wanted.nodes} (begun with {begun.nodes})")
    old, new = (plan.axis.key if plan.axis else "none" for plan in (begun, wanted))
    if old != new:
        differences.append(f"--axis {new} (begun with {old})")
    if differences:
        raise FedEditError(
            f"--output-dir: {begun.folder} was begun with other settings: "
            f"{', '.join(differences)}; name another folder"
        )
    axis = wanted.axis
    if axis and begun.axis:
        axis = Axis(axis.key, tuple(dict.fromkeys([*begun.axis.values, *axis.values])))
    return wanted.model_copy(
        update={
            "strategies": _united(begun.strategies, wanted.strategies),
            "editors": _united(begun.editors, wanted.editors),
            "baselines": _united(begun.baselines, wanted.baselines),
            "seeds": tuple(dict.fromkeys([*begun.seeds, *wanted.seeds])),
            "axis": axis,
        }
    )


def _united(begun: Sequence[Variant], wanted: Sequence[Variant]) -> tuple[Variant, ...]:
    return tuple({variant.label: variant for variant in [*begun, *wanted]}.values())


def _slug(text: str) -> str:
    """A text as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.")
