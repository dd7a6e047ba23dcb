"""Plots of comparisons as inline SVG, see `drawing`.

The same results give the same bytes. A plot that has nothing to show is an empty string.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from matplotlib.ticker import MaxNLocator

from fedit_app.report.comparison import UNEDITED, ComparedRun, Comparison, Spread, Value
from fedit_app.report.drawing import (
    BEFORE,
    MUTED,
    SERIES,
    WIDTH,
    drawing,
    line,
    name_rows,
    new_figure,
    score_lines,
    svg,
)
from fedit_app.report.figures import value_of
from fedit_app.support.formats import share, shorten

_METHOD_WIDTH = 34
_MARKERS = "osD^vPX"
_DASHES = ("-", "--", ":", "-.")

Points = Sequence[tuple[float, float | None]]


def method_plot(comparison: Comparison) -> str:
    """The federation score of every method, mean and spread; on an axis, at its last value."""
    bars = [
        (row, found)
        for row in comparison.rows
        if row.value == comparison.last and (found := row.figure("score"))
    ]
    if not bars:
        return ""
    with drawing("method"):
        figure, axes = new_figure(0.9 + 0.42 * len(bars), width=1.25 * WIDTH)
        for place, (row, found) in enumerate(bars):
            colour = BEFORE if row.strategy == UNEDITED else SERIES[0]
            mean, deviation = found.mean or 0.0, found.sd
            axes.barh(place, mean, height=0.62, color=colour)
            if deviation is not None:
                axes.errorbar(mean, place, xerr=deviation, color=MUTED, capsize=3, linewidth=1.2)
            axes.text(mean + (deviation or 0) + 0.015, place, _said(found), va="center", size=10.5)
        axes.set_xlim(0, 1.25)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.set_xlabel("Score on the federation's facts")
        name_rows([axes], [shorten(row.method, _METHOD_WIDTH) for row, _ in bars])
        return svg(figure, "method", "Score on the federation's facts by method")


def slots_plot(comparison: Comparison) -> str:
    """The federation score slot by slot, a line a method; on an axis, at its last value.

    It is empty, too, when fewer than two slots were evaluated.
    """
    runs = [run for run in comparison.runs if run.slots and run.value == comparison.last]
    lines = {name: _over_slots(group) for name, group in _by_method(runs).items()}
    if len({slot for points in lines.values() for slot, _ in points}) < 2:
        return ""
    with drawing("slots"):
        figure, axes = new_figure(3.2 + 0.27 * len(lines), width=1.25 * WIDTH)
        for name, points in lines.items():
            line(axes, points, label=shorten(name, _METHOD_WIDTH), **_style(name, lines))
        axes.set_xlabel("Slot")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        label = "Score on the federation's facts over the slots"
        return score_lines(figure, axes, "slots", label)


def axis_plot(comparison: Comparison) -> str:
    """The federation score over the axis of a sweep, a line a method; empty without an axis."""
    axis = comparison.axis
    methods = _by_method([row for row in comparison.rows if row.figure("score")])
    if not axis or not methods:
        return ""
    place_of = _places(axis.values)
    with drawing("axis"):
        figure, axes = new_figure(3.2 + 0.27 * len(methods), width=1.25 * WIDTH)
        for name, rows in methods.items():
            found = [
                (place_of[row.value], row.figure("score")) for row in rows if row.value in place_of
            ]
            points = [(place, spread) for place, spread in found if spread]
            axes.errorbar(
                [place for place, _ in points],
                np.array([spread.mean for _, spread in points], float),
                yerr=[spread.sd or 0 for _, spread in points],
                capsize=3,
                label=shorten(name, _METHOD_WIDTH),
                **_style(name, methods),
            )
        axes.set_xticks(list(place_of.values()), [str(value) for value in axis.values])
        axes.set_xlabel(axis.key)
        label = f"Score on the federation's facts over {axis.key}"
        return score_lines(figure, axes, "axis", label)


def _over_slots(runs: Sequence[ComparedRun]) -> Points:
    """Mean score of each slot that was evaluated in any of the runs."""
    by_slot: dict[int, list[float | None]] = {}
    for run in runs:
        for slot in run.slots or ():
            by_slot.setdefault(slot.slot, []).append(value_of(slot.federation, "score"))
    means = [(slot, Spread.of(scores).mean) for slot, scores in sorted(by_slot.items())]
    return [(slot, mean) for slot, mean in means if mean is not None]


class _OfMethod(Protocol):
    @property
    def method(self) -> str: ...


T = TypeVar("T", bound=_OfMethod)


def _by_method(records: Iterable[T]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = {}
    for record in records:
        groups.setdefault(record.method, []).append(record)
    return groups


def _places(values: Sequence[Value]) -> dict[Value | None, float]:
    """Where the values of an axis stand: numbers at their places, others side by side."""
    if any(isinstance(value, str | bool) for value in values):
        return {value: place for place, value in enumerate(values)}
    return {value: float(value) for value in values}


def _said(found: Spread) -> str:
    mean = share(found.mean)
    return mean if found.sd is None else f"{mean} ± {found.sd:.3f}"


def _style(method: str, methods: Mapping[str, object]) -> dict[str, Any]:
    """A colour a strategy, a way of drawing lines an editor."""
    if method == UNEDITED:
        return {"color": BEFORE, "linewidth": 2}
    parts = [name.rpartition(", ") for name in methods if name != UNEDITED]
    strategy, _, editor = method.rpartition(", ")
    number = list(dict.fromkeys(first for first, *_ in parts)).index(strategy)
    dashes = list(dict.fromkeys(last for *_, last in parts)).index(editor)
    return {
        "color": SERIES[number % len(SERIES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _DASHES[dashes % len(_DASHES)],
        "linewidth": 2.2,
    }
