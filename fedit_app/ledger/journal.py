"""The journal of a ledger: every change ever made to it, each record chained to the one before.

A record is a line of JSON. Its `hash` covers all of its other fields, among them `previous`, the
hash of the record before, so none can be changed, left out or put in without breaking the chain.

The index of the ledger, which is replaced in one step, names the journal's head: how many records
count, how many bytes they take, and the last hash. What lies behind the head is left of a step that
was interrupted, and is cut off by the next one. So a step of many changes counts whole or not at
all, and reading a ledger needs no replay.
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

from fedit_app.ledger.entries import LedgerEntry, Refusal
from fedit_app.support.errors import FedEditError

Record = dict[str, Any]
"""A record: sequence, time (UTC), change, mkv (id), node (its origin), slot, reason, set (fields of
the entry or refusal and their new values), probes (see `Step.probes`), previous, hash."""

_TEXTS = ("time", "change", "mkv", "node", "reason", "previous", "hash")
_FIELDS = frozenset((*_TEXTS, "sequence", "slot", "set", "probes"))


@dataclass(frozen=True)
class Head:
    """Up to where a journal counts.

    Attributes:
        records: number of records.
        bytes: what they take.
        hash: of the last one; of the beginning if there is none.
    """

    records: int
    bytes: int
    hash: str


@dataclass(frozen=True)
class State:
    """A ledger at one moment: its entries and its refusals by id."""

    entries: Mapping[str, LedgerEntry]
    refused: Mapping[str, Refusal]


@dataclass(frozen=True)
class Step:
    """What the records of one step have in common.

    Attributes:
        reason: why it is made: the stage of a run, or who withdrew or rolled back.
        slot: the time slot; 0: the one in which the MKV was accepted.
        probes: metrics `before` and `after` on the node's probes, if they were measured; they go
            with every MKV that the step accepts.
    """

    reason: str = ""
    slot: int = 0
    probes: Mapping[str, Any] | None = None


def beginning(fingerprint: str) -> Head:
    """The head of a journal without records; the chain of every fingerprint is another."""
    return Head(0, 0, hashlib.sha256(f"fedit ledger {fingerprint}".encode()).hexdigest())


def changes(before: State, after: State, step: Step) -> list[Record]:
    """What turns one state into another, one record a change, in an order that is always the same.

    Args:
        before: the ledger as it was.
        after: the ledger as it is to be.
        step: what the records have in common.

    Returns:
        Records without place and time in the chain.
    """
    found = []

    def note(change: str, id_: str, node: str, slot: int, fields: Mapping[str, Any]) -> None:
        probes = step.probes if change == "accepted" else None
        found.append(
            {
                "change": change,
                "mkv": id_,
                "node": node,
                "slot": step.slot or slot,
                "reason": step.reason,
                "set": dict(fields),
                "probes": probes,
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
    for id_, entry in sorted(after.entries.items()):
        old = before.entries.get(id_)
        if old is None:
            note("accepted", id_, entry.mkv.node, entry.slot, entry.fields())
            continue
        for name, value in entry.fields().items():
            if old.fields()[name] != value:
                change = {"overruled_by": "overruled" if value else "holds"}.get(name, name)
                note(change, id_, entry.mkv.node, entry.slot, {name: value})
    return found


def extend(file: Path, head: Head, records: Iterable[Record]) -> Head:
    """Write records behind the head; they count once the index names the new head.

    Args:
        file: the journal.
        head: up to where it counts; what is behind is cut off.
        records: as `changes` makes them.

    Raises:
        FedEditError: the journal is shorter than its head says.
    """
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    sequence, last, lines = head.records, head.hash, []
    for record in records:
        sequence += 1
        full = {"sequence": sequence, "time": time, **record, "previous": last}
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
    counted = _counted(file, head)
    try:
        last = json.loads(counted.rsplit(b"\n", 2)[-2])
        sound = last["hash"] == head.hash and last["sequence"] == head.records
    except (ValueError, IndexError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise FedEditError(
            f"ledger journal {file}: its record {head.records} is not the one that the index "
            "names; `fedit ledger verify` says more"
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


def examined(file: Path, head: Head, fingerprint: str) -> Iterator[Record | str]:
    """Every record of a journal that can be read, and where it is damaged what is wrong."""
    try:
        lines = _counted(file, head).splitlines() if head.records else []
    except FedEditError as error:
        yield str(error)
        lines = file.read_bytes().splitlines() if file.exists() else []
    previous = beginning(fingerprint).hash
    for number, line in enumerate(lines, start=1):
        record = _parsed(line)
        if record is None:
            yield f"ledger journal {file}: record {number} cannot be read"
            previous = ""
            continue
        hash_ = record["hash"]
        if hash_ != _hash({name: value for name, value in record.items() if name != "hash"}):
            yield f"ledger journal {file}: record {number} was changed, its hash is another"
        elif previous and record["previous"] != previous:
            yield f"ledger journal {file}: record {number} does not follow the one before it"
        elif record["sequence"] != number:
            yield f"ledger journal {file}: record {number} has number {record['sequence']}"
        yield record
        previous = hash_
    if lines and (len(lines), previous) != (head.records, head.hash):
        yield (
            f"ledger journal {file}: {len(lines)} records found that end with {previous[:12]}; the "
            f"index names {head.records}, the last of them {head.hash[:12]}"
        )


def surplus(file: Path, head: Head) -> int:
    """Bytes behind the head: left of an interrupted step, or ahead of an older index."""
    return max(0, file.stat().st_size - head.bytes) if file.exists() else 0


def replay(records: Iterable[Record]) -> tuple[dict[str, Record], dict[str, Record]]:
    """The rows of entries and refusals by id that the changes lead to.

    Raises:
        KeyError: a change is of an MKV that is not there.
    """
    entries: dict[str, Record] = {}
    refused: dict[str, Record] = {}
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


def _counted(file: Path, head: Head) -> bytes:
    """The bytes of a journal up to its head."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise FedEditError(f"ledger journal {file}: cannot be read ({error.strerror})") from None
    if len(content) < head.bytes:
        raise FedEditError(_shorter(file, head))
    return content[: head.bytes]


def _shorter(file: Path, head: Head) -> str:
    return (
        f"ledger journal {file}: shorter than the {head.bytes} bytes that the index names; take a "
        "copy from before back"
    )


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.keys() != _FIELDS:
        return None
    sound = isinstance(record["set"], dict) and all(isinstance(record[n], str) for n in _TEXTS)
    return record if sound else None


def _canonical(record: Record) -> bytes:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _hash(record: Record) -> str:
    return hashlib.sha256(_canonical(record)).hexdigest()
