"""Inline SVG that follows the colours of the page it stands in.

matplotlib draws with stand-in colours, which are then replaced by CSS variables with a fallback
(`var(--plot-own, #0072b2)`), so that one drawing is readable on a light and on a dark page. The
hues are from the colour-blind-safe palette of Okabe and Ito (2008). Text stays text.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand-in colour for the drawing: (CSS variable, colour where the page defines none).
_PALETTE = {
    "#010101": ("--plot-ink", "#1f2328"),
    "#020202": ("--plot-muted", "#59636e"),
    "#030303": ("--plot-grid", "#d8dee4"),
    "#040404": ("--plot-own", "#0072b2"),
    "#050505": ("--plot-federation", "#b34a00"),
    "#060606": ("--plot-heat", "#56b4e9"),
    "#070707": ("--plot-before", "#a9b2bc"),
    "#080808": ("--plot-1", "#0072b2"),
    "#090909": ("--plot-2", "#b34a00"),
    "#0a0a0a": ("--plot-3", "#007a5a"),
    "#0b0b0b": ("--plot-4", "#a3527f"),
    "#0c0c0c": ("--plot-5", "#8a6d00"),
    "#0d0d0d": ("--plot-6", "#3a8ebd"),
    "#0e0e0e": ("--plot-7", "#59636e"),
}
INK, MUTED, GRID, OWN, FEDERATION, HEAT, BEFORE, *SERIES = _PALETTE
"""Colours to draw with; `SERIES` are for lines that stand side by side."""
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
}
_WIDE_LABEL = 24
WIDTH = 5.4  # inches of 72 SVG units: about the width of a phone, so that text stays readable


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Draw in the block with this page's fonts and stand-in colours.

    Args:
        name: of the drawing; it makes the ids in its SVG the same every time.
    """
    with matplotlib.rc_context(cast(Any, {**_STYLE, "svg.hashsalt": f"fedit-{name}"})):
        yield


def new_figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure with one panel, sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def line(axes: Axes, points: Sequence[tuple[float, float | None]], **style: Any) -> None:
    """A line through those points that are known."""
    measured = [(slot, score) for slot, score in points if score is not None]
    axes.plot([slot for slot, _ in measured], [score for _, score in measured], **style)


def grid(axes: Axes, axis: Literal["both", "x", "y"]) -> None:
    """Thin lines behind the drawing, along `x`, `y` or `both`."""
    axes.grid(axis=axis, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def score_lines(figure: Figure, axes: Axes, name: str, label: str, columns: int = 2) -> str:
    """Finish a plot of scores as lines: its scale, its legend above it, and the SVG."""
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("Score")
    grid(axes, "y")
    _, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels), default=0) > _WIDE_LABEL else columns
    figure.legend(loc="outside upper left", alignment="left", ncols=columns)
    return svg(figure, name, label)


def name_rows(panels: Sequence[Axes], names: Sequence[str]) -> None:
    """Finish panels of horizontal bars with a name a row, from the top."""
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        grid(axes, "x")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)


def svg(figure: Figure, prefix: str, label: str) -> str:
    """Save a figure as an `<svg>` element for use inside HTML.

    Width and height give way to the viewBox, ids get a prefix (several drawings share a page),
    stand-in colours become CSS variables and the page's font replaces matplotlib's.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Text stays text, so it does not matter that matplotlib's own font lacks a character.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
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


def standalone(drawn: str) -> str:
    """A drawing of `svg` as a file of its own: in the colours of paper, as wide as it was drawn."""
    root = ElementTree.fromstring(drawn)
    *_, width, height = root.attrib["viewBox"].split()
    root.attrib |= {"width": f"{width}pt", "height": f"{height}pt"}
    root.attrib["style"] = "stroke-linejoin: round; font-family: sans-serif"
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r"var\(--[\w-]+, (#\w+)\)", r"\1", text)


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
