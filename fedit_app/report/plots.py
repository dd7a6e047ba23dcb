"""Plots of runs as inline SVG, see `drawing`.

The same results give the same bytes. A plot that has nothing to show is an empty string.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fedit_app.protocol.metrics import mean_metrics
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
    line,
    name_rows,
    new_figure,
    score_lines,
    svg,
)
from fedit_app.report.figures import value_of
from fedit_app.report.results import STAGES, Before, Measured, Results, stage_name
from fedit_app.support.formats import byte_size, share, shorten

_SCOPES = (("own", "Own facts", OWN, "o"), ("federation", "Federation's facts", FEDERATION, "s"))
_NAME_WIDTH = 16

_BESIDE = ("reused", "composed", "conflicts")
"""What a node did with others' MKVs beside accepting them."""

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
        return score_lines(figure, axes, "score", "Score per slot, mean and single nodes", 1)


def facts_plot(results: Results) -> str:
    """The score over the facts in a node's model: its own so far, and those it has accepted.

    Empty where nothing was accepted: facts then grow with the slots, which `score_plot` shows.
    """
    nodes = [node for slot in results.slots for node in slot.nodes.values()]
    if not results.totals.accepted or not _measured(nodes):
        return ""
    names = {*results.nodes, *(name for slot in results.slots for name in slot.nodes)}
    facts = {name: _facts_so_far(results, name) for name in names}
    with drawing("facts"):
        figure, axes = new_figure(4.1)
        for scope, label, colour, marker in _SCOPES:
            look = {"color": colour, "linewidth": 1.4, "marker": marker, "markersize": 4}
            for name, scores in _node_scores(results, scope).items():
                reached = facts[name]
                at = [(reached[slot], score) for slot, score in scores if slot in reached]
                known = [(count, score) for count, score in at if score is not None]
                # A name that begins with an underscore is in no legend.
                line(axes, known, label=label if known else "_", **look)
                label = label if not known else "_"
        axes.set_xlabel("Facts in the model of a node: own and received")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        return score_lines(figure, axes, "facts", "Score over the facts in a node's model", 2)


def _facts_so_far(results: Results, name: str) -> dict[float, float]:
    """Slot -> facts of the node up to that slot, with those that it has from others, if known."""
    own, found = 0, {0.0: 0.0}
    for slot in results.slots:
        if name in slot.nodes:
            node = slot.nodes[name]
            own += node.requests
            found[slot.slot] = own + (node.received.all_requests if node.received else 0)
    return found


def cost_plot(results: Results) -> str:
    """Seconds of every slot by stage, with the bytes that were sent in it."""
    slots = [slot for slot in results.slots if slot.seconds.total]
    if not slots:
        return ""
    stages = [s for s in STAGES if any(getattr(slot.seconds, s) for slot in slots)]
    with drawing("cost"):
        figure, axes = new_figure(1.5 + 0.42 * len(slots))
        starts = np.zeros(len(slots))
        for stage, colour in zip(stages, SERIES, strict=False):
            took = np.array([getattr(slot.seconds, stage) or 0.0 for slot in slots])
            axes.barh(
                range(len(slots)),
                took,
                left=starts,
                height=0.62,
                color=colour,
                label=stage_name(stage),
            )
            starts += took
        for row, slot in enumerate(slots):
            sent = byte_size(slot.bytes_up + slot.bytes_down)
            axes.text(starts[row] + 0.01 * starts.max(), row, sent, va="center", fontsize=10.5)
        axes.set_xlim(0, 1.3 * starts.max())
        axes.set_xlabel("Seconds, all nodes together; behind them the bytes sent")
        name_rows([axes], [f"Slot {slot.slot}" for slot in slots])
        figure.legend(loc="outside upper left", alignment="left", ncols=4)
        return svg(figure, "cost", "Seconds of every slot by stage, and bytes")


def exchange_plot(results: Results) -> str:
    """Who accepted how many MKVs from whom, summed over the slots: receiver by origin.

    Beside them stand the requests that another node's MKV fulfils, the keys whose value the node
    learned together with others, and the conflicts that were left.
    """
    counts: Counter[tuple[str, str]] = Counter()
    beside: Counter[tuple[str, str]] = Counter()
    for slot in results.slots:
        for receiver, node in slot.nodes.items():
            for origin, count in node.received_from.items():
                counts[receiver, origin] += count
            beside.update({(receiver, kind): getattr(node, kind) for kind in _BESIDE})
    most = max(counts.values(), default=0)
    if most == 0:
        return ""
    names = sorted({*results.nodes, *(name for pair in counts for name in pair)})
    kinds = [kind for kind in _BESIDE if any(beside[name, kind] for name in names)]
    places = [len(names) + 0.5 + number for number in range(len(kinds))]
    side, wide = 0.5 * len(names), 0.5 * (len(names) + len(kinds))
    with drawing("exchange"):
        figure, axes = new_figure(max(3.0, side + 1.7), width=max(WIDTH, wide + 2.4))
        for row, receiver in enumerate(names):
            for column, origin in enumerate(names):
                count = counts[receiver, origin]
                if receiver == origin and count == 0:
                    axes.text(column, row, "·", ha="center", va="center", color=MUTED)
                else:
                    _tile(axes, column, row, count, most)
            for place, kind in zip(places, kinds, strict=True):
                axes.text(place, row, str(beside[receiver, kind]), ha="center", va="center")
        labels = [shorten(name, _NAME_WIDTH) for name in names]
        axes.set_xticks(
            [*range(len(names)), *places],
            [*labels, *kinds],
            rotation=35,
            ha="right",
            rotation_mode="anchor",
        )
        axes.set_yticks(range(len(names)), labels)
        axes.set_xlim(-0.5, (places[-1] if places else len(names) - 1) + 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("Origin of the MKVs")
        axes.set_ylabel("Receiver")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_aspect("equal")
        label = "MKVs accepted, by receiving node and node of origin"
        return svg(figure, "exchange", ", ".join([label, *kinds]))


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
        name_rows(panels, [shorten(name, _NAME_WIDTH) for name in nodes])
        return svg(figure, "change", "Score of every node before and after the run")


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
