"""Plots of a run as inline SVG that follows the colours of the page it stands in.

matplotlib draws with stand-in colours, which are then replaced by CSS variables with a fallback
(`var(--plot-own, #0072b2)`), so that one drawing is readable on a light and on a dark page. The
two hues are from the colour-blind-safe palette of Okabe and Ito (2008). Text stays text. The same
results give the same bytes.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from fedit_app.reporting.formats import share, shorten
from fedit_app.reporting.metrics import Metrics, mean_metrics, value_of

# Stand-in colour for the drawing: (CSS variable, colour where the page defines none).
_PALETTE = {
    "#010101": ("--plot-ink", "#1f2328"),
    "#020202": ("--plot-muted", "#59636e"),
    "#030303": ("--plot-grid", "#d8dee4"),
    "#040404": ("--plot-own", "#0072b2"),
    "#050505": ("--plot-federation", "#b34a00"),
    "#060606": ("--plot-heat", "#56b4e9"),
    "#070707": ("--plot-before", "#a9b2bc"),
}
_INK, _MUTED, _GRID, _OWN, _FEDERATION, _HEAT, _BEFORE = _PALETTE
_SCOPES = (("own", "Own facts", _OWN, "o"), ("federation", "Federation's facts", _FEDERATION, "s"))

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
}
_WIDTH = 5.4  # inches of 72 SVG units: about the width of a phone, so that text stays readable
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
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "fedit-score"}):
        figure, axes = _figure(4.1)
        for scope, label, colour, marker in _SCOPES:
            for name in sorted({name for _, nodes in points for name in nodes}):
                line = [(t, _score(nodes.get(name), scope)) for t, nodes in points]
                _line(axes, line, color=colour, linewidth=0.9, alpha=0.45)
            mean = [(t, _mean_score(results, t, nodes, scope)) for t, nodes in points]
            last = [score for _, score in mean if score is not None][-1:]
            if last:
                text = f"{label}, mean ({share(last[0])} at the end)"
                _line(axes, mean, color=colour, linewidth=2.6, zorder=3, marker=marker, label=text)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(-0.15, points[-1][0] + 0.15)
        axes.set_ylabel("Score")
        axes.set_xlabel("Slot (0 = before any edit)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _grid(axes, "y")
        figure.legend(loc="outside upper left", alignment="left")
        return _svg(figure, "score", "Score per slot, mean and single nodes")


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
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "fedit-exchange"}):
        figure, axes = _figure(max(3.0, side + 1.7), width=max(_WIDTH, side + 2.2))
        for row, receiver in enumerate(names):
            for column, origin in enumerate(names):
                count = counts.get((receiver, origin), 0)
                if receiver == origin and count == 0:
                    axes.text(column, row, "·", ha="center", va="center", color=_MUTED)
                    continue
                corner = (column - 0.46, row - 0.46)
                axes.add_patch(Rectangle(corner, 0.92, 0.92, facecolor="none", edgecolor=_GRID))
                if count:
                    shade = 0.15 + 0.85 * count / most
                    tile = Rectangle(corner, 0.92, 0.92, facecolor=_HEAT, alpha=shade)
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
        return _svg(figure, "exchange", "MKVs accepted, by receiving node and node of origin")


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
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "fedit-change"}):
        figure = Figure(figsize=(_WIDTH, 1.5 + 0.52 * len(nodes)), layout="constrained")
        panels = figure.subplots(1, len(scopes), sharey=True, squeeze=False)[0]
        for axes, (scope, label, colour, _) in zip(panels, scopes, strict=True):
            for row, node in enumerate(nodes.values()):
                _bar(axes, row - 0.19, _score(node["before"], scope), _BEFORE)
                _bar(axes, row + 0.19, _score(node, scope), colour)
            axes.set_title(label, loc="left", fontsize=12, color=colour, fontweight="bold")
            axes.set_xlim(0, 1.18)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_xlabel("Score")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            _grid(axes, "x")
        panels[0].set_yticks(range(len(nodes)), [shorten(name, _LABEL_WIDTH) for name in nodes])
        panels[0].set_ylim(len(nodes) - 0.5, -0.5)
        return _svg(figure, "change", "Score of every node before and after the run")


def _score(node: dict[str, Any] | None, scope: str) -> float | None:
    return None if node is None else value_of(node[scope], "score")


def _mean_score(
    results: dict[str, Any], slot: int, nodes: dict[str, Any], scope: str
) -> float | None:
    records: list[Metrics | None] = [node[scope] for node in nodes.values()]
    mean = results["summary"]["before"][scope] if slot == 0 else mean_metrics(records)
    return value_of(mean, "score")


def _figure(height: float, width: float = _WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _line(axes: Axes, points: list[tuple[int, float | None]], **style: Any) -> None:
    measured = [(slot, score) for slot, score in points if score is not None]
    axes.plot([slot for slot, _ in measured], [score for _, score in measured], **style)


def _bar(axes: Axes, position: float, score: float | None, colour: str) -> None:
    if score is not None:
        axes.barh(position, score, height=0.34, color=colour)
    axes.text((score or 0) + 0.02, position, share(score), va="center", fontsize=10.5)


def _grid(axes: Axes, axis: str) -> None:
    axes.grid(axis=axis, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _svg(figure: Figure, prefix: str, label: str) -> str:
    """Save a figure as an `<svg>` element for use inside HTML.

    Width and height give way to the viewBox, ids get a prefix (several drawings share a page),
    stand-in colours become CSS variables and the page's font replaces matplotlib's.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Text stays text, so it does not matter that matplotlib's own font lacks a character.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # The style sheet inside would reach the whole page; the root carries it instead.
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            name.rpartition("}")[2]: _attribute(name.rpartition("}")[2], value, prefix)
            for name, value in element.attrib.items()
        }
    width = float(root.attrib["viewBox"].split()[2])
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {
        "xmlns": "http://www.w3.org/2000/svg",
        "role": "img",
        "aria-label": label,
        "style": "stroke-linejoin: round; width: 100%; "
        f"min-width: {max(290, width - 110):.0f}px; max-width: {1.35 * width:.0f}px",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return value.replace("#", f"#{prefix}-", 1)
    value = value.replace("url(#", f"url(#{prefix}-")
    value = re.sub(r"font-family: [^;]*", "font-family: inherit", value)
    for stand_in, (variable, fallback) in _PALETTE.items():
        value = value.replace(stand_in, f"var({variable}, {fallback})")
    return value
