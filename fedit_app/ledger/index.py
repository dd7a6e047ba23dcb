"""The index of a ledger: which MKVs count, which are refused, and up to where the journal counts.

`index.json` holds all of that. With many MKVs it is not written anew at every step: `tip.json` then
names how far the journal counts, and what has changed since the index was written is read from the
journal. Either is replaced in one step; the one that counts more records is the latest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeVar, cast

import filelock
from pydantic import TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from fedit_app.ledger import journal
from fedit_app.ledger.entries import AS_WRITTEN, EntryRow, RefusalRow, SignatureFields
from fedit_app.ledger.head_signature import head_problem, sign_head
from fedit_app.ledger.journal import Head
from fedit_app.mkv.authorship import SigningKey
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_file

VERSION: Literal[4] = 4
INDEX, JOURNAL, TIP = "index.json", "journal.jsonl", "tip.json"

FEW = 1000
"""With so many MKVs at most the index is written anew at every step."""

_SHARE = 8


@with_config(AS_WRITTEN)
class Index(TypedDict):
    """The entries and refusals of a ledger, and its journal's head.

    The head is signed where the node has a key, see `head_signature`. Version 3 had no `tip.json`.
    """

    version: Literal[3, 4]
    fingerprint: str
    journal: Head
    signature: NotRequired[SignatureFields]
    entries: list[EntryRow]
    refused: list[RefusalRow]


@with_config(AS_WRITTEN)
class Tip(TypedDict):
    """The content of `tip.json`: the journal's head since the index was written."""

    version: Literal[4]
    journal: Head
    signature: NotRequired[SignatureFields]


_INDEX, _TIP = TypeAdapter(Index), TypeAdapter(Tip)
_ENTRIES, _REFUSALS = TypeAdapter(list[EntryRow]), TypeAdapter(list[RefusalRow])
_T = TypeVar("_T")


@dataclass(frozen=True)
class Stored:
    """What the files of an index say.

    Attributes:
        index: with all that has changed since it was written, and the head and signature of now.
        written: how many records of the journal counted when it was written in this version.
        problems: a sentence for all that keeps a change since from being read.
    """

    index: Index
    written: int
    problems: list[str]


def read_index(folder: Path) -> Index:
    """The index of a ledger folder, as it is now.

    Raises:
        FedEditError: there is none, or it is damaged or of another version; or a record of the
            journal since is damaged.
    """
    stored = read_stored(folder)
    if stored.problems:
        raise FedEditError(stored.problems[0])
    return stored.index


def read_stored(folder: Path) -> Stored:
    """What the files of an index say, also where the journal is damaged.

    Raises:
        FedEditError: there is no index, or it is damaged or of another version.
    """
    index = _whole(folder)
    written, tip = index["journal"], _tip(folder)
    if tip is None or tip["journal"].records <= written.records:
        # What wrote version 3 looks for no tip, and has to be kept away by an index of version 4.
        return Stored(index, written.records if index["version"] == VERSION else 0, [])
    records: list[journal.Record] = []
    problems: list[str] = []
    file = folder / JOURNAL
    for found in journal.examined(file, tip["journal"], index["fingerprint"], written):
        if isinstance(found, str):
            problems.append(found)
        else:
            records.append(found)
    now: Index = {**index, "journal": tip["journal"]}
    now.pop("signature", None)
    if "signature" in tip:
        now["signature"] = tip["signature"]
    if not problems:
        try:
            _replay(now, records)
        except (KeyError, TypeError, ValidationError):
            problems.append(f"ledger journal {file}: what it says since does not fit {INDEX}")
    return Stored(now, written.records, problems)


def _replay(index: Index, records: list[journal.Record]) -> None:
    entries = {row["id"]: row for row in index["entries"]}
    refused = {row["id"]: row for row in index["refused"]}
    now = journal.replay(records, _as_fields(entries), _as_fields(refused))
    index["entries"] = _in_order(now[0], entries, _ENTRIES)
    index["refused"] = _in_order(now[1], refused, _REFUSALS)


def _as_fields(rows: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, Any]]:
    """The same rows in a mapping of their own, in which a replay exchanges some."""
    return cast("dict[str, dict[str, Any]]", {**rows})


def _in_order(
    rows: dict[str, dict[str, Any]], known: Mapping[str, _T], content: TypeAdapter[list[_T]]
) -> list[_T]:
    """Rows by rising id; those that are not known ones are checked."""
    new = [id_ for id_, row in rows.items() if known.get(id_) is not row]
    checked = dict(zip(new, content.validate_python([rows[id_] for id_ in new]), strict=True))
    return [checked[id_] if id_ in checked else known[id_] for id_ in sorted(rows)]


def current_head(folder: Path) -> Head:
    """The journal's head as it is now; raises as `read_index`."""
    written, tip = _whole(folder)["journal"], _tip(folder)
    return tip["journal"] if tip and tip["journal"].records > written.records else written


def has_to_be_whole(mkvs: int, since: int) -> bool:
    """Whether a step writes the index anew.

    Args:
        mkvs: how many the ledger holds.
        since: records of the journal since the index was written, with those of the step.
    """
    return mkvs <= FEW or _SHARE * since > mkvs


def write_index(folder: Path, index: Index) -> None:
    """Replace the index in one step."""
    write_file(folder / INDEX, _INDEX.dump_json(index))


def write_tip(folder: Path, head: Head, signature: SignatureFields | None) -> None:
    """Let the journal count up to a head, in one step."""
    tip: Tip = {"version": VERSION, "journal": head}
    if signature is not None:
        tip["signature"] = signature
    write_file(folder / TIP, _TIP.dump_json(tip))


def identity(folder: Path) -> tuple[tuple[int, ...], ...]:
    """What tells the files of an index from any others, which are always new ones."""
    return tuple(_stats(folder))


def _stats(folder: Path) -> Iterator[tuple[int, ...]]:
    for name in (INDEX, TIP):
        try:
            found = (folder / name).stat()
        except FileNotFoundError:
            yield ()
        else:
            yield found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def sign_ledger(folder: Path, key: SigningKey) -> None:
    """Sign the head of a ledger folder anew, for a node that has got another key.

    Raises:
        FedEditError: see `read_index`; or what is signed there is not this head.
    """
    with filelock.FileLock(folder / ".lock"):
        index = read_index(folder)
        head, fingerprint = index["journal"], index["fingerprint"]
        problem = head_problem(head, fingerprint, index.get("signature"))
        if problem:
            raise FedEditError(f"ledger {folder}: {problem}")
        index["version"], index["signature"] = VERSION, sign_head(head, fingerprint, key)
        write_index(folder, index)


def fulfilled_requests(folder: Path) -> dict[str, str]:
    """Own request id -> id of the MKV that fulfils it, of a ledger folder; empty without one.

    Raises:
        FedEditError: its index cannot be read.
    """
    if not (folder / INDEX).exists():
        return {}
    rows = read_index(folder)["entries"]
    return {request: row["id"] for row in rows for request in row["requests"]}


def _whole(folder: Path) -> Index:
    try:
        return _read(folder / INDEX, _INDEX)
    except FileNotFoundError:
        raise FedEditError(f"ledger {folder}: not found; did this node edit in the run?") from None


def _tip(folder: Path) -> Tip | None:
    try:
        return _read(folder / TIP, _TIP)
    except FileNotFoundError:
        return None


def _read(file: Path, content: TypeAdapter[_T]) -> _T:
    try:
        return content.validate_json(file.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FedEditError(f"ledger index {file}: cannot be read ({error})") from None
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"][:3]))
        raise FedEditError(
            f"ledger index {file}: damaged, or of a later version than {VERSION} "
            f"({place or 'JSON'}: {fault['type']}); restore a backup, or use the FedEdit that made "
            "it"
        ) from None
