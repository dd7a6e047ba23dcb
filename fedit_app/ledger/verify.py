"""Whether a ledger is what its journal says that it became."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedit_app.ledger import journal
from fedit_app.ledger.head_signature import head_problem
from fedit_app.ledger.index import JOURNAL, Index, read_stored
from fedit_app.ledger.journal import Record
from fedit_app.ledger.ledger import kept_sums
from fedit_app.ledger.mkv_files import MKVFiles
from fedit_app.mkv.authorship import is_signed_by
from fedit_app.support.errors import FedEditError


@dataclass(frozen=True)
class Verdict:
    """What a check of a ledger has found.

    Attributes:
        damages: one sentence each; none if the ledger is sound.
        mkvs: how many MKVs its index names.
        records: how many records its journal has.
        head: hash of the last of these.
        signed_by: the public key under whose signature the head stands; "" if it is not signed.
        surplus: bytes in the journal after the head: a change that was interrupted, or the index
            is older than the journal.
    """

    damages: list[str]
    mkvs: int
    records: int
    head: str
    signed_by: str
    surplus: int


def verify(
    folder: Path, known_heads: Mapping[str, str] = MappingProxyType({}), public_key: str = ""
) -> Verdict:
    """Check all of a ledger: its journal, its head, its index against the journal, its files, and
    the sums that are kept of them.

    Args:
        folder: of the ledger.
        known_heads: hashes that were the journal's head before, by who says so; the chain has to
            contain all of them.
        public_key: of the node, whose signature has to stand under the head; "": none has to.
    """
    stored = read_stored(folder)
    index = stored.index
    head, signature = index["journal"], index.get("signature")
    problem = head_problem(head, index["fingerprint"], signature, public_key)
    return Verdict(
        damages=[*([problem] if problem else []), *_damages(folder, index, known_heads)],
        mkvs=len(index["entries"]),
        records=head.records,
        head=head.hash,
        signed_by=signature["public_key"] if signature else "",
        surplus=journal.surplus(folder / JOURNAL, head),
    )


def _damages(folder: Path, index: Index, known_heads: Mapping[str, str]) -> Iterator[str]:
    records: list[Record] = []
    for found in journal.examined(folder / JOURNAL, index["journal"], index["fingerprint"]):
        if isinstance(found, str):
            yield found
        else:
            records.append(found)
    hashes = {journal.beginning(index["fingerprint"]).hash, *(one["hash"] for one in records)}
    for source, head in known_heads.items():
        if head not in hashes:
            yield (
                f"{source}: head {head} is not in the journal, which is an old copy, was cut off, "
                "or is not a continuation of the one that had it"
            )
    yield from _against_journal(index, records)
    files = MKVFiles(folder)
    for row in index["entries"]:
        yield from _against_file(files, row, index["fingerprint"])
    yield from kept_sums(folder, files).damages()


def _against_journal(index: Index, records: list[Record]) -> Iterator[str]:
    try:
        replayed = journal.replay(records)
    except (KeyError, TypeError) as error:
        yield f"ledger journal: it changes MKV {error}, which it has not accepted"
        return
    parts: dict[str, Sequence[Mapping[str, Any]]] = {
        "entries": index["entries"],
        "refused": index["refused"],
    }
    for (part, rows), expected in zip(parts.items(), replayed, strict=True):
        found = {row["id"]: row for row in rows}
        if len(found) < len(rows):
            yield f"ledger index: an id stands twice in {part}"
        for id_ in sorted(found.keys() | expected.keys()):
            if id_ not in expected:
                yield f"MKV {id_}: in the index ({part}), but not by the journal"
            elif id_ not in found:
                yield f"MKV {id_}: by the journal in the index ({part}), but not there"
            elif found[id_] != expected[id_]:
                fields = found[id_].keys() | expected[id_].keys()
                differ = [f for f in sorted(fields) if found[id_].get(f) != expected[id_].get(f)]
                yield f"MKV {id_}: the index has another {', '.join(differ)} than the journal"


def _against_file(files: MKVFiles, row: Mapping[str, Any], fingerprint: str) -> Iterator[str]:
    """The file decodes, its content has the hash that is its id, and it is of the same node."""
    try:
        mkv = files.read(row["id"])
    except FedEditError as error:
        yield f"MKV {row['id']}: {error}"
        return
    if mkv.fingerprint != fingerprint:
        yield f"MKV {row['id']}: its file is of another fingerprint, {mkv.fingerprint}"
    if mkv.node != row["node"]:
        yield f"MKV {row['id']}: its file names node {mkv.node!r}, the index {row['node']!r}"
    if (vars(mkv.author) if mkv.author else None) != row["signature"]:
        yield f"MKV {row['id']}: its file has another signature than the index"
    if mkv.author and not is_signed_by(mkv, [mkv.author.public_key]):
        yield f"MKV {row['id']}: what it carries is not a signature of this MKV"
