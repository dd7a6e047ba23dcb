"""The ledger: the set of MKVs that a node has accepted. With the base model it is the edited model.

Of two MKVs that contradict each other only one holds. The other is kept, overruled, and holds again
once the first is dropped.

On disk a ledger is a folder: `mkvs`, the MKVs (see `mkv_files`); `journal.jsonl`, every change (see
`journal`); and `index.json`, with `tip.json` where there are many, which names the MKVs and the
journal's head (see `index`). These are replaced last and in one step: what they do not name does
not exist. In `sums` is what solves keep (see `KeptSums`); it can be deleted at any time.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from fedit_app.editing.kept_sums import KeptSums
from fedit_app.ledger import journal
from fedit_app.ledger.entries import LedgerEntry, Refusal, SignatureFields
from fedit_app.ledger.head_signature import head_problem, sign_head
from fedit_app.ledger.index import (
    INDEX,
    JOURNAL,
    VERSION,
    Index,
    current_head,
    has_to_be_whole,
    identity,
    read_stored,
    write_index,
    write_tip,
)
from fedit_app.ledger.journal import Head, State, Step
from fedit_app.ledger.mkv_files import MKVFiles, StoredMKV
from fedit_app.mkv import MKV
from fedit_app.mkv.authorship import SigningKey
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import make_folder

SUMS = "sums"


@dataclass(frozen=True)
class _Stored:
    """What the folder of a ledger holds.

    Attributes:
        state: its entries and refusals.
        head: of its journal.
        identity: of the files of the index that says so.
        written: how many records counted when the index was written.
    """

    state: State
    head: Head
    identity: tuple[tuple[int, ...], ...] = ((), ())
    written: int = 0


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
    _files: MKVFiles = field(init=False, repr=False)
    _step: Step | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._stored = _Stored(State({}, {}), journal.beginning(self.fingerprint))
        if self.folder is not None:
            self._files = MKVFiles(self.folder)
            self.sums = kept_sums(self.folder, self._files)

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
        found = identity(folder)  # before they are read: what comes later is noticed
        read = read_stored(folder)
        if read.problems:
            raise FedEditError(read.problems[0])
        stored = read.index
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
        self._files.require(row["id"] for row in stored["entries"])
        for row in stored["entries"]:
            mkv = StoredMKV.of_row(row, self.fingerprint, self._files)
            self.entries[row["id"]] = LedgerEntry.of_row(row, mkv)
        self.refused = {row["id"]: Refusal.of_row(row) for row in stored["refused"]}
        self._stored = _Stored(self._state(), stored["journal"], found, read.written)

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
            new = sorted(now.entries.keys() - before.entries.keys())
            if new:
                number = self._stored.head.records + 1
                self._files.add(number, [now.entries[id_].mkv for id_ in new])
            head = journal.extend(folder / JOURNAL, self._stored.head, found)
            signature = None if self.key is None else sign_head(head, self.fingerprint, self.key)
            written = self._stored.written
            if has_to_be_whole(len(now.entries), head.records - written):
                write_index(folder, self._index(now, head, signature))
                written = head.records
            else:
                write_tip(folder, head, signature)
            self._stored = _Stored(now, head, identity(folder), written)

    def _index(self, now: State, head: Head, signature: SignatureFields | None) -> Index:
        index: Index = {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "journal": head,
            "entries": [now.entries[id_].row for id_ in sorted(now.entries)],
            "refused": [refusal.row(id_) for id_, refusal in sorted(now.refused.items())],
        }
        if signature is not None:
            index["signature"] = signature
        return index


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


def _require_unchanged(folder: Path, fingerprint: str, stored: _Stored) -> None:
    """Two processes may change a ledger in turns, but each has to have read the other's changes."""
    if identity(folder) == stored.identity:
        return
    on_disk = journal.beginning(fingerprint)
    if (folder / INDEX).exists():
        on_disk = current_head(folder)
    if on_disk != stored.head:
        raise FedEditError(
            f"ledger {folder}: another process has changed it in the meantime; repeat the command"
        )


def kept_sums(folder: Path, files: MKVFiles) -> KeptSums:
    """The sums that are kept of a ledger folder, of MKVs of these files."""
    return KeptSums(folder / SUMS, files.read)
