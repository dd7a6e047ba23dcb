"""`fedit ledger`: what a node's ledger holds, how it came to, and whether it is sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedit_app.cli.options import Federation, Node, Place, only_id
from fedit_app.cli.output import Format, FormatOption, Part, write, write_findings
from fedit_app.support.formats import byte_size, printable
from fedit_app.support.tables import Cell, Change, Shown, Table

if TYPE_CHECKING:
    from fedit_app.ledger.journal import Record
    from fedit_app.ledger.ledger import Ledger

_SHORT = 16
_PARTS = (
    *("efficacy", "paraphrase", "neighborhood"),
    *("other_relations", "subject_fidelity", "score"),
)
_WHERE_KNOWN = (
    *("portability", "reversal"),
    *("wild_match", "chat_match", "paraphrase_chat_match"),
)

app = typer.Typer(
    name="ledger",
    help="Look at a node's ledger, check it.",
    no_args_is_help=True,
    suggest_commands=False,
)


@app.command("list")
def list_(
    place: Place, node: Node = "", federation: Federation = "", form: FormatOption = Format.AUTO
) -> None:
    """List the MKVs by slot, origin and id, and those that are not accepted again."""
    from fedit_app.cli.places import find_place

    found = find_place(place, node, federation)
    ledger = found.open()
    records = ledger.history()
    accepted = {record["mkv"]: record for record in records if record["change"] == "accepted"}
    rows = [
        (
            entry.slot,
            entry.mkv.node,
            id_,
            _time(accepted[id_]),
            entry.mkv.author is not None,
            f"no: {entry.overruled_by[:_SHORT]} does" if entry.overruled_by else "yes",
            _probe_change(accepted[id_]["probes"]),
        )
        for id_, entry in sorted(
            ledger.entries.items(), key=lambda item: (item[1].slot, item[1].mkv.node, item[0])
        )
    ]
    refused = [(r.node, id_, r.reason) for id_, r in sorted(ledger.refused.items())]
    columns = ("slot", "origin", "id", "accepted", "signed", "holds", "score on probes")
    parts: dict[str, Part] = {
        "ledger": {
            "node": found.node,
            "MKVs held": len(ledger.entries),
            "holding": len(ledger),
            "records in the journal": len(records),
            "head of the journal": ledger.head,
        },
        "mkvs": Table(columns, rows, code=("id",)),
    }
    if refused:
        parts["title"] = "Not accepted again:"
        parts["refused"] = Table(("origin", "id", "why"), refused, code=("id",))
    write(parts, form)


def _time(record: Record) -> Shown:
    """When a record was made, to the minute."""
    return Shown(record["time"], record["time"][:16].replace("T", " "), right=False)


def _probe_change(probes: Mapping[str, Any] | None) -> Cell:
    """What the step that accepted an MKV changed on the node's probes."""
    return Change(probes["before"]["score"], probes["after"]["score"]) if probes else None


@app.command()
def show(
    place: Place,
    id_: Annotated[str, typer.Argument(metavar="ID", help="Its id, or the beginning of it.")],
    node: Node = "",
    federation: Federation = "",
    form: FormatOption = Format.AUTO,
) -> None:
    """Show one MKV and its history."""
    from fedit_app.cli.places import find_place

    ledger = find_place(place, node, federation).open()
    records = ledger.history()
    id_ = only_id({record["mkv"] for record in records}, id_, "ledger")
    history = [record for record in records if record["mkv"] == id_]
    parts: dict[str, Part] = {
        "mkv": {"id": id_, "origin": history[-1]["node"], **_state(ledger, id_)},
        "history": Table(
            ("record", "time", "slot", "change", "what"),
            [(r["sequence"], _time(r), r["slot"], r["change"], _said(r)) for r in history],
        ),
    }
    measured = [(record, probes) for record in history if (probes := record["probes"])]
    for record, probes in measured[-1:]:
        step = f"{printable(record['reason'])} of slot {record['slot']}"
        parts["title"] = f"On the node's probes, by the {step}:"
        parts["probes"] = metrics_table([("probes", probes["before"], probes["after"])])
    write(parts, form)


def _state(ledger: Ledger, id_: str) -> dict[str, Cell]:
    import numpy as np

    entry = ledger.entries.get(id_)
    if entry is None:
        refusal = ledger.refused.get(id_)
        return {"here": f"no: {refusal.reason if refusal else 'taken out'}"}
    author = entry.mkv.author
    lengths = [f"{float(np.linalg.norm(shift)):.3g}" for shift in entry.mkv.shifts]
    return {
        "computed in slot": entry.mkv.slot,
        "accepted in slot": entry.slot,
        "fingerprint": entry.mkv.fingerprint,
        "precision": entry.mkv.precision,
        "signed": f"with key {author.public_key}" if author else "no",
        "here": f"overruled by {entry.overruled_by}" if entry.overruled_by else "it holds",
        "own requests": ", ".join(entry.requests) or "none",
        "supersedes": ", ".join(entry.supersedes) or "none",
        "votes": entry.votes,
        "lengths of the shifts": ", ".join(lengths),
    }


def _said(record: Record) -> str:
    """A record's reason and what it sets, in words."""
    fields = record["set"]
    parts = [record["reason"]] if record["reason"] else []
    if fields.get("overruled_by"):
        parts.append(f"by {fields['overruled_by'][:_SHORT]}")
    if fields.get("supersedes"):
        parts.append(f"supersedes {', '.join(id_[:_SHORT] for id_ in fields['supersedes'])}")
    if "requests" in fields:
        parts.append(f"fulfils {', '.join(fields['requests']) or 'no own request'}")
    if record["change"] == "votes":
        parts.append(str(fields["votes"]))
    return "; ".join(parts)


def metrics_table(rows: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> Table:
    """Metrics before and after; what follows from edits and what a model answered, where known.

    Args:
        rows: what was asked, metrics before, metrics after.
    """
    known = [
        name for name in _WHERE_KNOWN if any(after.get(name) is not None for *_, after in rows)
    ]
    names = [*_PARTS, *known]
    cells = [
        (what, before["count"], *(Change(before.get(name), after.get(name)) for name in names))
        for what, before, after in rows
    ]
    titles = [name.replace("_", " ") for name in names]
    return Table(("measured on", "facts", *titles), cells)


@app.command()
def verify(
    place: Place,
    node: Node = "",
    federation: Federation = "",
    head: Annotated[
        str,
        typer.Option(metavar="HASH", help="An earlier head, which the journal has to contain."),
    ] = "",
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="RESULTS",
            help="A run's results.json: the heads that the server has noted of this node, which "
            "the journal has to contain. A run folder's own is always compared.",
        ),
    ] = None,
    form: FormatOption = Format.AUTO,
) -> int:
    """Check all of it, and an edited model's weights; exit status 1 if it is damaged."""
    from fedit_app.cli.places import find_place
    from fedit_app.ledger.verify import verify
    from fedit_app.ledger.weights import weights_damages
    from fedit_app.mkv.node_key import key_fingerprint
    from fedit_app.support.errors import FedEditError

    chosen = find_place(place, node, federation)
    own = place / "results.json"
    source = record or (own if own.exists() else None)
    noted = _noted(source, chosen.node) if source else {}
    if record and not noted:
        raise FedEditError(f"{record}: names no head of a ledger of node {chosen.node!r}")
    known = {"--head": head} if head else {}
    found = verify(chosen.ledger, known | noted, chosen.public_key)
    more: dict[str, Cell] = {"MKVs": found.mkvs, "records": found.records, "head": found.head}
    if noted:
        more["heads noted by the server"] = len(noted)
    if found.signed_by:
        more["signed with"] = key_fingerprint(found.signed_by)
    if found.surplus:
        more["note"] = (
            f"{byte_size(found.surplus)} in the journal lie after the head that the index names: "
            "a change was interrupted (the next one cuts it off), or the index is an old copy"
        )
    if chosen.model is None:
        return write_findings(found.damages, "ledger", form, **more)
    weights = weights_damages(chosen.model, chosen.ledger, found.head)
    return write_findings([*found.damages, *weights], "edited model", form, **more)


def _noted(record: Path, node: str) -> dict[str, str]:
    """The heads that a run's server has noted of a node, by where they are noted."""
    from fedit_app.report.results import load_results

    heads = load_results(record).ledger_heads(node)
    return {f"{record}, slot {slot}": head for slot, head in heads.items()}
