"""The ledger: the set of MKVs that a node has accepted. With the base model it is the edited model.

Of two MKVs that contradict each other only one holds; the other is kept, overruled, and holds again
once the first is dropped.

On disk a ledger is a folder: `mkvs/ID.safetensors`, one file an MKV, never changed;
`journal.jsonl`, every change (see `journal`); and `index.json`, which says which MKVs count and up
to where the journal does, replaced in one step after they are written. What the index does not name
does not exist.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor

from fedit_app.ledger import journal
from fedit_app.ledger.entries import LedgerEntry, Refusal, are_refusals, are_rows
from fedit_app.ledger.journal import Head, State, Step
from fedit_app.mkv import MKV, from_bytes, to_bytes
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import replace_file, write_json_atomic

_VERSION = 3
INDEX, JOURNAL = "index.json", "journal.jsonl"


@dataclass
class Ledger:
    """The accepted MKVs of one node, each once.

    Attributes:
        fingerprint: what all of them mean anything on.
        folder: where they are kept; None keeps them in memory only.
        entries: id -> entry.
        refused: id -> why the MKV is not to be accepted again.
    """

    fingerprint: str
    folder: Path | None = None
    entries: dict[str, LedgerEntry] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)
    _saves: bool = field(default=True, init=False, repr=False)
    _step: Step = field(default=Step(), init=False, repr=False)
    _saved: State = field(default=State({}, {}), init=False, repr=False)
    _head: Head = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._head = journal.beginning(self.fingerprint)

    @staticmethod
    def open(folder: Path, fingerprint: str) -> Ledger:
        """The ledger of a folder; an empty one if there is none yet.

        Raises:
            FedEditError: it belongs to another model or other settings, or a file is damaged.
        """
        ledger = Ledger(fingerprint, folder)
        if not (folder / INDEX).exists():
            return ledger
        stored = read_index(folder)
        if stored["fingerprint"] != fingerprint:
            raise FedEditError(
                f"ledger {folder}: made with fingerprint {stored['fingerprint']}, this run has "
                f"{fingerprint}; use the same model, layers, editor, contexts, mkv-precision and "
                "seed, or another state-dir"
            )
        ledger._head = Head(**stored["journal"])
        journal.require_head(folder / JOURNAL, ledger._head)
        for row in stored["entries"]:
            ledger.entries[row["id"]] = LedgerEntry.of_row(row, read_mkv(folder, row["id"]))
        ledger.refused = {row["id"]: Refusal.of_row(row) for row in stored["refused"]}
        ledger._saved = State(dict(ledger.entries), dict(ledger.refused))
        return ledger

    def __len__(self) -> int:
        return len(self.holding)

    @property
    def holding(self) -> list[MKV]:
        """The MKVs that count, ordered by id: all that no other one overrules."""
        held = [entry.mkv for entry in self.entries.values() if not entry.overruled_by]
        return sorted(held, key=lambda mkv: mkv.id)

    @property
    def set_aside(self) -> set[str]:
        """Ids of own requests that stay unfulfilled: those of withdrawn MKVs."""
        return {request for refusal in self.refused.values() for request in refusal.requests}

    @contextmanager
    def step(self, reason: str = "", slot: int = 0) -> Iterator[None]:
        """Make the changes inside the block one step on disk: all of them or, on an error, none.

        After an error the object in memory is of no more use; open the ledger again.

        Args:
            reason: why, for the journal.
            slot: the time slot, for the journal; 0: for each MKV the one of its acceptance.
        """
        self._saves, self._step = False, Step(reason, slot)
        yield
        self._saves = True
        self._save()
        self._step = Step()

    def note_probes(
        self, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
    ) -> None:
        """Note what the step that is being made changes on the node's probes.

        Args:
            before: metrics without the step; None if they were not measured.
            after: metrics with it.
        """
        if before is not None and after is not None:
            probes = {"before": dict(before), "after": dict(after)}
            self._step = dataclasses.replace(self._step, probes=probes)

    def accept(
        self,
        mkvs: Iterable[MKV],
        slot: int,
        requests: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Add MKVs, or own requests to MKVs that are there already; one step on disk.

        Args:
            mkvs: what to add; known ids keep their entry.
            slot: time slot of the acceptance.
            requests: id -> own requests that this MKV fulfils.
        """
        for mkv in mkvs:
            known = self.entries.get(mkv.id)
            asked = (requests or {}).get(mkv.id, ())
            if known is None:
                self.entries[mkv.id] = LedgerEntry(mkv, slot, tuple(asked))
            else:
                both = tuple(dict.fromkeys([*known.requests, *asked]))
                self.entries[mkv.id] = dataclasses.replace(known, requests=both)
        self._save()

    def drop(self, ids: Iterable[str]) -> None:
        """Take MKVs out: the edited model is then as if they had never been accepted.

        What only they overruled holds again.
        """
        gone = set(ids)
        for id_ in gone:
            del self.entries[id_]
        freed = {id_: "" for id_, entry in self.entries.items() if entry.overruled_by in gone}
        self.overrule(freed)

    def refuse(self, ids: Iterable[str], reason: str, withdrawn: bool = False) -> None:
        """Drop MKVs and do not let them come back.

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
        self._save()

    def overrule(self, by: Mapping[str, str]) -> None:
        """Set which MKV holds instead of another.

        Args:
            by: id -> id of the one that holds; "" lets it hold itself.
        """
        for id_, winner in by.items():
            self.entries[id_] = dataclasses.replace(self.entries[id_], overruled_by=winner)
        self._save()

    def count_votes(self, votes: Mapping[str, int]) -> None:
        """Note how many organisations want an MKV; ids that the ledger has not are left aside."""
        for id_ in votes.keys() & self.entries.keys():
            self.entries[id_] = dataclasses.replace(self.entries[id_], votes=votes[id_])
        self._save()

    def note_warm_starts(self, ids: Iterable[str]) -> None:
        """Note which MKVs this node optimised from the values of others."""
        for id_ in ids:
            self.entries[id_] = dataclasses.replace(self.entries[id_], warm_started=True)
        self._save()

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
            kept = tuple(request for request in entry.requests if request not in gone)
            self.entries[id_] = dataclasses.replace(entry, requests=kept)
        self._save()

    def without(self, ids: Collection[str]) -> Ledger:
        """The ledger in memory, without some of its MKVs."""
        kept = {id_: entry for id_, entry in self.entries.items() if id_ not in ids}
        return Ledger(self.fingerprint, entries=kept, refused=dict(self.refused))

    def fulfilled(self) -> dict[str, str]:
        """Own request id -> id of the MKV that fulfils it."""
        return {request: id_ for id_, entry in self.entries.items() for request in entry.requests}

    def vectors(self, n_layers: int, d_ff: int, d_model: int) -> tuple[Tensor, Tensor]:
        """Keys and shifts of all that hold, ordered by id, so that arrival order changes nothing.

        Args:
            n_layers: number of edited layers.
            d_ff: width of a key.
            d_model: width of a shift.

        Returns:
            (n, n_layers, d_ff) and (n, n_layers, d_model) float64.
        """
        mkvs = self.holding
        keys = np.array([mkv.keys for mkv in mkvs], np.float64).reshape(-1, n_layers, d_ff)
        shifts = np.array([mkv.shifts for mkv in mkvs], np.float64).reshape(-1, n_layers, d_model)
        return torch.from_numpy(keys), torch.from_numpy(shifts)

    def history(self) -> list[journal.Record]:
        """Every change ever made, the oldest first; none of a ledger in memory.

        Raises:
            FedEditError: the journal is damaged.
        """
        if self.folder is None:
            return []
        return journal.read(self.folder / JOURNAL, self._head, self.fingerprint)

    @property
    def head(self) -> str:
        """Hash of the journal's last record: it stands for the ledger and all that led to it."""
        return self._head.hash

    def _save(self) -> None:
        if self.folder is None or not self._saves:
            return
        now = State(dict(self.entries), dict(self.refused))
        found = journal.changes(self._saved, now, self._step)
        if not found and (self.folder / INDEX).exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / ".lock"):
            self._require_unchanged()
            for id_ in now.entries.keys() - self._saved.entries.keys():
                with replace_file(mkv_file(self.folder, id_)) as temporary:
                    temporary.write_bytes(to_bytes(now.entries[id_].mkv))
            head = journal.extend(self.folder / JOURNAL, self._head, found)
            index = {
                "version": _VERSION,
                "fingerprint": self.fingerprint,
                "journal": vars(head),
                "entries": [entry.row() for _, entry in sorted(now.entries.items())],
                "refused": [
                    {"id": id_, "node": refusal.node, **refusal.fields()}
                    for id_, refusal in sorted(now.refused.items())
                ],
            }
            write_json_atomic(self.folder / INDEX, index)
        self._head, self._saved = head, now

    def _require_unchanged(self) -> None:
        """Two processes may change a ledger in turns, but none what the other has not seen."""
        on_disk = journal.beginning(self.fingerprint)
        if (self.folder / INDEX).exists():
            on_disk = Head(**read_index(self.folder)["journal"])
        if on_disk != self._head:
            raise FedEditError(
                f"ledger {self.folder}: another process has changed it meanwhile; do this again"
            )


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a ledger folder: version, fingerprint, journal (its head), entries, refused.

    Raises:
        FedEditError: there is none, or it cannot be read.
    """
    file = folder / INDEX
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FedEditError(f"ledger {folder}: not found; did this node edit in the run?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FedEditError(f"ledger index {file}: cannot be read ({error})") from None
    if not isinstance(stored, dict) or stored.get("version") != _VERSION:
        raise FedEditError(
            f"ledger index {file}: not of version {_VERSION}; use the FedEdit that made it, or "
            "another state-dir"
        )
    if not (
        isinstance(stored.get("fingerprint"), str)
        and _is_head(stored.get("journal"))
        and are_rows(stored.get("entries"))
        and are_refusals(stored.get("refused"))
    ):
        raise FedEditError(f"ledger index {file}: damaged; take a copy from before back")
    return stored


def fulfilled_requests(folder: Path) -> dict[str, str]:
    """Own request id -> id of the MKV that fulfils it, of a ledger folder; empty without one.

    Raises:
        FedEditError: its index cannot be read.
    """
    if not (folder / INDEX).exists():
        return {}
    rows = read_index(folder)["entries"]
    return {request: row["id"] for row in rows for request in row["requests"]}


def _is_head(value: object) -> bool:
    kinds = {"records": int, "bytes": int, "hash": str}
    return (
        isinstance(value, dict)
        and value.keys() == kinds.keys()
        and all(type(value[name]) is kind for name, kind in kinds.items())
    )


def mkv_file(folder: Path, id_: str) -> Path:
    """Where a ledger folder keeps an MKV."""
    return folder / "mkvs" / f"{id_}.safetensors"


def read_mkv(folder: Path, id_: str) -> MKV:
    """An MKV of a ledger folder.

    Raises:
        FedEditError: its file is missing, damaged, or holds another one.
    """
    file = mkv_file(folder, id_)
    try:
        mkv = from_bytes(file.read_bytes())
    except OSError as error:
        raise FedEditError(f"ledger file {file}: cannot be read ({error.strerror})") from None
    except FedEditError as error:
        raise FedEditError(f"ledger file {file}: damaged ({error})") from None
    if mkv.id != id_:
        raise FedEditError(f"ledger file {file}: damaged (it holds MKV {mkv.id})")
    return mkv
