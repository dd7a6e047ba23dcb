"""The page of a run that goes on: who does what, and the figures so far."""

from __future__ import annotations

import functools
from datetime import UTC, datetime

from fedit_app.protocol.metrics import mean_metrics
from fedit_app.report.figures import value_of
from fedit_app.report.plots import score_plot
from fedit_app.report.progress import NodeProgress, RunProgress
from fedit_app.report.rendering import render
from fedit_app.report.results import Results, SlotResult
from fedit_app.support.formats import NOT_MEASURED, byte_size, duration, plural, share
from fedit_app.support.tables import Cell, Figure, Table

_SECONDS = 2
"""How often the page asks for news."""
_DOING = {
    "hello": "says hello",
    "before": "measures the unedited model",
    "edit": "edits",
    "reedit": "takes in MKVs of others",
    "compose": "composes values with others",
    "evaluate": "measures the edited model",
}
_COUNTS = ("requests", "optimised", "reused", "accepted", "conflicts")


def render_live(progress: RunProgress, results: Results | None, nonce: str) -> str:
    """The whole page, which keeps itself up to date by asking for `now`.

    Args:
        progress: how far the run is.
        results: of the slots that are complete; None before the nodes have agreed.
        nonce: allows the page's own script and no other.
    """
    return render(
        "live",
        _plots(results),
        title=" on ".join(filter(None, (f"FedEdit run: {progress.strategy}", progress.model))),
        nonce=nonce,
        milliseconds=1000 * _SECONDS,
        **_shown(progress, results),
    )


def render_now(progress: RunProgress, results: Results | None) -> str:
    """The part of the page that changes; see `render_live`."""
    return render("now", _plots(results), **_shown(progress, results))


def _plots(results: Results | None) -> dict[str, str]:
    return {"score": _score_plot(results.model_dump_json(by_alias=True)) if results else ""}


@functools.lru_cache(maxsize=1)
def _score_plot(results: str) -> str:
    """Drawn once for the results of a slot; the page is asked for every few seconds."""
    return score_plot(Results.model_validate_json(results))


def _shown(progress: RunProgress, results: Results | None) -> dict[str, object]:
    now = datetime.now(UTC)
    slots = results.slots if results else []
    where = f"slot {progress.slot} of {progress.slots}" if progress.slot else "before slot 1"
    names = ("FedEdit run", progress.strategy, progress.editor, progress.model)
    return {
        "eyebrow": " · ".join(filter(None, names)),
        "headline": f"{where[0].upper()}{where[1:]}: {progress.stage}",
        "status": "Running",
        "status_class": "mixed" if progress.failed_nodes else "good",
        "lead": f"{progress.answered} of {plural(progress.asked, 'node')} answered in "
        f"{duration(_since(progress.began, now))}. Last sign of life of the run "
        f"{_ago(progress.time, now)}.",
        "tiles": _tiles(progress, results),
        "nodes": _nodes(progress, now),
        "slots": Table(
            ["Slot", "Own score", "Federation score", *map(str.capitalize, _COUNTS), "Time"],
            [_slot(slot) for slot in slots],
        ),
        "failures": [
            (failure.node, failure.slot or NOT_MEASURED, failure.stage, failure.reason)
            for failure in progress.failed_nodes
        ],
    }


def _tiles(progress: RunProgress, results: Results | None) -> list[tuple[str, str, str]]:
    """Label, value and detail of the figures so far; scores are the nodes' last ones."""
    tiles = []
    for label, scope in (("Own score", "own"), ("Federation score", "federation")):
        scores = [getattr(node, scope) for node in progress.nodes.values()]
        known = [score for score in scores if score is not None]
        mean = sum(known) / len(known) if known else None
        tiles.append((label, share(mean), f"mean of {plural(len(known), 'node')}, last measured"))
    failed = len({failure.node for failure in progress.failed_nodes})
    tiles.append(("Nodes", f"{len(progress.nodes)}", f"{failed} failed in some stage"))
    if results is not None:
        totals = results.totals
        done = f"{totals.optimised - totals.cached:,} computed, {totals.reused:,} reused"
        sent = f"{byte_size(totals.bytes_up)} up, {byte_size(totals.bytes_down)} down"
        tiles.append(("Edit requests", f"{totals.requests:,}", done))
        tiles.append(("MKVs accepted", f"{totals.accepted:,}", f"of {totals.offered:,} offered"))
        tiles.append(("Traffic", byte_size(totals.bytes_up + totals.bytes_down), sent))
    return tiles


def _nodes(progress: RunProgress, now: datetime) -> Table:
    columns = ["Node", "Phase", "Last sign of life", "Own score", "Federation score"]
    rows: list[list[Cell]] = [
        [name, _phase(node), _ago(node.seen, now), Figure(node.own), Figure(node.federation)]
        for name, node in sorted(progress.nodes.items())
    ]
    return Table(columns, rows)


def _phase(node: NodeProgress) -> str:
    where = f"slot {node.slot}, " if node.slot else ""
    doing = _DOING.get(node.stage, node.stage)
    return f"{where}{doing}" if node.waiting else f"{where}has answered: {node.stage}"


def _slot(slot: SlotResult) -> list[Cell]:
    scores: list[Cell] = [
        Figure(value_of(mean_metrics(getattr(n, scope) for n in slot.nodes.values()), "score"))
        for scope in ("own", "federation")
    ]
    counts: list[Cell] = [getattr(slot, name) for name in _COUNTS]
    return [slot.slot, *scores, *counts, duration(slot.seconds.total)]


def _since(time: str, now: datetime) -> float:
    """Seconds since a time of `progress.json`; 0 for one that is to come or is none."""
    try:
        return max(0.0, (now - datetime.fromisoformat(time)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _ago(time: str | None, now: datetime) -> str:
    return NOT_MEASURED if time is None else f"{duration(round(_since(time, now)))} ago"
