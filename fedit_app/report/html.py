"""The HTML pages of runs and comparisons: one file each that opens offline, without scripts.

Text of other nodes is escaped, and control characters are taken out of it. The same results give
the same page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedit_app.protocol.metrics import Metrics
from fedit_app.report.comparison import UNEDITED, ComparedRun, Comparison
from fedit_app.report.comparison_plots import axis_plot, method_plot, slots_plot
from fedit_app.report.figures import (
    FURTHER,
    METRICS,
    SHARES,
    hold_lines,
    metric_of,
    value_of,
)
from fedit_app.report.paper import write_paper
from fedit_app.report.plots import (
    change_plot,
    cost_plot,
    exchange_plot,
    facts_plot,
    score_plot,
)
from fedit_app.report.rendering import render
from fedit_app.report.results import COUNTS, SCOPES, STAGES, Costs, Outcome, Results, stage_name
from fedit_app.report.tables import METRICS as COLUMNS
from fedit_app.report.tables import SLOTS_IN_SHORT, methods_table, nodes_table, slots_table
from fedit_app.support.files import write_file
from fedit_app.support.formats import (
    NOT_MEASURED,
    byte_size,
    duration,
    listing,
    percent,
    plural,
    share,
)
from fedit_app.support.tables import Cell, Table

# Counts that most runs do not have; their columns are there if a run does.
_SELDOM = ("cached", "warm_started", "renewed", "composed", "compose_rounds", "quarantined")
_MOST_NAMES = 4


@dataclass(frozen=True)
class WorstOf:
    """What a node's model says worst, for a page that stays with those who may read its texts.

    Attributes:
        node: the node.
        facts: its own facts, with their texts.
    """

    node: str
    facts: Table


def render_report(results: Results, worst: WorstOf | None = None) -> str:
    """The report of a run as one HTML page.

    Args:
        results: the run; see docs/results.md.
        worst: facts of a node; only with them does the page hold texts of requests.
    """
    return _report(results, _run_plots(results), worst)


def _run_plots(results: Results) -> dict[str, str]:
    return {
        "score": score_plot(results),
        "facts": facts_plot(results),
        "change": change_plot(results),
        "exchange": exchange_plot(results),
        "cost": cost_plot(results),
    }


def _report(results: Results, plots: Mapping[str, str], worst: WorstOf | None = None) -> str:
    summary, totals = results.summary, results.totals
    return render(
        "run",
        title=f"FedEdit run: {results.strategy} on {results.model.name}",
        eyebrow=" · ".join(
            ("FedEdit run report", results.strategy, results.editor, results.model.name)
        ),
        headline=_headline(summary),
        status_class=_status_class(results),
        status=_status(results),
        lead=_lead(results),
        tiles=_tiles(results),
        nodes=sorted(results.nodes.items()),
        summary=summary,
        has_federation=summary.federation is not None,
        shares=SHARES,
        scopes=SCOPES,
        further=_further(summary),
        meaning=METRICS[metric_of(summary.own)],
        slots=results.slots,
        totals=totals,
        counts=[name for name in COUNTS if name not in _SELDOM or getattr(totals, name)],
        stages=[s for s in STAGES if s != "compose" or totals.seconds.compose],
        stage_name=stage_name,
        rejections=_rejections(results),
        failures=[
            (failure.node, failure.slot or NOT_MEASURED, failure.stage, failure.reason)
            for failure in results.failed_nodes
        ],
        config=results.config,
        model=results.model,
        strategy=results.strategy,
        editor=results.editor,
        times=_times(results),
        worst=worst,
        plots=plots,
    )


def write_report(results: Results, path: str | Path) -> None:
    """Write the report of a run, and its tables and plots for a paper beside it, see `paper`.

    Args:
        results: the run.
        path: the file to write; its folder is made if it is missing. A reader sees either the old
            file or the whole new one.
    """
    path, plots = Path(path), _run_plots(results)
    write_file(path, _report(results, plots))
    tables = {"nodes": nodes_table(results), "slots": slots_table(results)}
    write_paper(path, tables if results.nodes else {}, plots, {"slots": SLOTS_IN_SHORT})


def comparison_plots(comparison: Comparison) -> dict[str, str]:
    """Name -> SVG of the plots of a comparison; "" where there is nothing to show."""
    return {
        "axis": axis_plot(comparison),
        "method": method_plot(comparison),
        "slots": slots_plot(comparison),
    }


def render_comparison(
    comparison: Comparison,
    plots: Mapping[str, str],
    metrics: Sequence[str] = COLUMNS,
) -> str:
    """A comparison as one HTML page.

    Args:
        comparison: the comparison; see docs/compare.md.
        plots: its `comparison_plots`.
        metrics: columns of the table, see `methods_table`.
    """
    config, axis, runs = comparison.config, comparison.axis, comparison.runs
    done = sum(run.status == "completed" for run in runs)
    methods = plural(
        len({row.method for row in comparison.rows if row.strategy != UNEDITED}), "method"
    )
    return render(
        "comparison",
        title=f"FedEdit comparison: {config['model']}",
        eyebrow=f"FedEdit comparison · {config['model']} · "
        f"{config['dataset']}, partition {config['partition']}",
        headline=f"{methods} over {axis.key}" if axis else methods,
        status="Complete" if done == len(runs) else f"{done} of {plural(len(runs), 'run')}",
        status_class="bad" if comparison.failed else "good" if done == len(runs) else "mixed",
        lead=_conditions(comparison),
        methods=methods_table(comparison, metrics),
        axis=axis.key if axis else "",
        at_last=f", {axis.key} = {comparison.last}" if axis else "",
        runs=_runs(runs),
        failures=[(run.name, run.reason) for run in comparison.failed],
        config=dict(sorted(config.items())),
        plots=plots,
    )


def _further(summary: Outcome) -> dict[str, str]:
    """Name -> heading of the figures beside the shares that were measured on some facts."""
    scopes: list[Metrics | None] = [summary.own, summary.federation]
    return {
        name: heading
        for name, heading in FURTHER.items()
        if any(value_of(metrics, name) is not None for metrics in scopes)
    }


def _headline(summary: Outcome) -> str:
    """The figure that matters most: on the federation's facts where they were measured."""
    facts, after, before = "Federation's facts", summary.federation, summary.before.federation
    if value_of(after, "score") is None:
        facts, after, before = "Own facts", summary.own, summary.before.own
    score, start = value_of(after, "score"), value_of(before, "score")
    if score is None:
        return "No result"
    if start is None:
        return f"{facts}: score {share(score)}"
    return f"{facts}: score {share(score)}, {_direction(start, score)} {share(start)}"


def _direction(before: float, after: float) -> str:
    if share(before) == share(after):
        return "as before,"
    return "up from" if after > before else "down from"


def _status(results: Results) -> str:
    text = results.status.capitalize()
    failed = len(results.failed)
    return f"{text}, {plural(failed, 'node')} failed" if failed else text


def _status_class(results: Results) -> str:
    if results.status != "completed":
        return "bad"
    return "mixed" if results.failed_nodes else "good"


def _lead(results: Results) -> str:
    """The run in a few sentences."""
    model, editor, strategy = results.model.name, results.editor, results.strategy
    if not results.slots:
        sentences = [
            f"The run with strategy {strategy} and editor {editor} on {model} ended after "
            f"{duration(results.seconds.total)} before any slot was complete."
        ]
    else:
        nodes = len({name for slot in results.slots for name in slot.nodes})
        totals = results.totals
        sentences = [
            f"In {plural(len(results.slots), 'slot')}, {plural(nodes, 'node')} corrected "
            f"{plural(totals.requests, 'fact')} in {model} with strategy {strategy} and editor "
            f"{editor}.",
            *_score_sentences(results.summary),
            *(f"{line[0].upper()}{line[1:]}." for line in hold_lines(results)),
            *_exchange_sentences(totals),
        ]
    failed = results.failed
    if failed:
        more = len(failed) - _MOST_NAMES + 1
        names = failed if more <= 1 else [*failed[: _MOST_NAMES - 1], f"{more} more"]
        sentences.append(f"{plural(len(failed), 'node')} failed: {listing(names)}.")
    return " ".join(sentences)


def _score_sentences(summary: Outcome) -> list[str]:
    everybody = "The score on all facts of the federation, asked of every node,"
    sentences = []
    for subject, before, after in (
        ("The score on the nodes' own facts", summary.before.own, summary.own),
        (everybody, summary.before.federation, summary.federation),
    ):
        score, start = value_of(after, "score"), value_of(before, "score")
        if score is not None and start is not None:
            sentences.append(f"{subject} went from {share(start)} to {share(score)}.")
        elif score is not None:
            sentences.append(f"{subject} is {share(score)}.")
    return [*sentences, "A score of 1 is the best possible."] if sentences else []


def _exchange_sentences(totals: Costs) -> list[str]:
    sentences = []
    if totals.reused:
        saved = percent(totals.reused / totals.requests)
        sentences.append(
            f"{plural(totals.reused, 'request')} ({saved}) needed no computation, because "
            "another node had already done it."
        )
    if totals.offered:
        sentences.append(
            f"Nodes accepted {totals.accepted:,} of {plural(totals.offered, 'vector')} "
            f"offered to them, with {plural(totals.conflicts, 'conflict')}."
        )
    return sentences


def _tiles(results: Results) -> list[tuple[str, str, str]]:
    """Label, value and detail of the most important figures."""
    summary, totals = results.summary, results.totals
    computed = f"{totals.optimised - totals.cached:,} computed, {totals.reused:,} reused"
    computed += f", {totals.cached:,} from the work-cache" if totals.cached else ""
    accepted = f"of {totals.offered:,} offered, {plural(totals.conflicts, 'conflict')}"
    sent = f"{byte_size(totals.bytes_up)} up, {byte_size(totals.bytes_down)} down"
    slots = f"{plural(results.slots_complete, 'slot')} completed"
    return [
        _score_tile("Own score", summary.before.own, summary.own),
        _score_tile("Federation score", summary.before.federation, summary.federation),
        ("Edit requests", f"{totals.requests:,}", computed),
        ("MKVs accepted", f"{totals.accepted:,}", accepted),
        ("Traffic", byte_size(totals.bytes_up + totals.bytes_down), sent),
        ("Time", duration(results.seconds.total), slots),
    ]


def _score_tile(label: str, before: Metrics | None, after: Metrics | None) -> tuple[str, str, str]:
    start = value_of(before, "score")
    detail = "not measured before" if start is None else f"{share(start)} before the run"
    return label, share(value_of(after, "score")), "not measured" if after is None else detail


def _times(results: Results) -> str:
    seconds = results.seconds
    return (
        f"{duration(seconds.total)} in all: greeting the nodes {duration(seconds.hello)}, "
        f"measuring before {duration(seconds.before)}, slots {duration(seconds.slots)}"
    )


def _rejections(results: Results) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for slot in results.slots:
        for node in slot.nodes.values():
            counts.update(node.rejections)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _conditions(comparison: Comparison) -> str:
    """Under which conditions the runs of a comparison were made, in a sentence."""
    config, seeds, nodes = comparison.config, comparison.seeds, comparison.nodes
    who = plural(nodes, "node") if nodes else "Nodes"
    requests = int(config["requests-per-slot"] or 0)
    each = plural(requests, "request") if requests else "their requests"
    slots = plural(int(config["num-slots"] or 0), "slot")
    return (
        f"{who} edit {each} a slot in {slots}, with {plural(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds))})."
    )


def _runs(runs: Sequence[ComparedRun]) -> Table:
    counts = ("requests", "optimised", "cached", "reused")
    columns = ["Run", "State", "Time", "Requests", "Optimised", "of them cached", "Reused"]
    rows: list[list[Cell]] = []
    for run in runs:
        row: list[Cell] = [run.name, run.status]
        if run.costs:
            row += [duration(run.costs["seconds"]), *(int(run.costs[name]) for name in counts)]
            rows.append([*row, run.failed_nodes])
        else:
            rows.append([*row, *[NOT_MEASURED] * (len(counts) + 2)])
    return Table([*columns, "Nodes failed"], rows)
