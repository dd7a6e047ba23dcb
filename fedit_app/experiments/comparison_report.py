"""The files that a comparison becomes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedit_app.experiments.comparison_page import render_comparison
from fedit_app.experiments.comparison_tables import METRICS, csv_table, methods_table
from fedit_app.experiments.summary import Record
from fedit_app.support.files import replace_file, write_json_atomic


def write_comparison(
    comparison: Record, folder: Path, metrics: Sequence[str] = METRICS
) -> list[Path]:
    """Write comparison.json, .csv, .md, .tex and .html.

    Args:
        comparison: what `summarise` returns.
        folder: the comparison's folder.
        metrics: columns of the tables, see `methods_table`.

    Returns:
        The files.
    """
    table = methods_table(comparison, metrics)
    texts = {
        "csv": csv_table(comparison),
        "md": table.markdown() + "\n",
        "tex": table.latex() + "\n",
        "html": render_comparison(comparison, metrics),
    }
    files = [folder / "comparison.json", *(folder / f"comparison.{kind}" for kind in texts)]
    write_json_atomic(files[0], comparison)
    for file, text in zip(files[1:], texts.values(), strict=True):
        with replace_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return files
