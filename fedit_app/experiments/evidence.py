"""Whether a method is better than another one, or the facts fell that way.

The unit is a fact of the federation, its figures averaged over nodes and seeds. Intervals are
percentiles of the bootstrap over facts; p is that of the paired permutation test: under the null
hypothesis the two methods' figures of a fact may be exchanged. Both are SciPy's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from fedit_app.evaluation.memory import read_scores
from fedit_app.evaluation.metrics import RequestScore
from fedit_app.experiments.plan import Plan, PlannedRun
from fedit_app.protocol.metrics import SCORE_PARTS
from fedit_app.report.figures import words
from fedit_app.support.formats import plural
from fedit_app.support.tables import Cell, Figure, Table

FIGURES = (
    *("score", *SCORE_PARTS, "other_relations", "subject_fidelity", "accuracy"),
    *("portability", "reversal"),
)
"""What is tested; more is better in each of them."""

INTERVALS_IN_SHORT = ("Method", "Score", *(name.capitalize() for name in SCORE_PARTS))
"""Columns of `intervals_table` that fit on the page of a paper."""

_SINGLE = FIGURES[1:]
_RESAMPLES = 9999
_SIGNIFICANT = 0.05

Facts = dict[str, np.ndarray]
"""Hash of a fact -> (len(_SINGLE),) its figures; NaN where there is none."""


@dataclass(frozen=True)
class Interval:
    """A mean over facts and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Finding:
    """One method beside the first one in one figure.

    Attributes:
        method: the other method.
        figure: one of `FIGURES`.
        ours: the first method's.
        theirs: the other one's.
        p: two-sided.
        facts: how many facts both have.
    """

    method: str
    figure: str
    ours: float
    theirs: float
    p: float
    facts: int

    @property
    def difference(self) -> float:
        """Theirs less ours."""
        return self.theirs - self.ours


@dataclass(frozen=True)
class Evidence:
    """What the facts say of the methods of a comparison.

    Attributes:
        ours: the method with which all others are compared.
        intervals: method -> figure -> its interval.
        findings: for each other method and each figure that both have.
    """

    ours: str
    intervals: Mapping[str, Mapping[str, Interval]]
    findings: Sequence[Finding]


def gather(plan: Plan) -> Evidence | None:
    """The evidence of a comparison's complete runs; None if there is none of the first method.

    Only runs without an axis are compared.
    """
    by_method: dict[str, list[PlannedRun]] = {}
    for run in plan.runs if plan.axis is None else ():
        by_method.setdefault(_method(run), []).append(run)
    facts = {method: _mean(map(_facts_of, runs)) for method, runs in by_method.items()}
    known = {method: found for method, found in facts.items() if found}
    ours = next(iter(by_method), "")
    if ours not in known:
        return None
    intervals = {method: _intervals(found) for method, found in known.items()}
    others = [method for method in known if method != ours]
    findings = [f for other in others for f in _findings(known[ours], other, known[other])]
    return Evidence(ours, intervals, findings)


def _method(run: PlannedRun) -> str:
    return run.strategy if run.is_baseline else f"{run.strategy}, {run.editor}"


def _facts_of(run: PlannedRun) -> Facts:
    """The figures of a run's facts, averaged over the nodes."""
    return _mean(map(_read, sorted((run.folder / "facts").glob("*.json"))))


def _read(file: Path) -> Facts:
    return {fact: _figures(score) for fact, score in read_scores(file).items()}


def _figures(score: RequestScore) -> np.ndarray:
    return np.array([getattr(score, name) for name in _SINGLE], dtype=np.float64)


def _mean(parts: Iterable[Facts]) -> Facts:
    """Each fact's figures averaged over the parts that have it."""
    found: dict[str, list[np.ndarray]] = {}
    for part in parts:
        for fact, figures in part.items():
            found.setdefault(fact, []).append(figures)
    return {fact: np.mean(rows, axis=0) for fact, rows in found.items()}


def value_over(table: np.ndarray, figure: str, facts: np.ndarray, axis: int = -1) -> np.ndarray:
    """A figure of some facts.

    Args:
        table: (n, len(_SINGLE)) figures of n facts.
        figure: one of `FIGURES`; the score is the harmonic mean of its parts' means.
        facts: numbers of facts along `axis`.
        axis: the axis that is averaged.
    """
    names = SCORE_PARTS if figure == "score" else (figure,)
    means = [np.nanmean(table[facts, _SINGLE.index(name)], axis=axis) for name in names]
    with np.errstate(divide="ignore"):
        value: np.ndarray = len(means) / np.sum([1 / mean for mean in means], axis=0)
    return value


def _known(table: np.ndarray, figure: str) -> np.ndarray:
    """(n,) which facts have a figure, or all parts of the score."""
    names = SCORE_PARTS if figure == "score" else (figure,)
    known: np.ndarray = ~np.isnan(table[:, [_SINGLE.index(name) for name in names]]).any(axis=1)
    return known


def _intervals(found: Facts) -> dict[str, Interval]:
    table, intervals = np.stack(list(found.values())), {}
    for figure in FIGURES:
        numbers = np.flatnonzero(_known(table, figure))
        if len(numbers) < 2:
            continue

        def statistic(facts: np.ndarray, axis: int = -1, figure: str = figure) -> np.ndarray:
            return value_over(table, figure, facts.astype(int), axis)

        span = stats.bootstrap(
            (numbers,), statistic, method="percentile", n_resamples=_RESAMPLES, rng=0
        ).confidence_interval
        mean = float(statistic(numbers))
        intervals[figure] = Interval(mean, float(span.low), float(span.high))
    return intervals


def _findings(ours: Facts, method: str, theirs: Facts) -> list[Finding]:
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return []
    table = np.stack([ours[fact] for fact in common] + [theirs[fact] for fact in common])
    found = []
    for figure in FIGURES:
        known = _known(table, figure)
        numbers = np.flatnonzero(known[: len(common)] & known[len(common) :])
        if not len(numbers):
            continue

        def difference(
            one: np.ndarray, other: np.ndarray, axis: int = -1, figure: str = figure
        ) -> np.ndarray:
            mine = value_over(table, figure, one.astype(int), axis)
            theirs: np.ndarray = value_over(table, figure, other.astype(int), axis) - mine
            return theirs

        sides = (numbers, numbers + len(common))
        mine, other = (float(value_over(table, figure, side)) for side in sides)
        p = 1.0
        if len(numbers) > 1:
            tested = stats.permutation_test(
                sides,
                difference,
                permutation_type="samples",
                vectorized=True,
                n_resamples=_RESAMPLES,
                rng=0,
            )
            p = float(tested.pvalue)
        found.append(Finding(method, figure, mine, other, p, len(numbers)))
    return found


def better_text(evidence: Evidence) -> str:
    """Where other methods are ahead of the first one, by figure; then a summary of the rest."""
    ahead = [finding for finding in evidence.findings if finding.difference > 0]
    behind = [finding for finding in evidence.findings if finding.difference < 0]
    lines = [f"Ahead of {evidence.ours}, by figure (difference, p of a paired permutation test):"]
    compared = {finding.figure for finding in evidence.findings}
    for figure in (name for name in FIGURES if name in compared):
        those = sorted((f for f in ahead if f.figure == figure), key=lambda f: -f.difference)
        names = [f"{f.method} +{f.difference:.3f} (p {f.p:.3f})" for f in those]
        lines.append(f"- {words(figure)}: {'; '.join(names) or 'none'}")
    clear = [sum(f.p < _SIGNIFICANT for f in those) for those in (ahead, behind)]
    lines.append(
        f"Of {plural(len(evidence.findings), 'comparison')} others are ahead in {len(ahead)}, "
        f"{clear[0]} of them with p < {_SIGNIFICANT}, and behind in {len(behind)}, {clear[1]} of "
        "them so. p is not corrected for their number."
    )
    return "\n".join(lines)


def intervals_table(evidence: Evidence) -> Table:
    """Method by figure: the mean over facts and its 95 % interval."""
    intervals = evidence.intervals
    shown = [name for name in FIGURES if any(name in found for found in intervals.values())]
    columns = ("Method", *(words(name).capitalize() for name in shown))
    rows: list[list[Cell]] = []
    for method, found in intervals.items():
        cells: list[Cell] = [method]
        for figure in shown:
            span = found.get(figure)
            text = f"{span.mean:.3f} [{span.low:.3f}, {span.high:.3f}]" if span else Figure(None)
            cells.append(text)
        rows.append(cells)
    return Table(columns, rows)


def findings_csv(evidence: Evidence) -> str:
    """All comparisons as CSV, a line each."""
    lines = ["method,figure,ours,theirs,difference,p,facts"]
    lines += [
        f'"{f.method}",{f.figure},{f.ours},{f.theirs},{f.difference},{f.p},{f.facts}'
        for f in evidence.findings
    ]
    return "\n".join(lines) + "\n"
