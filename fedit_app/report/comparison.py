"""What the runs of a comparison say together: `comparison.json`, see docs/compare.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Final, Literal, Self

from pydantic import Field

from fedit_app.protocol.metrics import Metrics, Neutral
from fedit_app.report.results import Before, Part

SCHEMA: Final = 1
UNEDITED = "unedited"

Value = str | int | float | bool


class Axis(Part):
    """What a sweep varies: a run-config key, or `nodes`, and its values."""

    key: str
    values: list[Value]


class Spread(Part):
    """A figure over several runs.

    Attributes:
        mean: None where no run measured it.
        sd: sample standard deviation; None with fewer than two runs.
        n: how many runs measured it.
    """

    mean: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self:
        """The spread of those values that are known."""
        known = [value for value in values if value is not None]
        return cls(
            mean=statistics.fmean(known) if known else None,
            sd=statistics.stdev(known) if len(known) > 1 else None,
            n=len(known),
        )


class SlotMeans(Part):
    """Means over the nodes after a slot."""

    slot: int
    own: Metrics | None
    federation: Metrics | None


class ComparedRun(Part):
    """One run of a comparison.

    Attributes:
        name: of its folder.
        strategy, editor: labels of the variants.
        seed: the run's seed.
        value: on the axis; None without one.
        status: completed, failed or missing.
        reason: why it failed.
        before: metrics of the unedited model; None unless it is completed, as all below.
        measured: scope -> metrics of the run's summary.
        slots: means after each slot.
        costs: counts of all slots together, bytes, and seconds.
        failed_nodes: how many nodes failed.
        retention: federation score as a share of that of `central`.
        ratio_to_fedavg: federation score as a multiple of that of `fedavg`.
    """

    name: str
    strategy: str
    editor: str
    seed: int
    value: Value | None
    status: Literal["completed", "failed", "missing"]
    reason: str
    before: Before | None = None
    measured: dict[str, Metrics | Neutral | None] = Field(default_factory=dict)
    slots: list[SlotMeans] | None = None
    costs: dict[str, int | float] | None = None
    failed_nodes: int = 0
    retention: float | None = None
    ratio_to_fedavg: float | None = None

    @property
    def method(self) -> str:
        """Strategy and editor."""
        return f"{self.strategy}, {self.editor}"

    @property
    def federation(self) -> Metrics | None:
        """Metrics on the federation's facts."""
        found = self.measured.get("federation")
        return found if isinstance(found, Metrics) else None


class Row(Part):
    """The runs that differ in nothing but their seed, together; or the unedited model.

    Attributes:
        strategy, editor: labels of the variants; no editor for the unedited model.
        value: on the axis; None without one.
        runs: how many there are.
        completed: how many of them are completed.
        failed: names of those that failed.
        failed_nodes: how many nodes failed in the completed runs.
        measured: scope -> figure -> its spread.
        retention, ratio_to_fedavg: see `ComparedRun`.
        costs: name -> spread, see `ComparedRun`.
    """

    strategy: str
    editor: str | None
    value: Value | None
    runs: int
    completed: int
    failed: list[str]
    failed_nodes: int
    measured: dict[str, dict[str, Spread]]
    retention: Spread
    ratio_to_fedavg: Spread
    costs: dict[str, Spread]

    @property
    def method(self) -> str:
        """Strategy and editor."""
        return f"{self.strategy}, {self.editor}" if self.editor else self.strategy

    def figure(self, name: str) -> Spread | None:
        """Mean and spread of a figure; None where it was not measured.

        Args:
            name: `SCOPE.METRIC`, such as `own.score`; without a scope, of the federation's facts.
        """
        scope, _, metric = name.rpartition(".")
        found = self.measured.get(scope or "federation", {}).get(metric)
        return found if found and found.mean is not None else None


class Comparison(Part):
    """A comparison, as `comparison.json` holds it.

    Attributes:
        number: of the schema.
        config: run configuration that the runs have in common.
        nodes: number of virtual nodes; None for one per data file, or if it is the axis.
        strategies, editors: labels of the variants.
        seeds: the seeds.
        axis: what a sweep varies; None for a comparison.
        runs: every run.
        rows: the unedited model and every method.
    """

    number: Literal[1] = Field(SCHEMA, alias="schema")
    config: dict[str, Value | None]
    nodes: int | None
    strategies: list[str]
    editors: list[str]
    seeds: list[int]
    axis: Axis | None
    runs: list[ComparedRun]
    rows: list[Row]

    @property
    def failed(self) -> list[ComparedRun]:
        """The runs that failed."""
        return [run for run in self.runs if run.status == "failed"]

    @property
    def last(self) -> Value | None:
        """The last value of the axis; None without one."""
        return self.axis.values[-1] if self.axis else None
