"""A comparison as a table: for the terminal, in Markdown, in LaTeX, and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from fedit_app.experiments.summary import Record, figure_of
from fedit_app.support.formats import plural
from fedit_app.support.tables import Cell, Figure, Table

METRICS = ("own.score", "score", "efficacy", "paraphrase", "neighborhood", "accuracy")


def methods_table(comparison: Record, metrics: Sequence[str] = METRICS) -> Table:
    """A comparison, one row a method: mean ± sample standard deviation over its runs.

    Args:
        comparison: what `summarise` returns.
        metrics: the figures to show, any that `results.json` has, see `figure_of`.
    """
    axis = comparison["axis"]
    columns = ["Strategy", "Editor", *([axis["key"]] if axis else []), "n"]
    columns += [re.sub(r"[._]", " ", name).capitalize() for name in metrics]
    columns += ["Of central", "x FedAvg", "v* computed"]
    rows = []
    for row in comparison["rows"]:
        cells: list[Cell] = [row["strategy"], row["editor"] or ""]
        cells += [str(row["value"])] if axis else []
        cells += [_count(row), *(_figure(figure_of(row, name), 3) for name in metrics)]
        cells += [_figure(row["retention"], 3), _figure(row["ratio_to_fedavg"], 2)]
        rows.append([*cells, _computed(row["costs"])])
    return Table(columns, rows)


def failed_runs(comparison: Record) -> list[tuple[str, str]]:
    """Names of the runs that failed, and why."""
    runs = comparison["runs"]
    return [(run["name"], run["reason"]) for run in runs if run["status"] == "failed"]


def _count(row: Record) -> str | int:
    """How many runs stand behind a row, how many are missing, and how many nodes in the others."""
    missing, nodes = row["runs"] - row["completed"], row["failed_nodes"]
    parts = [f"{row['completed']} of {row['runs']}"] if missing else [f"{row['completed']}"]
    parts += [f"{len(row['failed'])} failed"] if row["failed"] else []
    parts += [f"{plural(nodes, 'node')} failed"] if nodes else []
    return ", ".join(parts) if len(parts) > 1 or missing else row["completed"]


def _figure(found: Record | None, digits: int) -> Figure:
    return Figure(found["mean"], digits, found["sd"]) if found else Figure(None)


def _computed(costs: Record) -> Figure:
    """Mean number of optimisations that a run did itself."""
    if not costs or costs["optimised"]["mean"] is None:
        return Figure(None)
    return Figure(costs["optimised"]["mean"] - costs["cached"]["mean"], digits=0)


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
