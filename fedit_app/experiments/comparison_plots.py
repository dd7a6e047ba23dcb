"""Plots of a comparison as inline SVG: by method, over slots, and over the axis of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedit_app.experiments.summary import UNEDITED, Record, figure_of, spread
from fedit_app.report.drawing import (
    BEFORE,
    MUTED,
    SERIES,
    WIDTH,
    drawing,
    grid,
    line,
    new_figure,
    svg,
)
from fedit_app.report.figures import value_of
from fedit_app.support.formats import share, shorten

_LABEL_WIDTH = 34
_MARKERS = "osD^vPX"
_DASHES = ("-", "--", ":", "-.")
_WIDE_LABEL = 24


def method_plot(comparison: Record) -> str:
    """The federation score of every method, mean and spread; on an axis, at its last value.

    Returns:
        An `<svg>` element, or an empty string when nothing was measured.
    """
    rows = [row for row in comparison["rows"] if figure_of(row, "score")]
    if comparison["axis"]:
        last = comparison["axis"]["values"][-1]
        rows = [row for row in rows if row["value"] == last]
    if not rows:
        return ""
    with drawing("method"):
        figure, axes = new_figure(0.9 + 0.42 * len(rows), width=1.25 * WIDTH)
        for place, row in enumerate(rows):
            found = figure_of(row, "score")
            colour = BEFORE if row["strategy"] == UNEDITED else SERIES[0]
            axes.barh(place, found["mean"], height=0.62, color=colour)
            reach = found["mean"]
            if found["sd"] is not None:
                axes.errorbar(
                    found["mean"], place, xerr=found["sd"], color=MUTED, capsize=3, linewidth=1.2
                )
                reach += found["sd"]
            axes.text(reach + 0.015, place, _said(found), va="center", fontsize=10.5)
        axes.set_yticks(range(len(rows)), [shorten(_method(row), _LABEL_WIDTH) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1.25)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.set_xlabel("Score on the federation's facts")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        grid(axes, "x")
        return svg(figure, "method", "Score on the federation's facts by method")


def slots_plot(comparison: Record) -> str:
    """The federation score slot by slot, a line a method; on an axis, at its last value.

    Returns:
        An `<svg>` element, or an empty string when fewer than two slots were evaluated.
    """
    last = comparison["axis"]["values"][-1] if comparison["axis"] else None
    runs = [run for run in comparison["runs"] if run["slots"] and run["value"] == last]
    lines = {name: _over_slots(group) for name, group in _by_method(runs).items()}
    if len({slot for points in lines.values() for slot, _ in points}) < 2:
        return ""
    with drawing("slots"):
        figure, axes = new_figure(3.2 + 0.27 * len(lines), width=1.25 * WIDTH)
        for name, points in lines.items():
            line(axes, points, label=shorten(name, _LABEL_WIDTH), **_style(name, lines))
        axes.set_xlabel("Slot")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        return _finished(figure, axes, "slots", "Score on the federation's facts over the slots")


def axis_plot(comparison: Record) -> str:
    """The federation score over the axis of a sweep, a line a method.

    Returns:
        An `<svg>` element, or an empty string without an axis.
    """
    axis = comparison["axis"]
    methods = _by_method([row for row in comparison["rows"] if figure_of(row, "score")])
    if not axis or not methods:
        return ""
    values = axis["values"]
    numbers = all(isinstance(value, Real) and not isinstance(value, bool) for value in values)
    places = values if numbers else range(len(values))
    place_of = dict(zip(values, places, strict=True))
    with drawing("axis"):
        figure, axes = new_figure(3.2 + 0.27 * len(methods), width=1.25 * WIDTH)
        for name, rows in methods.items():
            points = [(place_of[row["value"]], figure_of(row, "score")) for row in rows]
            axes.errorbar(
                [place for place, _ in points],
                [found["mean"] for _, found in points],
                yerr=[found["sd"] or 0 for _, found in points],
                capsize=3,
                label=shorten(name, _LABEL_WIDTH),
                **_style(name, methods),
            )
        axes.set_xticks(list(places), [str(value) for value in values])
        axes.set_xlabel(axis["key"])
        label = f"Score on the federation's facts over {axis['key']}"
        return _finished(figure, axes, "axis", label)


def _finished(figure: Any, axes: Axes, name: str, label: str) -> str:
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("Score")
    grid(axes, "y")
    _, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > _WIDE_LABEL else 2
    figure.legend(loc="outside upper left", alignment="left", ncols=columns)
    return svg(figure, name, label)


def _over_slots(runs: Sequence[Record]) -> list[tuple[float, float | None]]:
    """Mean score of each slot that was evaluated in any of the runs."""
    by_slot: dict[int, list[float | None]] = {}
    for run in runs:
        for slot in run["slots"]:
            by_slot.setdefault(slot["slot"], []).append(value_of(slot["federation"], "score"))
    means = [(slot, spread(scores)["mean"]) for slot, scores in sorted(by_slot.items())]
    return [(slot, mean) for slot, mean in means if mean is not None]


def _by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_method(record), []).append(record)
    return groups


def _method(record: Record) -> str:
    return f"{record['strategy']}, {record['editor']}" if record["editor"] else record["strategy"]


def _said(found: Record) -> str:
    mean = share(found["mean"])
    return mean if found["sd"] is None else f"{mean} ± {found['sd']:.3f}"


def _style(method: str, methods: Iterable[str]) -> dict[str, Any]:
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
