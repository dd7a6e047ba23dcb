"""The journal of a ledger: every change ever made to it, each record chained to the one before.

A record is a line of JSON. Its `hash` covers all of its other fields, among them `previous`, the
hash of the record before, so none can be changed, removed or inserted without breaking the chain.

The index of the ledger, which is replaced in one step, names the journal's head: how many records
count, how many bytes they take, and the last hash. Records after the head are left over from an
interrupted step, and the next step cuts them off. So a step of many changes counts as a whole or
not at all, and reading a ledger replays at most what has changed since its index was written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from fedit_app.ledger.entries import AS_WRITTEN, LedgerEntry, Refusal
from fedit_app.support.errors import FedEditError

Fields = dict[str, Any]
"""Fields of an entry or a refusal, see `EntryFields` and `RefusalFields`."""


class Change(TypedDict):
    """A record without its place in the chain.

    Attributes:
        change: accepted, dropped, refused, allowed, overruled, holds, or the field that changes.
        mkv: id of the MKV.
        node: the node that computed it.
        slot: the time slot.
        reason: see `Step`.
        set: new values of fields.
        probes: see `Step`.
    """

    change: str
    mkv: str
    node: str
    slot: int
    reason: str
    set: Fields
    probes: dict[str, Any] | None


@with_config(AS_WRITTEN)
class Record(Change):
    """A record: a change, its time (UTC), and its place in the chain."""

    sequence: int
    time: str
    previous: str
    hash: str


_RECORD = TypeAdapter(Record)
_TAIL = 2**16


@with_config(AS_WRITTEN)
@dataclass(frozen=True)
class Head:
    """Up to where a journal counts.

    Attributes:
        records: number of records.
        bytes: what they take.
        hash: of the last one; of the beginning if there is none.
    """

    records: NonNegativeInt
    bytes: NonNegativeInt
    hash: str


@dataclass(frozen=True)
class State:
    """A ledger at one moment: its entries and its refusals by id."""

    entries: Mapping[str, LedgerEntry]
    refused: Mapping[str, Refusal]


@dataclass
class Step:
    """What the records of one step have in common.

    Attributes:
        reason: the stage of a run, or who withdrew or rolled back.
        slot: the time slot; 0: the one in which the MKV was accepted.
        probes: metrics `before` and `after` on the node's probes, if they were measured; every
            record of an acceptance has them.
    """

    reason: str = ""
    slot: int = 0
    probes: dict[str, Any] | None = None


def beginning(fingerprint: str) -> Head:
    """The head of a journal without records; every fingerprint has a chain of its own."""
    return Head(0, 0, hashlib.sha256(f"fedit ledger {fingerprint}".encode()).hexdigest())


def changes(before: State, after: State, step: Step) -> list[Change]:
    """What turns one state into another, in an order that depends on nothing else.

    Args:
        before: the ledger as it was.
        after: the ledger as it will be.
        step: what the records have in common.
    """
    found: list[Change] = []

    def note(change: str, id_: str, node: str, slot: int, fields: Mapping[str, Any]) -> None:
        found.append(
            {
                "change": change,
                "mkv": id_,
                "node": node,
                "slot": step.slot or slot,
                "reason": step.reason,
                "set": dict(fields),
                "probes": step.probes if change == "accepted" else None,
            }
        )

    for id_ in sorted(before.entries.keys() - after.entries.keys()):
        gone = before.entries[id_]
        note("dropped", id_, gone.mkv.node, gone.slot, {})
    for id_ in sorted(before.refused.keys() - after.refused.keys()):
        note("allowed", id_, before.refused[id_].node, 0, {})
    for id_, refusal in sorted(after.refused.items()):
        if before.refused.get(id_) != refusal:
            note("refused", id_, refusal.node, 0, refusal.fields())
    # Entries are replaced when they change, so that the same object says the same.
    touched = {i: e for i, e in after.entries.items() if before.entries.get(i) is not e}
    for id_, entry in sorted(touched.items()):
        old = before.entries.get(id_)
        if old is None:
            note("accepted", id_, entry.mkv.node, entry.slot, entry.fields())
            continue
        known: Fields = {**old.fields()}
        for name, value in entry.fields().items():
            if known.get(name) != value:
                change = {"overruled_by": "overruled" if value else "holds"}.get(name, name)
                note(change, id_, entry.mkv.node, entry.slot, {name: value})
    return found


def extend(file: Path, head: Head, found: Iterable[Change]) -> Head:
    """Write changes after the head; they count once the index names the new head.

    Args:
        file: the journal.
        head: up to where it counts; what follows is cut off.
        found: as `changes` returns them.

    Raises:
        FedEditError: the journal is shorter than its head says.
    """
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    sequence, last, lines = head.records, head.hash, []
    for change in found:
        sequence += 1
        full = {"sequence": sequence, "time": time, **change, "previous": last}
        last = _hash(full)
        lines.append(_canonical({**full, "hash": last}) + b"\n")
    with file.open("r+b" if file.exists() else "w+b") as stream:
        if stream.seek(0, os.SEEK_END) < head.bytes:
            raise FedEditError(_shorter(file, head))
        stream.truncate(head.bytes)
        stream.seek(head.bytes)
        stream.writelines(lines)
        stream.flush()
        os.fsync(stream.fileno())
    return Head(sequence, head.bytes + sum(map(len, lines)), last)


def require_head(file: Path, head: Head) -> None:
    """Check that a journal reaches its head and ends there with the right hash.

    Raises:
        FedEditError: it does not.
    """
    if not head.records:
        return
    try:
        last = json.loads(_last_line(file, head))
        sound = last["hash"] == head.hash and last["sequence"] == head.records
    except (ValueError, IndexError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise FedEditError(
            f"ledger journal {file}: record {head.records} is not the one that the index names; "
            "see `fedit ledger verify`, and restore a backup"
        )


def read(file: Path, head: Head, fingerprint: str) -> list[Record]:
    """The records of a journal, its chain checked.

    Args:
        file: the journal.
        head: up to where it counts.
        fingerprint: the ledger's.

    Raises:
        FedEditError: the journal is damaged; names the first damage.
    """
    records: list[Record] = []
    for found in examined(file, head, fingerprint):
        if isinstance(found, str):
            raise FedEditError(found)
        records.append(found)
    return records


def examined(
    file: Path, head: Head, fingerprint: str, begin: Head | None = None
) -> Iterator[Record | str]:
    """Every record of a journal that can be read, and a sentence for every damage found.

    Args:
        file: the journal.
        head: up to where it counts.
        fingerprint: the ledger's.
        begin: an earlier head, after which to begin; None: the beginning.
    """
    start = begin or beginning(fingerprint)
    try:
        lines = _counted(file, head, start.bytes).splitlines() if head.records else []
    except FedEditError as error:
        yield str(error)
        lines = file.read_bytes()[start.bytes :].splitlines() if file.exists() else []
    previous = start.hash
    for number, line in enumerate(lines, start=start.records + 1):
        record = _parsed(line)
        if record is None:
            yield f"ledger journal {file}: record {number} cannot be read"
            previous = ""
            continue
        hash_ = record["hash"]
        if hash_ != _hash({name: value for name, value in record.items() if name != "hash"}):
            yield f"ledger journal {file}: record {number} was changed: its hash does not match"
        elif previous and record["previous"] != previous:
            yield f"ledger journal {file}: record {number} does not follow the one before it"
        elif record["sequence"] != number:
            yield f"ledger journal {file}: record {number} has number {record['sequence']}"
        yield record
        previous = hash_
    count = start.records + len(lines)
    if (lines or begin) and (count, previous) != (head.records, head.hash):
        yield (
            f"ledger journal {file}: {count} records found, the last with hash "
            f"{previous[:12]}; the index names {head.records}, the last with {head.hash[:12]}"
        )


def surplus(file: Path, head: Head) -> int:
    """Bytes after the head: left over from an interrupted step, or written after an old index."""
    return max(0, file.stat().st_size - head.bytes) if file.exists() else 0


def replay(
    records: Iterable[Change],
    entries: dict[str, Fields] | None = None,
    refused: dict[str, Fields] | None = None,
) -> tuple[dict[str, Fields], dict[str, Fields]]:
    """The rows of entries and refusals by id that the changes lead to.

    Args:
        records: the changes.
        entries, refused: the rows before them, which are changed; None: none.

    Raises:
        KeyError: a change is of an MKV that is not there.
    """
    entries, refused = entries or {}, refused or {}
    for record in records:
        id_, fields = record["mkv"], record["set"]
        row = {"id": id_, "node": record["node"], **fields}
        if record["change"] == "accepted":
            entries[id_] = row
        elif record["change"] == "dropped":
            del entries[id_]
        elif record["change"] == "refused":
            refused[id_] = row
        elif record["change"] == "allowed":
            del refused[id_]
        else:
            entries[id_] = {**entries[id_], **fields}
    return entries, refused


def _last_line(file: Path, head: Head) -> bytes:
    """The last line of a journal before its head, without reading the others."""
    if not file.exists() or file.stat().st_size < head.bytes:
        return _counted(file, head)
    end = b""
    with file.open("rb") as stream:
        while end.count(b"\n") < 2 and len(end) < head.bytes:
            size = min(max(_TAIL, 2 * len(end)), head.bytes)
            stream.seek(head.bytes - size)
            end = stream.read(size)
    return end.rsplit(b"\n", 2)[-2]


def _counted(file: Path, head: Head, begin: int = 0) -> bytes:
    """The bytes of a journal from one of them up to its head."""
    try:
        if file.stat().st_size < head.bytes:
            raise FedEditError(_shorter(file, head))
        with file.open("rb") as stream:
            stream.seek(begin)
            return stream.read(max(0, head.bytes - begin))
    except OSError as error:
        raise FedEditError(f"ledger journal {file}: cannot be read ({error.strerror})") from None


def _shorter(file: Path, head: Head) -> str:
    return (
        f"ledger journal {file}: shorter than the {head.bytes} bytes that the index names; restore "
        "a backup"
    )


def _parsed(line: bytes) -> Record | None:
    try:
        return _RECORD.validate_json(line)
    except ValidationError:
        return None


def _canonical(record: Mapping[str, object]) -> bytes:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _hash(record: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical(record)).hexdigest()
