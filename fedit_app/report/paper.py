"""What goes into a paper: every table of a report as LaTeX and CSV, every plot as a vector file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from fedit_app.report.drawing import standalone
from fedit_app.support.files import write_file
from fedit_app.support.tables import Table

FOLDER = "paper"
"""Beside the report."""


def write_paper(
    beside: Path,
    tables: Mapping[str, Table],
    plots: Mapping[str, str],
    narrow: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Write `paper/NAME.tex` and `.csv` of tables that have rows, and `.svg` of what was drawn.

    Args:
        beside: the report.
        tables: name -> table.
        plots: name -> SVG, see `drawing`; "" where there is nothing to show.
        narrow: name -> headings of the columns that LaTeX shows, as many as fit on a page; without
            its name a table has all of them there, too. CSV always has all.
    """
    folder = beside.parent / FOLDER
    for name, table in tables.items():
        if table.rows:
            shown = table.only(narrow[name]) if name in narrow else table
            write_file(folder / f"{name}.tex", shown.latex() + "\n")
            write_file(folder / f"{name}.csv", table.csv())
    for name, drawn in plots.items():
        if drawn:
            write_file(folder / f"{name}.svg", standalone(drawn) + "\n")
