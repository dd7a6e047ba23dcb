"""A comparison as a table: for the terminal, in Markdown, in LaTeX, and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from fedit_app.experiments.summary import Record, figure_of
from fedit_app.report.table import plain_table
from fedit_app.support.formats import NOT_MEASURED, printable

METRICS = ("own.score", "score", "efficacy", "paraphrase", "neighborhood", "accuracy")
_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def columns_and_rows(
    comparison: Record, metrics: Sequence[str] = METRICS
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells that all tables have in common.

    Args:
        comparison: what `summarise` returns.
        metrics: any that `results.json` has, see `figure_of`.

    Returns:
        Headings, and rows of as many cells: mean ± sample standard deviation.
    """
    axis = comparison["axis"]
    headings = ["Strategy", "Editor", *([axis["key"]] if axis else []), "n"]
    headings += [re.sub(r"[._]", " ", name).capitalize() for name in metrics]
    headings += ["Of central", "x FedAvg", "v* computed"]
    rows = []
    for row in comparison["rows"]:
        cells = [row["strategy"], row["editor"] or ""]
        cells += [str(row["value"])] if axis else []
        cells += [_count(row), *(_number(figure_of(row, name), 3) for name in metrics)]
        cells += [_number(row["retention"], 3), _number(row["ratio_to_fedavg"], 2)]
        rows.append([*cells, _computed(row["costs"])])
    return headings, rows


def _count(row: Record) -> str:
    """How many runs stand behind a row, how many are missing, and how many nodes in the others."""
    missing = row["runs"] - row["completed"]
    parts = [f"{row['completed']}" if not missing else f"{row['completed']} of {row['runs']}"]
    parts += [f"{len(row['failed'])} failed"] if row["failed"] else []
    nodes = row["failed_nodes"]
    parts += [f"{nodes} node{'s' if nodes > 1 else ''} failed"] if nodes else []
    return ", ".join(parts)


def _number(found: Record | None, digits: int) -> str:
    if not found or found["mean"] is None:
        return NOT_MEASURED
    mean = f"{found['mean']:.{digits}f}"
    return mean if found["sd"] is None else f"{mean} ± {found['sd']:.{digits}f}"


def _computed(costs: Record) -> str:
    """Mean number of optimisations that a run did itself."""
    if not costs or costs["optimised"]["mean"] is None:
        return NOT_MEASURED
    return f"{costs['optimised']['mean'] - costs['cached']['mean']:.0f}"


def terminal_table(comparison: Record, metrics: Sequence[str] = METRICS) -> str:
    """The table as monospaced text, and the runs that failed."""
    headings, rows = columns_and_rows(comparison, metrics)
    failed = [run for run in comparison["runs"] if run["status"] == "failed"]
    lines = [plain_table(headings, rows)]
    if failed:
        lines += ["", "failed:"]
        lines += [f"  {run['name']}: {printable(run['reason'])}" for run in failed]
    return "\n".join(lines) + "\n"


def markdown_table(comparison: Record, metrics: Sequence[str] = METRICS) -> str:
    """The table in Markdown."""
    headings, rows = columns_and_rows(comparison, metrics)
    names = 3 if comparison["axis"] else 2
    rule = ["---"] * names + ["---:"] * (len(headings) - names)
    lines = [headings, rule, *([_markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def latex_table(comparison: Record, metrics: Sequence[str] = METRICS) -> str:
    """The table as a LaTeX `tabular` that needs the package booktabs."""
    headings, rows = columns_and_rows(comparison, metrics)
    names = 3 if comparison["axis"] else 2
    lines = [rf"\begin{{tabular}}{{{'l' * names}{'r' * (len(headings) - names)}}}", r"\toprule"]
    lines += [_latex_row(headings), r"\midrule", *map(_latex_row, rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    escaped = ("".join(_LATEX.get(char, char) for char in printable(cell)) for cell in cells)
    row = " & ".join(cell.replace("±", r"$\pm$").replace(NOT_MEASURED, "--") for cell in escaped)
    return rf"{row} \\"


def csv_table(comparison: Record) -> str:
    """Every figure of every run, a line each: run, strategy, editor, seed, axis, scope, name."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    axis = comparison["axis"]
    value = axis["key"] if axis else "value"
    writer.writerow(["run", "strategy", "editor", "seed", value, "scope", "metric", "figure"])
    for run in comparison["runs"]:
        place = [run[key] for key in ("name", "strategy", "editor", "seed", "value")]
        for scope, record in _scopes(run):
            for name, figure in (record or {}).items():
                if isinstance(figure, int | float):
                    writer.writerow([*place, scope, name, figure])
        for name in ("retention", "ratio_to_fedavg"):
            if run[name] is not None:
                writer.writerow([*place, "federation", name, run[name]])
    return stream.getvalue()


def _scopes(run: Record) -> list[tuple[str, Any]]:
    before = [(f"before {scope}", record) for scope, record in (run["before"] or {}).items()]
    return [*run["measured"].items(), *before, ("costs", run["costs"])]


def _markdown(text: str) -> str:
    return "".join(f"\\{char}" if char in r"\`*_[]<>|" else char for char in printable(text))
