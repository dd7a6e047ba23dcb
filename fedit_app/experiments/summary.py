"""What the runs of a comparison say together: `comparison.json` (described in docs/compare.md)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedit_app.experiments.plan import Plan, PlannedRun
from fedit_app.experiments.runner import Todo, what_is_left
from fedit_app.report import load_results, mean_metrics
from fedit_app.report.figures import value_of

SCHEMA = 1
UNEDITED = "unedited"
_CENTRAL, _FEDAVG = "central", "fedavg"
_NO_COUNTS = ("slot", "complete")
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
        **dict.fromkeys(("before", "slots", "costs")),
        "measured": {},
        "failed_nodes": 0,
    }
    folder = Path(str(planned.values["output-dir"]))
    todo = what_is_left(planned)
    if todo is not Todo.DONE:
        return {**run, "status": "failed" if reason else "missing"}
    results = load_results(folder / "results.json")
    summary = results["summary"]
    return {
        **run,
        "measured": {scope: found for scope, found in summary.items() if scope != "before"},
        "before": summary["before"],
        "slots": [_slot(slot) for slot in results["slots"]],
        "costs": _costs(results),
        "failed_nodes": len({failure["node"] for failure in results["failed_nodes"]}),
    }


def _slot(slot: Record) -> Record:
    nodes = list(slot["nodes"].values())
    scopes = ("own", "federation")
    return {
        "slot": slot["slot"],
        **{scope: mean_metrics([node[scope] for node in nodes]) for scope in scopes},
    }


def _costs(results: Record) -> Record:
    """All slots' counts and bytes together, and seconds."""
    slots = results["slots"]
    names = [name for name, count in slots[0].items() if isinstance(count, int)]
    costs: Record = {
        name: sum(slot[name] for slot in slots) for name in names if name not in _NO_COUNTS
    }
    for stage in _STAGES:
        costs[f"{stage}_seconds"] = sum(slot["seconds"][stage] or 0 for slot in slots)
    costs["seconds"] = results["seconds"]["total"]
    return costs


def _groups(runs: Sequence[Record]) -> list[list[Record]]:
    """The runs that differ in their seed alone, in the order of the plan."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for run in runs:
        run["retention"] = _ratio(run, _counterpart(run, runs, _CENTRAL))
        run["ratio_to_fedavg"] = _ratio(run, _counterpart(run, runs, _FEDAVG))
        groups.setdefault((run["editor"], run["value"], run["strategy"]), []).append(run)
    return list(groups.values())


def _counterpart(run: Record, runs: Sequence[Record], strategy: str) -> Record | None:
    """The run of a plain strategy with the same editor, seed and value."""
    same = ("editor", "seed", "value")
    for other in runs:
        if other["strategy"] == strategy and all(other[key] == run[key] for key in same):
            return other
    return None


def _ratio(run: Record, other: Record | None) -> float | None:
    """A run's federation score as a multiple of another's; None if one is not known, or 0."""
    if other is None:
        return None
    score, of = (value_of(r["measured"].get("federation"), "score") for r in (run, other))
    return None if score is None or not of else score / of


def _row(group: Sequence[Record]) -> Record:
    first, done = group[0], [run for run in group if run["status"] == "completed"]
    return {
        **{key: first[key] for key in ("strategy", "editor", "value")},
        "runs": len(group),
        "completed": len(done),
        "failed": [run["name"] for run in group if run["status"] == "failed"],
        "failed_nodes": sum(run["failed_nodes"] for run in done),
        "measured": _of_scopes([run["measured"] for run in done]),
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
        rows.append(
            {
                **{"strategy": UNEDITED, "editor": None, "value": value},
                **{"runs": len(by_seed), "completed": len(by_seed), "failed": []},
                "failed_nodes": 0,
                "measured": _of_scopes(list(by_seed.values())),
                **{"retention": spread(()), "ratio_to_fedavg": spread(()), "costs": {}},
            }
        )
    return rows


def _of_scopes(records: Sequence[Record]) -> dict[str, Record]:
    scopes = dict.fromkeys(scope for record in records for scope in record)
    return {scope: _of_records(record.get(scope) for record in records) for scope in scopes}


def figure_of(row: Record, name: str) -> Record | None:
    """Mean and spread of a figure of a row; None where it was not measured.

    Args:
        row: of a comparison.
        name: `SCOPE.METRIC`, such as `own.score`; without a scope, of the federation's facts.
    """
    scope, _, metric = name.rpartition(".")
    found = row["measured"].get(scope or "federation", {}).get(metric)
    return found if found and found["mean"] is not None else None


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
