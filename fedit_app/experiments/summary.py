"""What the runs of a comparison say together, and the files that it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from fedit_app.experiments.evidence import (
    INTERVALS_IN_SHORT,
    Evidence,
    better_text,
    findings_csv,
    intervals_table,
)
from fedit_app.experiments.plan import Plan, PlannedRun
from fedit_app.experiments.runner import Todo, what_is_left
from fedit_app.protocol.metrics import mean_metrics
from fedit_app.report import Comparison, Results, load_results, methods_table, render_comparison
from fedit_app.report.comparison import SCHEMA, UNEDITED, ComparedRun, Row, SlotMeans, Spread
from fedit_app.report.figures import figures_by_scope, value_of, words
from fedit_app.report.html import comparison_plots
from fedit_app.report.paper import write_paper
from fedit_app.report.results import NUMBERS, STAGES, SlotResult
from fedit_app.report.tables import METRICS, figures_csv, methods_in_short
from fedit_app.support.files import write_file

_CENTRAL, _FEDAVG = "central", "fedavg"
_ANSWERS = ("exact_match", "wild_match", "chat_match")


def summarise(plan: Plan, failures: Mapping[str, str]) -> Comparison:
    """All runs of a comparison and their means.

    Args:
        plan: the comparison.
        failures: name of a run that failed just now -> why.
    """
    runs = [_run(run, failures.get(run.name, "")) for run in plan.runs]
    for run in runs:
        editor = run.editor or plan.editors[0].label
        run.retention = _ratio(run, _counterpart(run, editor, runs, _CENTRAL))
        run.ratio_to_fedavg = _ratio(run, _counterpart(run, editor, runs, _FEDAVG))
    rows = [*_unedited(runs), *map(_row, _groups(runs))]
    planned = plan.model_dump(mode="json", exclude={"version"})
    return Comparison(schema=SCHEMA, **planned, runs=runs, rows=rows)


def write_comparison(
    comparison: Comparison,
    folder: Path,
    metrics: Sequence[str] = METRICS,
    evidence: Evidence | None = None,
) -> list[Path]:
    """Write comparison.json, .csv, .md and .html, tests.csv, and what goes into a paper.

    Args:
        comparison: what `summarise` returns.
        folder: the comparison's folder.
        metrics: columns of the tables, see `methods_table`.
        evidence: of its facts, for comparison.md and tests.csv; None: there is none.

    Returns:
        The files.
    """
    table, plots = methods_table(comparison, metrics), comparison_plots(comparison)
    tested = evidence if evidence and evidence.findings else None
    ahead = [ahead_text(comparison, tested), ""] if tested else []
    intervals = {"intervals": intervals_table(tested)} if tested else {}
    spans = [part for found in intervals.values() for part in ("", found.markdown())]
    texts = {
        "json": comparison.model_dump_json(indent=2, by_alias=True) + "\n",
        "csv": figures_csv(comparison),
        "md": "\n".join([*ahead, table.markdown(), *spans]) + "\n",
        "html": render_comparison(comparison, plots, metrics),
    }
    files = []
    for kind, text in texts.items():
        files.append(folder / f"comparison.{kind}")
        write_file(files[-1], text)
    if tested:
        files.append(folder / "tests.csv")
        write_file(files[-1], findings_csv(tested))
    narrow = {"methods": methods_in_short(comparison, metrics), "intervals": INTERVALS_IN_SHORT}
    write_paper(folder / "comparison.html", {"methods": table, **intervals}, plots, narrow)
    return files


def ahead_text(comparison: Comparison, evidence: Evidence) -> str:
    """Where other methods are ahead of the first one: `better_text`, then what is untested.

    Of what models answer themselves only means are kept, not the figures of each fact.
    """
    rows = {row.method: row for row in comparison.rows}
    lines = []
    for name in _ANSWERS:
        known = {
            method: spread.mean for method, row in rows.items() if (spread := row.figure(name))
        }
        ours = known.get(evidence.ours)
        if ours is None:
            continue
        those = sorted(
            ((mean - ours, method) for method, mean in known.items() if mean and mean > ours),
            reverse=True,
        )
        names = [f"{method} +{difference:.3f}" for difference, method in those]
        lines.append(f"- {words(name)}: {'; '.join(names) or 'none'}")
    if lines:
        lines.insert(0, "In the models' own answers, without a test:")
    return "\n".join([better_text(evidence), *lines])


def _run(planned: PlannedRun, reason: str) -> ComparedRun:
    run = ComparedRun(
        name=planned.name,
        strategy=planned.strategy,
        editor=planned.editor,
        seed=planned.seed,
        value=planned.value,
        status="failed" if reason else "missing",
        reason=reason,
    )
    if what_is_left(planned) is not Todo.DONE:
        return run
    results = load_results(planned.folder / "results.json")
    found = {
        "status": "completed",
        "measured": {scope: part for scope, part in results.summary if scope != "before"},
        "before": results.summary.before,
        "slots": list(map(_means, results.slots)),
        "costs": _costs(results),
        "failed_nodes": len(results.failed),
    }
    return run.model_copy(update=found)


def _means(slot: SlotResult) -> SlotMeans:
    nodes = slot.nodes.values()
    return SlotMeans(
        slot=slot.slot,
        own=mean_metrics(node.own for node in nodes),
        federation=mean_metrics(node.federation for node in nodes),
    )


def _costs(results: Results) -> dict[str, int | float]:
    """All slots' counts and bytes together, and seconds."""
    totals = results.totals
    costs = {name: getattr(totals, name) for name in NUMBERS}
    costs |= {f"{stage}_seconds": getattr(totals.seconds, stage) for stage in STAGES}
    return {**costs, "seconds": results.seconds.total}


def _counterpart(
    run: ComparedRun, editor: str, runs: Iterable[ComparedRun], strategy: str
) -> ComparedRun | None:
    """The run of a plain strategy with an editor and the same seed and value."""
    same = (strategy, editor, run.seed, run.value)
    for other in runs:
        if (other.strategy, other.editor, other.seed, other.value) == same:
            return other
    return None


def _ratio(run: ComparedRun, other: ComparedRun | None) -> float | None:
    """A run's federation score as a multiple of another's; None if one is not known, or 0."""
    if other is None:
        return None
    score, of = value_of(run.federation, "score"), value_of(other.federation, "score")
    return None if score is None or not of else score / of


def _groups(runs: Iterable[ComparedRun]) -> list[list[ComparedRun]]:
    """The runs that differ in their seed alone, in the order of the plan."""
    groups: dict[tuple[object, ...], list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault((run.editor, run.value, run.strategy), []).append(run)
    return list(groups.values())


def _row(group: Sequence[ComparedRun]) -> Row:
    first, done = group[0], [run for run in group if run.status == "completed"]
    return Row(
        strategy=first.strategy,
        editor=first.editor,
        value=first.value,
        runs=len(group),
        completed=len(done),
        failed=[run.name for run in group if run.status == "failed"],
        failed_nodes=sum(run.failed_nodes for run in done),
        measured=_of_scopes([run.measured for run in done]),
        retention=Spread.of(run.retention for run in done),
        ratio_to_fedavg=Spread.of(run.ratio_to_fedavg for run in done),
        costs=_spreads(run.costs or {} for run in done),
    )


def _unedited(runs: Sequence[ComparedRun]) -> list[Row]:
    """The unedited model, for each value of the axis; one run of a seed speaks for all."""
    rows = []
    for value in dict.fromkeys(run.value for run in runs):
        by_seed = {run.seed: run.before for run in runs if run.value == value and run.before}
        if by_seed:
            rows.append(
                Row(
                    strategy=UNEDITED,
                    editor=None,
                    value=value,
                    runs=len(by_seed),
                    completed=len(by_seed),
                    failed=[],
                    failed_nodes=0,
                    measured=_of_scopes([dict(before) for before in by_seed.values()]),
                    retention=Spread.of(()),
                    ratio_to_fedavg=Spread.of(()),
                    costs={},
                )
            )
    return rows


def _of_scopes(
    records: Sequence[Mapping[str, BaseModel | None]],
) -> dict[str, dict[str, Spread]]:
    """Scope -> figure -> its spread."""
    scopes = dict.fromkeys(scope for record in records for scope in record)
    found: dict[str, list[dict[str, object]]] = {scope: [] for scope in scopes}
    for record in records:
        for scope, figures in figures_by_scope(record).items():
            found.setdefault(scope, []).append(figures)
    return {scope: _spreads(parts) for scope, parts in found.items()}


def _spreads(records: Iterable[Mapping[str, object]]) -> dict[str, Spread]:
    """The spread of every number in some records."""
    known = list(records)
    names = dict.fromkeys(
        name for record in known for name, value in record.items() if isinstance(value, int | float)
    )
    found: dict[str, list[float | None]] = {name: [] for name in names}
    for record in known:
        for name in names:
            value = record.get(name)
            found[name].append(value if isinstance(value, int | float) else None)
    return {name: Spread.of(values) for name, values in found.items()}
