"""The ledger: the set of MKVs that a node has accepted. With the base model it is the edited model.

Of two MKVs that contradict each other only one holds. The other is kept, overruled, and holds again
once the first is dropped.

On disk a ledger is a folder: `mkvs/ID.safetensors`, one file per MKV, never changed;
`journal.jsonl`, every change (see `journal`); and `index.json`, which names the MKVs and the
journal's head. The index is replaced last and in one step: what it does not name does not exist.
In `sums` is what solves keep (see `KeptSums`); it can be deleted at any time.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NotRequired

import filelock
from pydantic import TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from fedit_app.editing.kept_sums import KeptSums
from fedit_app.ledger import journal
from fedit_app.ledger.entries import (
    AS_WRITTEN,
    EntryRow,
    LedgerEntry,
    Refusal,
    RefusalRow,
    SignatureFields,
)
from fedit_app.ledger.head_signature import head_problem, sign_head
from fedit_app.ledger.journal import Head, State, Step
from fedit_app.ledger.mkv_files import MKVFiles, StoredMKV, mkv_file, read_mkv
from fedit_app.mkv import MKV, to_bytes
from fedit_app.mkv.authorship import SigningKey
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import make_folder, replace_file, write_file

_VERSION: Literal[3] = 3
INDEX, JOURNAL, SUMS = "index.json", "journal.jsonl", "sums"


@with_config(AS_WRITTEN)
class Index(TypedDict):
    """The content of `index.json`: the entries and refusals, and the journal's head.

    The head is signed where the node has a key, see `head_signature`.
    """

    version: Literal[3]
    fingerprint: str
    journal: Head
    signature: NotRequired[SignatureFields]
    entries: list[EntryRow]
    refused: list[RefusalRow]


_INDEX = TypeAdapter(Index)


@dataclass(frozen=True)
class _Stored:
    """What the folder of a ledger holds.

    Attributes:
        state: its entries and refusals.
        head: of its journal.
        identity: of the index that says so; None if there is none.
    """

    state: State
    head: Head
    identity: tuple[int, ...] | None


@dataclass
class Ledger:
    """The accepted MKVs of one node, each once.

    Every change is written to the folder at once, as a step of its own. Changes inside a `step` are
    written together at its end.

    Attributes:
        fingerprint: of the model and the settings that all MKVs belong to.
        folder: where they are kept; None keeps them in memory only.
        entries: id -> entry.
        refused: id -> why the MKV is not accepted again.
        key: what the node signs the journal's head with; None: it is not signed.
        sums: where the sums are kept by which it is solved; see `KeptSums`. A ledger with a folder
            has them there.
    """

    fingerprint: str
    folder: Path | None = None
    entries: dict[str, LedgerEntry] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)
    key: SigningKey | None = field(default=None, repr=False)
    sums: KeptSums | None = field(default=None, repr=False)
    _stored: _Stored = field(init=False, repr=False)
    _step: Step | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._stored = _Stored(State({}, {}), journal.beginning(self.fingerprint), None)
        if self.folder is not None:
            self.sums = kept_sums(self.folder)

    @staticmethod
    def open(folder: Path, fingerprint: str, key: SigningKey | None = None) -> Ledger:
        """The ledger of a folder; an empty one if there is none yet.

        The index and the end of the journal are read. An MKV's file is read, and its hash compared
        with its id, when its vectors are first asked for; `verify` reads everything.

        Args:
            folder: of the ledger.
            fingerprint: of the model and the settings.
            key: see `Ledger`.

        Raises:
            FedEditError: it belongs to another model or other settings, its index is damaged, its
                journal does not end as the index says, the signature under its head is not one of
                this head, or the file of an MKV is missing.
        """
        ledger = Ledger(fingerprint, folder, key=key)
        if not (folder / INDEX).exists():
            return ledger
        with _many_objects():
            ledger._read(folder)
        return ledger

    def _read(self, folder: Path) -> None:
        identity = _identity(folder)  # before it is read: what comes later is noticed
        stored = read_index(folder)
        if stored["fingerprint"] != self.fingerprint:
            raise FedEditError(
                f"ledger {folder}: made with fingerprint {stored['fingerprint']}, this run has "
                f"{self.fingerprint}; use the same model, layers, editor, contexts, mkv-precision "
                "and seed, or another state-dir"
            )
        journal.require_head(folder / JOURNAL, stored["journal"])
        problem = head_problem(stored["journal"], self.fingerprint, stored.get("signature"))
        if problem:
            raise FedEditError(f"ledger {folder}: {problem}")
        files = MKVFiles(folder)
        files.require(row["id"] for row in stored["entries"])
        for row in stored["entries"]:
            mkv = StoredMKV.of_row(row, self.fingerprint, files)
            self.entries[row["id"]] = LedgerEntry.of_row(row, mkv)
        self.refused = {row["id"]: Refusal.of_row(row) for row in stored["refused"]}
        self._stored = _Stored(self._state(), stored["journal"], identity)

    def __len__(self) -> int:
        return sum(not entry.overruled_by for entry in self.entries.values())

    @property
    def holding(self) -> list[MKV]:
        """The MKVs that count, ordered by id: all that no other one overrules."""
        entries = (self.entries[id_] for id_ in sorted(self.entries))
        return [entry.mkv for entry in entries if not entry.overruled_by]

    @property
    def set_aside(self) -> set[str]:
        """Ids of own requests that stay unfulfilled: those of withdrawn MKVs."""
        return {request for refusal in self.refused.values() for request in refusal.requests}

    @contextmanager
    def step(self, reason: str = "", slot: int = 0) -> Iterator[Step]:
        """Make the changes inside the block one step on disk: all of them or, on an error, none.

        Args:
            reason: why, for the journal.
            slot: the time slot, for the journal; 0: for each MKV the one of its acceptance.

        Yields:
            The step, which can be given `probes` before it ends.
        """
        before = self._state()
        self._step = Step(reason, slot)
        try:
            yield self._step
            self._write(self._step)
        except BaseException:
            self.entries, self.refused = dict(before.entries), dict(before.refused)
            raise
        finally:
            self._step = None

    def accept(
        self,
        mkvs: Iterable[MKV],
        slot: int,
        requests: Mapping[str, Sequence[str]] | None = None,
        supersedes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Add MKVs, or own requests to MKVs that are there already; one step on disk.

        Args:
            mkvs: what to add; known ids keep their entry.
            slot: time slot of the acceptance.
            requests: id -> own requests that this MKV fulfils.
            supersedes: id -> MKVs in whose place this one holds; with them goes what they had
                superseded themselves.
        """
        for mkv in mkvs:
            known = self.entries.get(mkv.id, LedgerEntry(mkv, slot))
            asked = dict.fromkeys([*known.requests, *(requests or {}).get(mkv.id, ())])
            older = self._with_superseded((supersedes or {}).get(mkv.id, ()))
            all_older = dict.fromkeys([*known.supersedes, *older])
            all_older.pop(mkv.id, None)
            self.entries[mkv.id] = dataclasses.replace(
                known, requests=tuple(asked), supersedes=tuple(all_older)
            )
        self._changed()

    def _with_superseded(self, ids: Iterable[str]) -> list[str]:
        """MKVs, each followed by what it supersedes."""
        held = self.entries
        return [one for id_ in ids for one in (id_, *(held[id_].supersedes if id_ in held else ()))]

    def drop(self, ids: Iterable[str]) -> None:
        """Take MKVs out, as if they had never been accepted; what they overruled holds again."""
        gone = set(ids)
        for id_ in gone:
            del self.entries[id_]
        freed = {id_: "" for id_, entry in self.entries.items() if entry.overruled_by in gone}
        self.overrule(freed)

    def refuse(self, ids: Iterable[str], reason: str, withdrawn: bool = False) -> None:
        """Drop MKVs and do not accept them again.

        Args:
            ids: MKVs of the ledger.
            reason: why.
            withdrawn: they are the node's own, and so the requests that they fulfil are set aside.
        """
        gone = list(ids)
        for id_ in gone:
            entry = self.entries[id_]
            requests = entry.requests if withdrawn else ()
            self.refused[id_] = Refusal(entry.mkv.node, reason, withdrawn, requests)
        self.drop(gone)

    def allow(self, ids: Iterable[str]) -> None:
        """Let refused MKVs be accepted again, and the requests that they fulfilled be edited."""
        for id_ in ids:
            del self.refused[id_]
        self._changed()

    def overrule(self, by: Mapping[str, str]) -> None:
        """Set which MKV holds instead of another.

        Args:
            by: id -> id of the one that holds; "" lets it hold itself.
        """
        for id_, winner in by.items():
            self.entries[id_] = dataclasses.replace(self.entries[id_], overruled_by=winner)
        self._changed()

    def count_votes(self, votes: Mapping[str, int]) -> None:
        """Note how many organisations want an MKV; ids that the ledger lacks are ignored."""
        for id_ in votes.keys() & self.entries.keys():
            self.entries[id_] = dataclasses.replace(self.entries[id_], votes=votes[id_])
        self._changed()

    def note_warm_starts(self, ids: Iterable[str]) -> None:
        """Note which MKVs this node optimised from the values of others."""
        for id_ in ids:
            self.entries[id_] = dataclasses.replace(self.entries[id_], warm_started=True)
        self._changed()

    def hand_over(self, id_: str, to: str) -> None:
        """Let another MKV of the ledger fulfil all own requests of an MKV.

        Args:
            id_: the MKV that fulfils them now.
            to: the one that does from now on.
        """
        requests = self.entries[id_].requests
        self.entries[id_] = dataclasses.replace(self.entries[id_], requests=())
        self.accept([self.entries[to].mkv], self.entries[to].slot, {to: requests})

    def release(self, requests: Iterable[str]) -> None:
        """Forget that own requests are fulfilled; the MKVs stay."""
        gone = set(requests)
        for id_, entry in self.entries.items():
            if gone.intersection(entry.requests):
                kept = tuple(request for request in entry.requests if request not in gone)
                self.entries[id_] = dataclasses.replace(entry, requests=kept)
        self._changed()

    def without(self, ids: Collection[str]) -> Ledger:
        """The ledger in memory, without some of its MKVs."""
        kept = {id_: entry for id_, entry in self.entries.items() if id_ not in ids}
        sums = self.sums.of_variant() if self.sums else None
        return Ledger(self.fingerprint, entries=kept, refused=dict(self.refused), sums=sums)

    def fulfilled(self) -> dict[str, str]:
        """Own request id -> id of the MKV that fulfils it."""
        return {request: id_ for id_, entry in self.entries.items() for request in entry.requests}

    def history(self) -> list[journal.Record]:
        """Every change ever made, the oldest first; none of a ledger in memory.

        Raises:
            FedEditError: the journal is damaged.
        """
        if self.folder is None:
            return []
        return journal.read(self.folder / JOURNAL, self._stored.head, self.fingerprint)

    @property
    def head(self) -> str:
        """Hash of the journal's last record: it stands for the ledger and all that led to it."""
        return self._stored.head.hash

    def _state(self) -> State:
        return State(dict(self.entries), dict(self.refused))

    def _changed(self) -> None:
        """Write a change, unless it is part of a step that is being made."""
        if self._step is None:
            self._write(Step())

    def _write(self, step: Step) -> None:
        """Write what has changed since the last step; nothing of a ledger in memory."""
        if self.folder is not None:
            with _many_objects():
                self._write_to(self.folder, step)

    def _write_to(self, folder: Path, step: Step) -> None:
        now, before = self._state(), self._stored.state
        found = journal.changes(before, now, step)
        if not found and (folder / INDEX).exists():
            return
        make_folder(folder)
        with filelock.FileLock(folder / ".lock"):
            _require_unchanged(folder, self.fingerprint, self._stored)
            for id_ in now.entries.keys() - before.entries.keys():
                with replace_file(mkv_file(folder, id_)) as temporary:
                    temporary.write_bytes(to_bytes(now.entries[id_].mkv))
            head = journal.extend(folder / JOURNAL, self._stored.head, found)
            index: Index = {
                "version": _VERSION,
                "fingerprint": self.fingerprint,
                "journal": head,
                "entries": [now.entries[id_].row for id_ in sorted(now.entries)],
                "refused": [refusal.row(id_) for id_, refusal in sorted(now.refused.items())],
            }
            if self.key is not None:
                index["signature"] = sign_head(head, self.fingerprint, self.key)
            write_file(folder / INDEX, _INDEX.dump_json(index))
            self._stored = _Stored(now, head, _identity(folder))


@contextmanager
def _many_objects() -> Iterator[None]:
    """Make many objects that stay, without the collector looking at all of them again and again."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _identity(folder: Path) -> tuple[int, ...] | None:
    """What tells the index from any other, which is always a new file; None if there is none."""
    try:
        found = (folder / INDEX).stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _require_unchanged(folder: Path, fingerprint: str, stored: _Stored) -> None:
    """Two processes may change a ledger in turns, but each has to have read the other's changes."""
    if _identity(folder) == stored.identity:
        return
    on_disk = journal.beginning(fingerprint)
    if (folder / INDEX).exists():
        on_disk = read_index(folder)["journal"]
    if on_disk != stored.head:
        raise FedEditError(
            f"ledger {folder}: another process has changed it in the meantime; repeat the command"
        )


def read_index(folder: Path) -> Index:
    """The index of a ledger folder.

    Raises:
        FedEditError: there is none, or it is damaged or of another version.
    """
    file = folder / INDEX
    try:
        stored = file.read_bytes()
        return _INDEX.validate_json(stored)
    except FileNotFoundError:
        raise FedEditError(f"ledger {folder}: not found; did this node edit in the run?") from None
    except OSError as error:
        raise FedEditError(f"ledger index {file}: cannot be read ({error})") from None
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"][:3]))
        raise FedEditError(
            f"ledger index {file}: damaged, or not of version {_VERSION} ({place or 'JSON'}: "
            f"{fault['type']}); restore a backup, or use the FedEdit that made it"
        ) from None


def kept_sums(folder: Path) -> KeptSums:
    """The sums that are kept of a ledger folder."""
    return KeptSums(folder / SUMS, functools.partial(read_mkv, folder))


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
        index["signature"] = sign_head(head, fingerprint, key)
        write_file(folder / INDEX, _INDEX.dump_json(index))


def fulfilled_requests(folder: Path) -> dict[str, str]:
    """Own request id -> id of the MKV that fulfils it, of a ledger folder; empty without one.

    Raises:
        FedEditError: its index cannot be read.
    """
    if not (folder / INDEX).exists():
        return {}
    rows = read_index(folder)["entries"]
    return {request: row["id"] for row in rows for request in row["requests"]}
