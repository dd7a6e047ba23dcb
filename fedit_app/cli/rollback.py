"""`fedit rollback`: taking MKVs out of a ledger by hand."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fedit_app.cli.ledger_listing import metrics_table, only_id
from fedit_app.cli.places import Place
from fedit_app.config.run_config import RunConfig
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.metrics import aggregate
from fedit_app.evaluation.scores import score_requests
from fedit_app.facts.jsonl import read_requests
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.undo import take_out
from fedit_app.report.table import plain_table
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import plural, printable

_ROLLED_BACK = "rolled back"


def chosen(
    ledger: Ledger, beginnings: Sequence[str] = (), origin: str = "", after: int | None = None
) -> list[str]:
    """Ids of the MKVs of a ledger that are meant, by one of three ways to say it.

    Args:
        ledger: the ledger.
        beginnings: of ids.
        origin: the node that computed them.
        after: the slot after whose end they were accepted.

    Raises:
        FedEditError: there are none.
    """
    if beginnings:
        return sorted({only_id(set(ledger.entries), beginning) for beginning in beginnings})
    if origin:
        found = [id_ for id_, entry in ledger.entries.items() if entry.mkv.node == origin]
        known = sorted({entry.mkv.node for entry in ledger.entries.values()})
        have = f"it has MKVs of {', '.join(map(printable, known)) or 'nobody'}"
        what = f"--from {origin}"
    else:
        found = [id_ for id_, entry in ledger.entries.items() if entry.slot > after]
        last = max((entry.slot for entry in ledger.entries.values()), default=0)
        what, have = f"--after {after}", f"its last slot is {last}"
    if not found:
        raise FedEditError(f"{what}: no such MKV in the ledger; {have}")
    return sorted(found)


def rollback(
    place: Place, ledger: Ledger, ids: Collection[str], dry_run: bool, measure: bool
) -> str:
    """Take MKVs out: the weights are then those of a ledger that never had them.

    They are refused from then on. Those that the node has computed itself are withdrawn: the other
    nodes take them out in the next run.

    Args:
        place: where the ledger is.
        ledger: the ledger.
        ids: MKVs of it.
        dry_run: only say what would be done.
        measure: measure the model before and after, on the node's probes and requests.

    Returns:
        What was done, for the user.
    """
    history, config = ledger.history(), place.config or RunConfig()
    after = ledger.without(())
    take_out(after, ids, history, config, _ROLLED_BACK, place.node)
    lines = _what(place, ledger, after, ids)
    if measure:
        lines += ["", _metrics(place, ledger, after)]
    if dry_run:
        return "\n".join([*lines, "", "dry run: nothing was changed"]) + "\n"
    with ledger.step("rollback"):
        take_out(ledger, ids, history, config, _ROLLED_BACK, place.node)
    return "\n".join([*lines, "", f"head of the journal: {ledger.head}"]) + "\n"


def _what(place: Place, before: Ledger, after: Ledger, ids: Collection[str]) -> list[str]:
    rows = [(before.entries[id_].slot, before.entries[id_].mkv.node, id_) for id_ in sorted(ids)]
    own = [id_ for id_ in ids if after.refused[id_].withdrawn]
    freed = [id_ for id_, e in after.entries.items() if before.entries[id_] != e]
    again = [id_ for id_ in freed if before.entries[id_].overruled_by and _holds(after, id_)]
    lost = {request for id_ in ids for request in before.entries[id_].requests}
    opened = sorted(lost - after.fulfilled().keys() - after.set_aside)
    lines = [
        f"{len(ids):,} of {plural(len(before.entries), 'MKV')} taken out; {len(before):,} held "
        f"before, {len(after):,} hold now",
        "",
        plain_table(("slot", "origin", "id"), sorted(rows)),
        "",
        "None of them is accepted again, until `fedit rollback --allow ID`.",
    ]
    if again:
        lines.append(f"Overruled by them until now, and hold again: {', '.join(sorted(again))}")
    if own:
        aside = sorted({request for id_ in own for request in after.refused[id_].requests})
        lines.append(
            f"{plural(len(own), 'MKV')} of this node's own: withdrawn. The other nodes take them "
            "out in the next run in which this node takes part."
        )
        if aside:
            shown = ", ".join(map(printable, aside))
            lines.append(f"Own requests that stay unfulfilled (take them out of the data): {shown}")
    if opened:
        shown = ", ".join(map(printable, opened))
        lines.append(f"Own requests that the next run fulfils anew: {shown}")
    return lines


def _holds(ledger: Ledger, id_: str) -> bool:
    return not ledger.entries[id_].overruled_by


def _metrics(place: Place, before: Ledger, after: Ledger) -> str:
    """Metrics of both models on all that the node has to measure with, or why there are none."""
    try:
        asked = _questions(place)
        if not asked:
            return "Metrics: not measured, as this node's requests and probes are not known here."
        bench = place.workbench(before)
        old, new = (_measured(bench, ledger, asked) for ledger in (before, after))
    except FedEditError as error:
        return f"Metrics: not measured ({error})."
    return metrics_table([(what, old[what], new[what]) for what in asked])


def _questions(place: Place) -> dict[str, list[EditRequest]]:
    data = place.data()
    found = {
        "own requests": data.read() if data else [],
        "probes": read_requests(Path(place.probes)) if place.probes else [],
    }
    return {what: requests for what, requests in found.items() if requests}


def _measured(
    bench: Workbench, ledger: Ledger, asked: dict[str, list[EditRequest]]
) -> dict[str, dict[str, Any]]:
    with bench.edited(ledger) as model:
        return {
            what: metrics.model_dump()
            for what, requests in asked.items()
            if (metrics := aggregate(score_requests(model, requests)))
        }


def allow(place: Place, beginnings: Sequence[str], dry_run: bool) -> str:
    """Take the refusal of MKVs back.

    Args:
        place: where the ledger is.
        beginnings: of their ids.
        dry_run: only say what would be done.

    Returns:
        What was done, for the user.

    Raises:
        FedEditError: they were not refused.
    """
    ledger = place.open()
    ids = sorted({only_id(set(ledger.refused), beginning) for beginning in beginnings})
    own = [id_ for id_ in ids if ledger.refused[id_].withdrawn]
    lines = [f"{plural(len(ids), 'MKV')} may be accepted again: {', '.join(ids)}"]
    if len(own) < len(ids):
        lines.append("Those of other nodes come with the next run that serves them.")
    if own:
        lines.append("Those of this node are computed and uploaded anew for their requests.")
    if dry_run:
        lines.append("dry run: nothing was changed")
    else:
        with ledger.step("rollback taken back"):
            ledger.allow(ids)
    return "\n".join(lines) + "\n"
