"""What goes into a paper: every table of a report as LaTeX and CSV, every plot as a vector file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedit_app.report.drawing import standalone
from fedit_app.support.files import write_file
from fedit_app.support.tables import Table

FOLDER = "paper"
"""Beside the report."""


def write_paper(beside: Path, tables: Mapping[str, Table], plots: Mapping[str, str]) -> None:
    """Write `paper/NAME.tex` and `.csv` of tables that have rows, and `.svg` of what was drawn.

    Args:
        beside: the report.
        tables: name -> table.
        plots: name -> SVG, see `drawing`; "" where there is nothing to show.
    """
    folder = beside.parent / FOLDER
    for name, table in tables.items():
        if table.rows:
            write_file(folder / f"{name}.tex", table.latex() + "\n")
            write_file(folder / f"{name}.csv", table.csv())
    for name, drawn in plots.items():
        if drawn:
            write_file(folder / f"{name}.svg", standalone(drawn) + "\n")
