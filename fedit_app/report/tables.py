"""What a run came to, as text for the log, and several runs side by side as a table."""

from collections.abc import Sequence
from typing import Any

from fedit_app.report.figures import Metrics, metric_of, value_of
from fedit_app.support.formats import (
    byte_size,
    duration,
    plural,
    printable,
    share,
    shorten,
)
from fedit_app.support.tables import Cell, Change, Figure, Table

_PARTS = ("efficacy", "paraphrase", "neighborhood", "score")
_NAME_WIDTH = 24
# Heading, scope and figure of columns that not every run has.
_OPTIONAL = (
    ("Received score", "received", "score"),
    ("Own exact match", "own", "exact_match"),
    ("Federation exact match", "federation", "exact_match"),
    ("Federation entropy", "federation", "generation_entropy"),
    ("Neutral KL", "neutral", "kl"),
    ("Neutral top-10 overlap", "neutral", "top10_overlap"),
    ("Neutral perplexity", "neutral", "perplexity_after"),
)


def total(results: dict[str, Any], count: str) -> int:
    """The sum over all slots of one of their counts, for example `requests` or `bytes_up`."""
    return sum(slot[count] for slot in results["slots"])


def summary_table(results: dict[str, Any]) -> str:
    """The outcome of a run as monospaced text for the terminal.

    One row a node and a row of means, each with the shares before and after the run, for the
    node's own facts and for the facts of the whole federation; then what else was measured, the
    counts of the run, and the nodes that failed and why.

    Args:
        results: A results dict as `load_results` returns it.

    Returns:
        Lines without a trailing line break. Control characters in names and reasons are removed.
    """
    columns = ("node", *(f"own {part}" for part in _PARTS), "federation score")
    rows = [
        (shorten(name, _NAME_WIDTH), *_changes(node))
        for name, node in sorted(results["nodes"].items())
    ]
    rows.append(("mean", *_changes(results["summary"])))
    lines = [_title(results), "", Table(columns, rows).text()]
    lines += ["", *_further_lines(results["summary"])]
    lines += [_counts_line(results), _traffic_line(results)]
    lines += _failure_lines(results["failed_nodes"])
    return "\n".join(lines)


def runs_table(runs: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    """Several runs side by side, one row a run.

    A first row shows the unedited model when all runs started from the same figures. When a run
    with the strategy `central` is among them, a last column gives every run's federation score as
    a share of that run's. The own facts of a central run are those of the whole federation, so
    they stand in where it has no separate federation figures. Columns for received facts, for what
    models wrote themselves and for neutral text are there if a run has such figures. Runs whose
    shares are counted differently (zsRE's correct tokens, CounterFact's comparisons) are told
    apart by a column.

    Args:
        runs: Pairs of a label and a results dict as `load_results` returns it.
    """
    columns = ["Run", "Own score", "Federation score"]
    columns += [f"{scope} {part}" for scope in ("Own", "Federation") for part in _PARTS[:-1]]
    rows = [(label, results["summary"]) for label, results in runs]
    before = [results["summary"]["before"] for _, results in runs]
    if before and before[0]["own"] is not None and all(b == before[0] for b in before):
        rows.insert(0, ("unedited", before[0]))

    cells: list[list[Cell]] = [[label, *_scores(summary)] for label, summary in rows]
    for name, scope, figure in _OPTIONAL:
        found = [value_of(summary.get(scope), figure) for _, summary in rows]
        if any(value is not None for value in found):
            columns.append(name)
            for row, value in zip(cells, found, strict=True):
                row.append(Figure(value, digits=4 if figure == "kl" else 2))
    metrics = [metric_of(summary["own"]) for _, summary in rows]
    if len(set(metrics)) > 1:
        columns.append("Metric")
        for row, metric in zip(cells, metrics, strict=True):
            row.append(metric)
    central = next((r["summary"] for _, r in runs if r["strategy"] == "central"), None)
    if central is not None:
        columns.append("Of central")
        for row, (_, summary) in zip(cells, rows, strict=True):
            row.append(Figure(_ratio(summary, central), percent=True))
    return Table(columns, cells)


def _changes(node: dict[str, Any]) -> tuple[Change, ...]:
    before = node["before"]
    own = [_change(before["own"], node["own"], part) for part in _PARTS]
    return (*own, _change(before["federation"], node["federation"], "score"))


def _change(before: Metrics | None, after: Metrics | None, name: str) -> Change:
    return Change(value_of(before, name), value_of(after, name))


def _title(results: dict[str, Any]) -> str:
    counted = {"likelihood": "", "tokens": " of tokens", "mixed": " of prompts or tokens"}
    return printable(
        f"{results['status']}: {results['strategy']} with {results['editor']} on "
        f"{results['model']['name']}, {plural(len(results['slots']), 'slot')}; "
        f"shares{counted[metric_of(results['summary']['own'])]} before -> after"
    )


def _further_lines(summary: dict[str, Any]) -> list[str]:
    """What was measured beside the shares of the table, as far as it was."""
    lines = []
    received, neutral = summary.get("received"), summary.get("neutral")
    if received is not None:
        lines.append(
            f"facts received from others: score {share(received['score'])} on {received['count']:,}"
        )
    for scope in ("own", "federation"):
        before = summary["before"][scope]
        figures = [
            f"{name} {_change(before, summary[scope], figure)}"
            for name, figure in (("exact match", "exact_match"), ("entropy", "generation_entropy"))
            if value_of(summary[scope], figure) is not None
        ]
        if figures:
            lines.append(f"{scope} facts: {', '.join(figures)}")
    if neutral is not None:
        lines.append(
            f"neutral text: KL {neutral['kl']:.4f}, top-10 overlap "
            f"{share(neutral['top10_overlap'])}, perplexity {neutral['perplexity_before']:.2f} -> "
            f"{neutral['perplexity_after']:.2f}"
        )
    return lines


def _counts_line(results: dict[str, Any]) -> str:
    cached = sum(slot.get("cached", 0) for slot in results["slots"])
    found = f" ({cached:,} of them found in the work-cache)" if cached else ""
    return (
        f"{plural(total(results, 'requests'), 'request')}: "
        f"{total(results, 'optimised'):,} optimised{found}{_warm(results)}, "
        f"{total(results, 'reused'):,} reused; "
        f"{total(results, 'accepted'):,} of {plural(total(results, 'offered'), 'MKV')} accepted, "
        f"{plural(total(results, 'conflicts'), 'conflict')}"
    )


def _warm(results: dict[str, Any]) -> str:
    """How many optimisations began at another MKV's value; results of older runs do not say."""
    count = sum(slot.get("warm_started", 0) for slot in results["slots"])
    return f" ({count:,} from another's value)" if count else ""


def _traffic_line(results: dict[str, Any]) -> str:
    return (
        f"{byte_size(total(results, 'bytes_up'))} up, "
        f"{byte_size(total(results, 'bytes_down'))} down; "
        f"{duration(results['seconds']['total'])}"
    )


def _failure_lines(failures: list[dict[str, Any]]) -> list[str]:
    if not failures:
        return []
    return ["", "failed nodes:", *(f"  {_failure(failure)}" for failure in failures)]


def _failure(failure: dict[str, Any]) -> str:
    place = f"slot {failure['slot']}, " if failure["slot"] else ""
    name = shorten(failure["node"], _NAME_WIDTH)
    return f"{name} ({place}{printable(failure['stage'])}): {printable(failure['reason'])}"


def _scores(summary: dict[str, Any]) -> list[Figure]:
    own, federation = summary["own"], summary["federation"]
    figures = [(own, "score"), (federation, "score")]
    figures += [(metrics, part) for metrics in (own, federation) for part in _PARTS[:-1]]
    return [Figure(value_of(metrics, name)) for metrics, name in figures]


def _ratio(summary: dict[str, Any], central: dict[str, Any]) -> float | None:
    reference = value_of(central["federation"] or central["own"], "score")
    score = reference if summary is central else value_of(summary["federation"], "score")
    return None if score is None or not reference else score / reference
