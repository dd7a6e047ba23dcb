"""`fedit ledger list` and `show`: what a ledger holds, and how it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedit_app.cli.places import Place
from fedit_app.ledger.journal import Record
from fedit_app.ledger.ledger import Ledger
from fedit_app.report.table import plain_table
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import NOT_MEASURED, plural, printable, share

_SHORT = 16


def listing(place: Place) -> str:
    """Every entry and every refused MKV, a line each, by slot, origin and id.

    Args:
        place: where the ledger is.
    """
    ledger = place.open()
    records = ledger.history()
    accepted = {record["mkv"]: record for record in records if record["change"] == "accepted"}
    rows = [
        (
            entry.slot,
            entry.mkv.node,
            id_,
            accepted[id_]["time"],
            "yes" if entry.mkv.author else "no",
            f"no: {entry.overruled_by[:_SHORT]} does" if entry.overruled_by else "yes",
            _probes(accepted[id_]["probes"]),
        )
        for id_, entry in ledger.entries.items()
    ]
    columns = ("slot", "origin", "id", "accepted", "signed", "holds", "score on probes")
    refused = [
        (refusal.node, id_, refusal.reason) for id_, refusal in sorted(ledger.refused.items())
    ]
    parts = [
        f"{_owner(place)}{plural(len(ledger.entries), 'MKV')}, of which {len(ledger):,} hold; "
        f"{plural(len(records), 'record')} in the journal, head {ledger.head}",
        plain_table(columns, sorted(rows)),
    ]
    if refused:
        parts += ["Not to be accepted again:", plain_table(("origin", "id", "why"), refused)]
    return "\n\n".join(parts) + "\n"


def _owner(place: Place) -> str:
    return f"node {printable(place.node)}: " if place.node else ""


def _probes(probes: Mapping[str, Any] | None) -> str:
    """What the step that accepted an MKV changed, in one cell."""
    if probes is None:
        return NOT_MEASURED
    return f"{share(probes['before']['score'])} -> {share(probes['after']['score'])}"


def show(place: Place, beginning: str) -> str:
    """One MKV: where it comes from, what it does here, its vectors and its history.

    Args:
        place: where the ledger is.
        beginning: its id, or as much of its beginning as no other has.
    """
    ledger = place.open()
    records = ledger.history()
    id_ = only_id({record["mkv"] for record in records}, beginning)
    history = [record for record in records if record["mkv"] == id_]
    lines = [f"id           {id_}", f"origin       {printable(history[-1]['node'])}"]
    lines += _state(ledger, id_)
    lines += ["", "History:", "", _history(history)]
    measured = [record for record in history if record["probes"]]
    for record in measured[-1:]:
        lines += [
            "",
            f"On the node's probes, by the {printable(record['reason'])} of slot {record['slot']}:",
            "",
            metrics_table([("probes", record["probes"]["before"], record["probes"]["after"])]),
        ]
    return "\n".join(lines) + "\n"


def _state(ledger: Ledger, id_: str) -> list[str]:
    entry = ledger.entries.get(id_)
    if entry is None:
        refusal = ledger.refused.get(id_)
        return [f"here         no: {printable(refusal.reason) if refusal else 'taken out'}"]
    holds = f"overruled by {entry.overruled_by}" if entry.overruled_by else "it holds"
    author = entry.mkv.author
    signed = f"with key {printable(author.public_key)}" if author else "no"
    lengths = [float(np.linalg.norm(shift)) for shift in entry.mkv.shifts]
    return [
        f"computed     in slot {entry.mkv.slot}",
        f"accepted     in slot {entry.slot}",
        f"fingerprint  {printable(entry.mkv.fingerprint)}",
        f"precision    {entry.mkv.precision}",
        f"signed       {signed}",
        f"here         {holds}",
        f"requests     {printable(', '.join(entry.requests)) or 'none of its own node'}",
        f"votes        {entry.votes}",
        f"shifts       {', '.join(f'{length:.3g}' for length in lengths)} long, layer by layer",
    ]


def _history(history: Sequence[Record]) -> str:
    rows = [
        (record["sequence"], record["time"], record["slot"], record["change"], _said(record))
        for record in history
    ]
    return plain_table(("record", "time", "slot", "change", "what"), rows)


def _said(record: Record) -> str:
    """A record's reason and what it sets, in words."""
    fields = record["set"]
    parts = [record["reason"]] if record["reason"] else []
    if fields.get("overruled_by"):
        parts.append(f"by {fields['overruled_by'][:_SHORT]}")
    if "requests" in fields:
        parts.append(f"fulfils {', '.join(fields['requests']) or 'no own request'}")
    if record["change"] == "votes":
        parts.append(str(fields["votes"]))
    return "; ".join(parts)


def metrics_table(rows: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Metrics before and after.

    Args:
        rows: what was asked, metrics before, metrics after.
    """
    names = ("efficacy", "paraphrase", "neighborhood", "score")
    cells = [
        (what, before["count"], *(f"{share(before[n])} -> {share(after[n])}" for n in names))
        for what, before, after in rows
    ]
    return plain_table(("", "facts", *names), cells)


def only_id(ids: set[str], beginning: str) -> str:
    """The one id with this beginning.

    Raises:
        FedEditError: there is none, or more than one.
    """
    found = [id_ for id_ in ids if beginning and id_.startswith(beginning)]
    if len(found) != 1:
        count = f"{len(found):,} MKVs" if found else "no MKV"
        raise FedEditError(
            f"ledger: {count} with an id that begins with {beginning!r}; "
            + ("give more of it" if found else "`fedit ledger list` shows what there is")
        )
    return found[0]
