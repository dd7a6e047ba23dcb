"""What the runs of a comparison say together: `comparison.json` (described in docs/compare.md)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedit_app.comparison.plan import Plan, PlannedRun
from fedit_app.comparison.runner import Todo, what_is_left
from fedit_app.reporting import load_results, mean_metrics
from fedit_app.reporting.metrics import value_of

SCHEMA = 1
UNEDITED = "unedited"
SCOPES = ("own", "federation")
_CENTRAL, _FEDAVG = "central", "fedavg"
_COUNTS = (
    *("requests", "optimised", "cached", "reused", "uploaded", "offered", "accepted", "rejected"),
    *("conflicts", "bytes_up", "bytes_down"),
)
_STAGES = ("edit", "reedit", "evaluate")

Record = dict[str, Any]


def summarise(plan: Plan, failures: Mapping[str, str]) -> Record:
    """All runs of a comparison and their means.

    Args:
        plan: the comparison.
        failures: name of a run that failed just now -> why.

    Returns:
        What `comparison.json` holds.
    """
    runs = [_run(run, failures.get(run.name, "")) for run in plan.runs]
    rows = [_row(group) for group in _groups(runs)]
    return {
        "schema": SCHEMA,
        **{key: value for key, value in plan.as_dict().items() if key != "version"},
        "runs": runs,
        "rows": [*_unedited(runs), *rows],
    }


def _run(planned: PlannedRun, reason: str) -> Record:
    run: Record = {
        "name": planned.name,
        "strategy": planned.strategy,
        "editor": planned.editor,
        "seed": planned.seed,
        "value": planned.value,
        "status": "completed",
        "reason": reason,
        **dict.fromkeys((*SCOPES, "before", "slots", "costs")),
        "failed_nodes": 0,
    }
    folder = Path(str(planned.values["output-dir"]))
    todo = what_is_left(planned)
    if todo is not Todo.DONE:
        return {**run, "status": "failed" if reason else "missing"}
    results = load_results(folder / "results.json")
    return {
        **run,
        **{scope: results["summary"][scope] for scope in SCOPES},
        "before": results["summary"]["before"],
        "slots": [_slot(slot) for slot in results["slots"]],
        "costs": _costs(results),
        "failed_nodes": len({failure["node"] for failure in results["failed_nodes"]}),
    }


def _slot(slot: Record) -> Record:
    nodes = list(slot["nodes"].values())
    means = {scope: mean_metrics([node[scope] for node in nodes]) for scope in SCOPES}
    return {"slot": slot["slot"], **means}


def _costs(results: Record) -> Record:
    slots = results["slots"]
    costs: Record = {name: sum(slot.get(name, 0) for slot in slots) for name in _COUNTS}
    for stage in _STAGES:
        costs[f"{stage}_seconds"] = sum(slot["seconds"][stage] or 0 for slot in slots)
    costs["seconds"] = results["seconds"]["total"]
    return costs


def _groups(runs: Sequence[Record]) -> list[list[Record]]:
    """The runs that differ in their seed alone, in the order of the plan."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for run in runs:
        _, reference = _reference(run, runs, _CENTRAL)
        _, averaged = _reference(run, runs, _FEDAVG)
        score = value_of(run["federation"], "score")
        run["retention"] = _ratio(score, reference)
        run["ratio_to_fedavg"] = _ratio(score, averaged)
        groups.setdefault((run["editor"], run["value"], run["strategy"]), []).append(run)
    return list(groups.values())


def _reference(
    run: Record, runs: Sequence[Record], strategy: str
) -> tuple[Record | None, float | None]:
    """The run of a plain strategy that a run is compared with, and its federation score."""
    same = ("editor", "seed", "value")
    for other in runs:
        if other["strategy"] == strategy and all(other[key] == run[key] for key in same):
            return other, value_of(other["federation"], "score")
    return None, None


def _ratio(score: float | None, reference: float | None) -> float | None:
    return None if score is None or not reference else score / reference


def _row(group: Sequence[Record]) -> Record:
    first, done = group[0], [run for run in group if run["status"] == "completed"]
    return {
        **{key: first[key] for key in ("strategy", "editor", "value")},
        "runs": len(group),
        "completed": len(done),
        "failed": [run["name"] for run in group if run["status"] == "failed"],
        **{scope: _of_records(run[scope] for run in done) for scope in SCOPES},
        "retention": spread(run["retention"] for run in done),
        "ratio_to_fedavg": spread(run["ratio_to_fedavg"] for run in done),
        "costs": _of_records(run["costs"] for run in done),
    }


def _unedited(runs: Sequence[Record]) -> list[Record]:
    """The unedited model, for each value of the axis; one run of a seed speaks for all."""
    rows = []
    for value in dict.fromkeys(run["value"] for run in runs):
        by_seed = {
            run["seed"]: run["before"]
            for run in runs
            if run["value"] == value and run["before"] is not None
        }
        if not by_seed:
            continue
        row = {"strategy": UNEDITED, "editor": None, "value": value, "runs": len(by_seed)}
        records = list(by_seed.values())
        means = {scope: _of_records(record[scope] for record in records) for scope in SCOPES}
        empty = spread(())
        rows.append(
            {
                **row,
                "completed": len(by_seed),
                "failed": [],
                **means,
                "retention": empty,
                "ratio_to_fedavg": empty,
                "costs": {},
            }
        )
    return rows


def _of_records(records: Iterable[Record | None]) -> Record:
    """Mean and spread of every number in some records, whatever it is called."""
    known = [record for record in records if record is not None]
    names = dict.fromkeys(
        name
        for record in known
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    return {name: spread(record.get(name) for record in known) for name in names}


def spread(values: Iterable[float | None]) -> Record:
    """Mean, sample standard deviation and number of those values that are known.

    Returns:
        `mean` (None without any), `sd` (None with fewer than two), `n`.
    """
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "sd": statistics.stdev(known) if len(known) > 1 else None,
        "n": len(known),
    }
