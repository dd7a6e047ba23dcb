"""Plots of runs and comparisons as inline SVG, see `drawing`.

The same results give the same bytes. A plot that has nothing to show is an empty string.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fedit_app.protocol.metrics import mean_metrics
from fedit_app.report.comparison import (
    UNEDITED,
    ComparedRun,
    Comparison,
    Spread,
    Value,
)
from fedit_app.report.drawing import (
    BEFORE,
    FEDERATION,
    GRID,
    HEAT,
    MUTED,
    OWN,
    SERIES,
    WIDTH,
    drawing,
    grid,
    line,
    new_figure,
    svg,
)
from fedit_app.report.figures import value_of
from fedit_app.report.results import Before, Measured, Results
from fedit_app.support.formats import share, shorten

_SCOPES = (("own", "Own facts", OWN, "o"), ("federation", "Federation's facts", FEDERATION, "s"))
_NAME_WIDTH, _METHOD_WIDTH = 16, 34
_MARKERS = "osD^vPX"
_DASHES = ("-", "--", ":", "-.")
_WIDE_LABEL = 24

Points = Sequence[tuple[float, float | None]]


def score_plot(results: Results) -> str:
    """The score slot by slot: mean lines for own and federation facts, a thin line a node.

    Slot 0 is the unedited model. The means weigh nodes by their numbers of requests; slots that
    were not evaluated have no point.
    """
    if not any(_measured(slot.nodes.values()) for slot in results.slots):
        return ""
    with drawing("score"):
        figure, axes = new_figure(4.1)
        for scope, label, colour, marker in _SCOPES:
            for points in _node_scores(results, scope).values():
                line(axes, points, color=colour, linewidth=0.9, alpha=0.45)
            mean = _mean_scores(results, scope)
            known = [score for _, score in mean if score is not None]
            if known:
                text = f"{label}, mean ({share(known[-1])} at the end)"
                line(axes, mean, color=colour, linewidth=2.6, zorder=3, marker=marker, label=text)
        axes.set_xlim(-0.15, max(slot.slot for slot in results.slots) + 0.15)
        axes.set_xlabel("Slot (0 = before any edit)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        return _score_lines(figure, axes, "score", "Score per slot, mean and single nodes", 1)


def exchange_plot(results: Results) -> str:
    """Who accepted how many MKVs from whom, summed over the slots: receiver by origin."""
    counts: Counter[tuple[str, str]] = Counter()
    for slot in results.slots:
        for receiver, node in slot.nodes.items():
            for origin, count in node.received_from.items():
                counts[receiver, origin] += count
    most = max(counts.values(), default=0)
    if most == 0:
        return ""
    names = sorted({*results.nodes, *(name for pair in counts for name in pair)})
    side = 0.5 * len(names)
    with drawing("exchange"):
        figure, axes = new_figure(max(3.0, side + 1.7), width=max(WIDTH, side + 2.2))
        for row, receiver in enumerate(names):
            for column, origin in enumerate(names):
                count = counts[receiver, origin]
                if receiver == origin and count == 0:
                    axes.text(column, row, "·", ha="center", va="center", color=MUTED)
                else:
                    _tile(axes, column, row, count, most)
        labels = [shorten(name, _NAME_WIDTH) for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), labels)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("Origin of the MKVs")
        axes.set_ylabel("Receiver")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_aspect("equal")
        return svg(figure, "exchange", "MKVs accepted, by receiving node and node of origin")


def change_plot(results: Results) -> str:
    """The score of every node before and after the run, for own and for federation facts."""
    nodes = dict(sorted(results.nodes.items()))
    scopes = [scope for scope in _SCOPES if scope[0] in _measured(nodes.values())]
    if not scopes:
        return ""
    with drawing("change"):
        figure = Figure(figsize=(WIDTH, 1.5 + 0.52 * len(nodes)), layout="constrained")
        panels = figure.subplots(1, len(scopes), sharey=True, squeeze=False)[0]
        for axes, (scope, label, colour, _) in zip(panels, scopes, strict=True):
            for row, node in enumerate(nodes.values()):
                _bar(axes, row - 0.19, _score(node.before, scope), BEFORE)
                _bar(axes, row + 0.19, _score(node, scope), colour)
            axes.set_title(label, loc="left", fontsize=12, color=colour, fontweight="bold")
            axes.set_xlim(0, 1.18)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_xlabel("Score")
        _rows(panels, [shorten(name, _NAME_WIDTH) for name in nodes])
        return svg(figure, "change", "Score of every node before and after the run")


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
        _rows([axes], [shorten(row.method, _METHOD_WIDTH) for row, _ in bars])
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
        return _score_lines(figure, axes, "slots", label)


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
        return _score_lines(figure, axes, "axis", label)


def _score_lines(figure: Figure, axes: Axes, name: str, label: str, columns: int = 2) -> str:
    """Finish a plot of scores as lines: its scale, its legend above it, and the SVG."""
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("Score")
    grid(axes, "y")
    _, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels), default=0) > _WIDE_LABEL else columns
    figure.legend(loc="outside upper left", alignment="left", ncols=columns)
    return svg(figure, name, label)


def _rows(panels: Sequence[Axes], names: Sequence[str]) -> None:
    """Finish panels of horizontal bars with a name a row, from the top."""
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        grid(axes, "x")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)


def _tile(axes: Axes, column: int, row: int, count: int, most: int) -> None:
    corner = (column - 0.46, row - 0.46)
    axes.add_patch(Rectangle(corner, 0.92, 0.92, facecolor="none", edgecolor=GRID))
    if count:
        shade = 0.15 + 0.85 * count / most
        axes.add_patch(Rectangle(corner, 0.92, 0.92, facecolor=HEAT, alpha=shade))
    axes.text(column, row, str(count), ha="center", va="center")


def _bar(axes: Axes, position: float, score: float | None, colour: str) -> None:
    if score is not None:
        axes.barh(position, score, height=0.34, color=colour)
    axes.text((score or 0) + 0.02, position, share(score), va="center", fontsize=10.5)


def _score(node: Measured | Before | None, scope: str) -> float | None:
    return None if node is None else value_of(getattr(node, scope), "score")


def _measured(nodes: Iterable[Measured]) -> set[str]:
    """The scopes on which some of the nodes have a score."""
    nodes = list(nodes)
    return {scope for scope, *_ in _SCOPES if any(_score(n, scope) is not None for n in nodes)}


def _node_scores(results: Results, scope: str) -> dict[str, Points]:
    """Node -> its score after every slot, slot 0 included."""
    names = sorted({*results.nodes, *(name for slot in results.slots for name in slot.nodes)})
    before = {name: node.before for name, node in results.nodes.items()}
    return {
        name: [
            (0, _score(before.get(name), scope)),
            *((slot.slot, _score(slot.nodes.get(name), scope)) for slot in results.slots),
        ]
        for name in names
    }


def _mean_scores(results: Results, scope: str) -> Points:
    means = [
        (slot.slot, mean_metrics(getattr(node, scope) for node in slot.nodes.values()))
        for slot in results.slots
    ]
    start = _score(results.summary.before, scope)
    return [(0, start), *((slot, value_of(mean, "score")) for slot, mean in means)]


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
