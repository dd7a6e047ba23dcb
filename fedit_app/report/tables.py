"""Runs and comparisons as tables, and the text that a run logs at its end."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from fedit_app.protocol.metrics import SCORE_PARTS, Metrics, mean_metrics
from fedit_app.report.comparison import UNEDITED, Comparison, Row, Spread
from fedit_app.report.figures import (
    figures_by_scope,
    hold_lines,
    metric_of,
    value_of,
    words,
)
from fedit_app.report.results import (
    NUMBERS,
    STAGES,
    Before,
    Costs,
    Failure,
    Measured,
    Outcome,
    Results,
)
from fedit_app.support.formats import (
    byte_size,
    duration,
    plural,
    printable,
    share,
    shorten,
)
from fedit_app.support.tables import Cell, Change, Figure, Table

_BESIDE = ("other_relations", "subject_fidelity")
"""What an edit is to leave alone of its own subject."""

_WHERE_KNOWN = ("portability", "reversal", "wild_match", "chat_match")
"""What follows from edits, and what the models answer themselves, without teacher forcing."""

METRICS = ("own.score", "score", *SCORE_PARTS, *_BESIDE, "accuracy")
"""Columns of a comparison's table, if no others are asked for."""

SLOTS_IN_SHORT = (
    *("Slot", "Own score", "Federation score"),
    *("Requests", "Optimised", "Reused", "Accepted", "Conflicts"),
)
"""Columns of `slots_table` that fit on the page of a paper."""
_METHODS_IN_SHORT = ("score", *SCORE_PARTS, "accuracy")

_PARTS = (*SCORE_PARTS, *_BESIDE)
_OWN = (*SCORE_PARTS, "score", *_BESIDE)
_NAME_WIDTH = 24
_WRITTEN = {
    "exact_match": "exact match",
    "wild_match": "WILD match",
    "chat_match": "chat match",
    "paraphrase_chat_match": "in other words",
    "generation_entropy": "entropy",
}
"""What tables call the figures of text that a model writes itself."""
# Heading, scope and figure of columns that not every run has.
_OPTIONAL = (
    ("Received score", "received", "score"),
    ("Own portability", "own", "portability"),
    ("Federation portability", "federation", "portability"),
    ("Own reversal", "own", "reversal"),
    ("Federation reversal", "federation", "reversal"),
    ("Own exact match", "own", "exact_match"),
    ("Federation exact match", "federation", "exact_match"),
    ("Own WILD match", "own", "wild_match"),
    ("Federation WILD match", "federation", "wild_match"),
    ("Own chat match", "own", "chat_match"),
    ("Federation chat match", "federation", "chat_match"),
    ("Federation entropy", "federation", "generation_entropy"),
    ("Neutral KL", "neutral", "kl"),
    ("Neutral top-10 overlap", "neutral", "top10_overlap"),
    ("Neutral perplexity", "neutral", "perplexity_after"),
    ("Cloze", "neutral", "cloze_after"),
)


def summary_table(results: Results) -> str:
    """The outcome of a run as monospaced text for the log.

    One row a node and a row of means, each with the shares before and after the run, for the
    node's own facts and for the facts of the whole federation; then what else was measured, the
    counts of the run, and the nodes that failed and why.

    Returns:
        Lines without a trailing line break. Control characters in names and reasons are removed.
    """
    lines = [_title(results), "", nodes_table(results).text()]
    totals = results.totals
    lines += ["", *_further_lines(results.summary), *hold_lines(results), _counts_line(totals)]
    lines.append(
        f"{byte_size(totals.bytes_up)} up, {byte_size(totals.bytes_down)} down; "
        f"{duration(results.seconds.total)}"
    )
    if results.failed_nodes:
        lines += ["", "failed nodes:", *map(_failure, results.failed_nodes)]
    return "\n".join(lines)


def nodes_table(results: Results) -> Table:
    """The shares of every node before and after a run, and their means."""
    columns = ("node", *(f"own {words(name)}" for name in _OWN), "federation score")
    rows: list[tuple[Cell, ...]] = [
        (shorten(name, _NAME_WIDTH), *_changes(node))
        for name, node in sorted(results.nodes.items())
    ]
    return Table(columns, [*rows, ("mean", *_changes(results.summary))])


def slots_table(results: Results) -> Table:
    """Every slot of a run: mean scores, counts, bytes, and seconds of its stages."""
    columns = ("Slot", "Own score", "Federation score", *NUMBERS, *STAGES)
    rows: list[list[Cell]] = []
    for slot in results.slots:
        row: list[Cell] = [slot.slot]
        for scope in ("own", "federation"):
            mean = mean_metrics(getattr(node, scope) for node in slot.nodes.values())
            row.append(Figure(value_of(mean, "score")))
        row += [getattr(slot, name) for name in NUMBERS]
        rows.append([*row, *(Figure(getattr(slot.seconds, stage), 1) for stage in STAGES)])
    return Table([words(name).capitalize() for name in columns], rows)


def runs_table(runs: Sequence[tuple[str, Results]]) -> Table:
    """Several runs side by side, one row a run.

    A first row shows the unedited model when all runs started from the same figures. When a run
    with the strategy `central` is among them, a last column gives every run's federation score as
    a share of that run's. The own facts of a central run are those of the whole federation, so
    they stand in where it has no separate federation figures. Columns for received facts, for what
    models wrote themselves and for neutral text are there if a run has such figures. Runs whose
    shares are counted differently (zsRE's correct tokens, CounterFact's comparisons) are told
    apart by a column, and so are those of which a sample of the facts was asked.

    Args:
        runs: pairs of a label and its results.
    """
    columns = ["Run", "Own score", "Federation score"]
    columns += [f"{scope} {words(part)}" for scope in ("Own", "Federation") for part in _PARTS]
    rows: list[tuple[str, Measured | Before]] = [(label, run.summary) for label, run in runs]
    before = [run.summary.before for _, run in runs]
    if before and before[0].own is not None and all(b == before[0] for b in before):
        rows.insert(0, (UNEDITED, before[0]))

    cells: list[list[Cell]] = [[label, *_scores(record)] for label, record in rows]
    for name, scope, figure in _OPTIONAL:
        found = [getattr(getattr(record, scope, None), figure, None) for _, record in rows]
        if any(value is not None for value in found):
            columns.append(name)
            for row, value in zip(cells, found, strict=True):
                row.append(Figure(value, digits=4 if figure == "kl" else 2))
    metrics = [metric_of(record.own) for _, record in rows]
    if len(set(metrics)) > 1:
        columns.append("Metric")
        for row, metric in zip(cells, metrics, strict=True):
            row.append(metric)
    asked = [record.own for _, record in rows]
    if any(own is not None and own.drawn_from for own in asked):
        columns.append("Own facts asked")
        for row, own in zip(cells, asked, strict=True):
            row.append(f"{own.count:,} of {own.all_requests:,}" if own is not None else None)
    central = next((run.summary for _, run in runs if run.strategy == "central"), None)
    if central is not None:
        columns.append("Of central")
        for row, (_, record) in zip(cells, rows, strict=True):
            row.append(Figure(_ratio(record, central), percent=True))
    return Table(columns, cells)


def methods_table(comparison: Comparison, metrics: Sequence[str] = METRICS) -> Table:
    """A comparison, one row a method: mean ± sample standard deviation over its runs.

    Args:
        comparison: the comparison.
        metrics: the figures to show, any that `results.json` has, see `Row.figure`. What follows
            from the edits, and what the models answered themselves, is shown beside them where it
            was measured.
    """
    known = [name for name in _WHERE_KNOWN if any(_measured(r, name) for r in comparison.rows)]
    metrics = list(dict.fromkeys([*metrics, *known]))
    axis = [comparison.axis.key] if comparison.axis else []
    columns = ["Strategy", "Editor", *axis, "n"]
    columns += [words(name).capitalize() for name in metrics]
    columns += ["Of central", "x FedAvg", "v* computed"]
    rows = []
    for row in comparison.rows:
        cells: list[Cell] = [row.strategy, row.editor or "", *([str(row.value)] if axis else [])]
        cells += [_count(row), *(_figure(row.figure(name), 3) for name in metrics)]
        cells += [_figure(row.retention, 3), _figure(row.ratio_to_fedavg, 2), _computed(row)]
        rows.append(cells)
    return Table(columns, rows)


def methods_in_short(comparison: Comparison, metrics: Sequence[str] = METRICS) -> list[str]:
    """Headings of `methods_table` that fit on the page of a paper, or those that were asked for."""
    axis = [comparison.axis.key] if comparison.axis else []
    shown = metrics if metrics != METRICS else _METHODS_IN_SHORT
    return ["Strategy", "Editor", *axis, "n", *(words(name).capitalize() for name in shown)]


def _measured(row: Row, name: str) -> bool:
    found = row.figure(name)
    return found is not None and found.mean is not None


def figures_csv(comparison: Comparison) -> str:
    """Every figure of every run as CSV, a line each: run, its place, scope, name, figure."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    value = comparison.axis.key if comparison.axis else "value"
    writer.writerow(["run", "strategy", "editor", "seed", value, "scope", "metric", "figure"])
    for run in comparison.runs:
        before = run.before or Before(own=None, federation=None)
        records = [*run.measured.items(), *((f"before {scope}", m) for scope, m in before)]
        scopes: list[tuple[str, Mapping[str, object]]] = [*figures_by_scope(dict(records)).items()]
        scopes.append(("costs", run.costs or {}))
        ratios = {"retention": run.retention, "ratio_to_fedavg": run.ratio_to_fedavg}
        scopes.append(("federation", ratios))
        writer.writerows(
            [run.name, run.strategy, run.editor, run.seed, run.value, scope, name, figure]
            for scope, figures in scopes
            for name, figure in figures.items()
            if isinstance(figure, int | float)
        )
    return stream.getvalue()


def _changes(node: Outcome) -> tuple[Change, ...]:
    before = node.before
    own = [_change(before.own, node.own, name) for name in _OWN]
    return (*own, _change(before.federation, node.federation, "score"))


def _change(before: Metrics | None, after: Metrics | None, name: str) -> Change:
    return Change(value_of(before, name), value_of(after, name))


def _title(results: Results) -> str:
    counted = {"likelihood": "", "tokens": " of tokens", "mixed": " of prompts or tokens"}
    return printable(
        f"{results.status}: {results.strategy} with {results.editor} on {results.model.name}, "
        f"{plural(len(results.slots), 'slot')}; "
        f"shares{counted[metric_of(results.summary.own)]} before -> after"
    )


def _further_lines(summary: Outcome) -> list[str]:
    """What was measured beside the shares of the table, as far as it was."""
    lines = []
    if summary.received is not None:
        received = summary.received
        lines.append(
            f"facts received from others: score {share(received.score)} on {received.count:,}"
        )
    scopes = [
        ("own", summary.before.own, summary.own),
        ("federation", summary.before.federation, summary.federation),
    ]
    for scope, before, after in scopes:
        figures = [
            f"{name} {_change(before, after, figure)}"
            for figure, name in _WRITTEN.items()
            if value_of(after, figure) is not None
        ]
        if figures:
            lines.append(f"{scope} facts: {', '.join(figures)}")
    if summary.neutral is not None:
        neutral = summary.neutral
        known = neutral.cloze_after is not None
        lines.append(
            f"neutral text: KL {neutral.kl:.4f}, top-10 overlap {share(neutral.top10_overlap)}, "
            f"perplexity {neutral.perplexity_before:.2f} -> {neutral.perplexity_after:.2f}"
            + (f", cloze {Change(neutral.cloze_before, neutral.cloze_after)}" if known else "")
        )
    return lines


def _counts_line(totals: Costs) -> str:
    found = f" ({totals.cached:,} of them known before)" if totals.cached else ""
    warm = f" ({totals.warm_started:,} from another's value)" if totals.warm_started else ""
    return (
        f"{plural(totals.requests, 'request')}: {totals.optimised:,} optimised{found}{warm}, "
        f"{totals.reused:,} reused; {totals.accepted:,} of {plural(totals.offered, 'MKV')} "
        f"accepted, {plural(totals.conflicts, 'conflict')}"
    )


def _failure(failure: Failure) -> str:
    place = f"slot {failure.slot}, " if failure.slot else ""
    name = shorten(failure.node, _NAME_WIDTH)
    return f"  {name} ({place}{printable(failure.stage)}): {printable(failure.reason)}"


def _scores(record: Measured | Before) -> list[Figure]:
    figures = [(record.own, "score"), (record.federation, "score")]
    figures += [(m, part) for m in (record.own, record.federation) for part in _PARTS]
    return [Figure(value_of(metrics, name)) for metrics, name in figures]


def _ratio(record: Measured | Before, central: Outcome) -> float | None:
    reference = value_of(central.federation or central.own, "score")
    score = reference if record is central else value_of(record.federation, "score")
    return None if score is None or not reference else score / reference


def _count(row: Row) -> str | int:
    """How many runs stand behind a row, how many are missing, and how many nodes in the others."""
    missing = row.runs > row.completed
    parts = [f"{row.completed} of {row.runs}" if missing else f"{row.completed}"]
    parts += [f"{len(row.failed)} failed"] if row.failed else []
    parts += [f"{plural(row.failed_nodes, 'node')} failed"] if row.failed_nodes else []
    return ", ".join(parts) if missing or len(parts) > 1 else row.completed


def _figure(found: Spread | None, digits: int) -> Figure:
    return Figure(found.mean, digits, found.sd) if found else Figure(None)


def _computed(row: Row) -> Figure:
    """Mean number of optimisations that a run did itself."""
    optimised, cached = (row.costs.get(name) for name in ("optimised", "cached"))
    if not optimised or not cached or optimised.mean is None or cached.mean is None:
        return Figure(None)
    return Figure(optimised.mean - cached.mean, digits=0)
