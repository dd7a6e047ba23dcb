"""Plots of a run as inline SVG, see `drawing`. The same results give the same bytes."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fedit_app.report.drawing import (
    BEFORE,
    FEDERATION,
    GRID,
    HEAT,
    MUTED,
    OWN,
    WIDTH,
    drawing,
    grid,
    line,
    new_figure,
    svg,
)
from fedit_app.report.figures import Metrics, mean_metrics, value_of
from fedit_app.support.formats import share, shorten

_SCOPES = (("own", "Own facts", OWN, "o"), ("federation", "Federation's facts", FEDERATION, "s"))
_LABEL_WIDTH = 16


def score_plot(results: dict[str, Any]) -> str:
    """The score slot by slot: mean lines for own and federation facts, a thin line a node.

    Slot 0 is the unedited model. The means weigh nodes by their numbers of requests; slots that
    were not evaluated have no point.

    Returns:
        An `<svg>` element, or an empty string when no slot was evaluated.
    """
    start = {name: node["before"] for name, node in results["nodes"].items()}
    points = [(0, start)] + [(slot["slot"], slot["nodes"]) for slot in results["slots"]]
    if all(
        _score(node, scope) is None
        for _, nodes in points[1:]
        for node in nodes.values()
        for scope, *_ in _SCOPES
    ):
        return ""
    with drawing("score"):
        figure, axes = new_figure(4.1)
        for scope, label, colour, marker in _SCOPES:
            for name in sorted({name for _, nodes in points for name in nodes}):
                scores = [(t, _score(nodes.get(name), scope)) for t, nodes in points]
                line(axes, scores, color=colour, linewidth=0.9, alpha=0.45)
            mean = [(t, _mean_score(results, t, nodes, scope)) for t, nodes in points]
            last = [score for _, score in mean if score is not None][-1:]
            if last:
                text = f"{label}, mean ({share(last[0])} at the end)"
                line(axes, mean, color=colour, linewidth=2.6, zorder=3, marker=marker, label=text)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(-0.15, points[-1][0] + 0.15)
        axes.set_ylabel("Score")
        axes.set_xlabel("Slot (0 = before any edit)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        grid(axes, "y")
        figure.legend(loc="outside upper left", alignment="left")
        return svg(figure, "score", "Score per slot, mean and single nodes")


def exchange_plot(results: dict[str, Any]) -> str:
    """Who accepted how many MKVs from whom, summed over the slots: receiver by origin.

    Returns:
        An `<svg>` element, or an empty string when no MKV changed hands.
    """
    counts: dict[tuple[str, str], int] = {}
    for slot in results["slots"]:
        for receiver, node in slot["nodes"].items():
            for origin, count in node["received_from"].items():
                counts[receiver, origin] = counts.get((receiver, origin), 0) + count
    most = max(counts.values(), default=0)
    if most == 0:
        return ""
    names = sorted({*results["nodes"], *(name for pair in counts for name in pair)})
    side = 0.5 * len(names)
    with drawing("exchange"):
        figure, axes = new_figure(max(3.0, side + 1.7), width=max(WIDTH, side + 2.2))
        for row, receiver in enumerate(names):
            for column, origin in enumerate(names):
                count = counts.get((receiver, origin), 0)
                if receiver == origin and count == 0:
                    axes.text(column, row, "·", ha="center", va="center", color=MUTED)
                    continue
                corner = (column - 0.46, row - 0.46)
                axes.add_patch(Rectangle(corner, 0.92, 0.92, facecolor="none", edgecolor=GRID))
                if count:
                    shade = 0.15 + 0.85 * count / most
                    tile = Rectangle(corner, 0.92, 0.92, facecolor=HEAT, alpha=shade)
                    axes.add_patch(tile)
                axes.text(column, row, str(count), ha="center", va="center")
        labels = [shorten(name, _LABEL_WIDTH) for name in names]
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


def change_plot(results: dict[str, Any]) -> str:
    """The score of every node before and after the run, for own and for federation facts.

    Returns:
        An `<svg>` element, or an empty string when no node was evaluated after the run.
    """
    nodes = dict(sorted(results["nodes"].items()))
    scopes = [
        scope
        for scope in _SCOPES
        if any(_score(node, scope[0]) is not None for node in nodes.values())
    ]
    if not scopes:
        return ""
    with drawing("change"):
        figure = Figure(figsize=(WIDTH, 1.5 + 0.52 * len(nodes)), layout="constrained")
        panels = figure.subplots(1, len(scopes), sharey=True, squeeze=False)[0]
        for axes, (scope, label, colour, _) in zip(panels, scopes, strict=True):
            for row, node in enumerate(nodes.values()):
                _bar(axes, row - 0.19, _score(node["before"], scope), BEFORE)
                _bar(axes, row + 0.19, _score(node, scope), colour)
            axes.set_title(label, loc="left", fontsize=12, color=colour, fontweight="bold")
            axes.set_xlim(0, 1.18)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_xlabel("Score")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            grid(axes, "x")
        panels[0].set_yticks(range(len(nodes)), [shorten(name, _LABEL_WIDTH) for name in nodes])
        panels[0].set_ylim(len(nodes) - 0.5, -0.5)
        return svg(figure, "change", "Score of every node before and after the run")


def _score(node: dict[str, Any] | None, scope: str) -> float | None:
    return None if node is None else value_of(node[scope], "score")


def _mean_score(
    results: dict[str, Any], slot: int, nodes: dict[str, Any], scope: str
) -> float | None:
    records: list[Metrics | None] = [node[scope] for node in nodes.values()]
    mean = results["summary"]["before"][scope] if slot == 0 else mean_metrics(records)
    return value_of(mean, "score")


def _bar(axes: Axes, position: float, score: float | None, colour: str) -> None:
    if score is not None:
        axes.barh(position, score, height=0.34, color=colour)
    axes.text((score or 0) + 0.02, position, share(score), va="center", fontsize=10.5)
