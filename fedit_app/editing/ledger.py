"""The ledger: the set of MKVs that a node has accepted. With the base model it is the edited model.

Of two MKVs that contradict each other only one holds; the other is kept, overruled, and holds again
once the first is dropped.

On disk a ledger is a folder: `mkvs/ID.safetensors`, one file an MKV, never changed, and
`index.json`, which says which of them count, replaced in one step after they are written. What the
index does not name does not exist.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedit_app.errors import FedEditError
from fedit_app.files import replace_file, write_json_atomic
from fedit_app.mkv import MKV, from_bytes, to_bytes

_VERSION = 2
_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class LedgerEntry:
    """One accepted MKV.

    Attributes:
        mkv: the vectors.
        slot: time slot in which this node accepted it.
        requests: ids of the node's own requests that it fulfils; empty for what only others asked.
        overruled_by: id of the MKV about the same subject that holds in its stead; empty if this
            one holds.
        votes: how many organisations are known to want it.
    """

    mkv: MKV
    slot: int
    requests: tuple[str, ...] = ()
    overruled_by: str = ""
    votes: int = 1


@dataclass
class Ledger:
    """The accepted MKVs of one node, each once.

    Attributes:
        fingerprint: what all of them mean anything on.
        folder: where they are kept; None keeps them in memory only.
        entries: id -> entry.
    """

    fingerprint: str
    folder: Path | None = None
    entries: dict[str, LedgerEntry] = field(default_factory=dict)
    _saves: bool = field(default=True, init=False, repr=False)

    @staticmethod
    def open(folder: Path, fingerprint: str) -> Ledger:
        """The ledger of a folder; an empty one if there is none yet.

        Raises:
            FedEditError: it belongs to another model or other settings, or a file is damaged.
        """
        ledger = Ledger(fingerprint, folder)
        index = folder / "index.json"
        if not index.exists():
            return ledger
        stored = read_index(folder)
        if stored["fingerprint"] != fingerprint:
            raise FedEditError(
                f"ledger {folder}: made with fingerprint {stored['fingerprint']}, this run has "
                f"{fingerprint}; use the same model, layers, editor, contexts, mkv-precision and "
                "seed, or another state-dir"
            )
        for row in stored["entries"]:
            mkv = _read_mkv(folder, row["id"])
            ledger.entries[mkv.id] = LedgerEntry(
                mkv, row["slot"], tuple(row["requests"]), row["overruled_by"], row["votes"]
            )
        return ledger

    def __len__(self) -> int:
        return len(self.holding)

    @property
    def holding(self) -> list[MKV]:
        """The MKVs that count, ordered by id: all that no other one overrules."""
        held = [entry.mkv for entry in self.entries.values() if not entry.overruled_by]
        return sorted(held, key=lambda mkv: mkv.id)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Make the changes inside the block one step on disk: all of them or, on an error, none.

        After an error the object in memory is of no more use; open the ledger again.
        """
        self._saves = False
        yield
        self._saves = True
        self._save()

    def accept(
        self, mkvs: Iterable[MKV], slot: int, requests: Mapping[str, Sequence[str]] | None = None
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
        return Ledger(self.fingerprint, entries=kept)

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

    def _save(self) -> None:
        if self.folder is None or not self._saves:
            return
        for entry in self.entries.values():
            file = _mkv_file(self.folder, entry.mkv.id)
            if not file.exists():
                with replace_file(file) as temporary:
                    temporary.write_bytes(to_bytes(entry.mkv))
        rows = [
            {
                "id": id_,
                "node": entry.mkv.node,
                "slot": entry.slot,
                "requests": list(entry.requests),
                "overruled_by": entry.overruled_by,
                "votes": entry.votes,
            }
            for id_, entry in sorted(self.entries.items())
        ]
        index = {"version": _VERSION, "fingerprint": self.fingerprint, "entries": rows}
        write_json_atomic(self.folder / "index.json", index)


def read_index(folder: Path) -> dict:
    """The index of a ledger folder: version, fingerprint and entries.

    Raises:
        FedEditError: there is none, or it cannot be read.
    """
    file = folder / "index.json"
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
    if not isinstance(stored.get("fingerprint"), str) or not _are_rows(stored.get("entries")):
        raise FedEditError(f"ledger index {file}: damaged; take a copy from before back")
    return stored


def _are_rows(value: object) -> bool:
    kinds = {"id": str, "node": str, "slot": int, "requests": list, "overruled_by": str}
    kinds |= {"votes": int}
    return isinstance(value, list) and all(
        isinstance(row, dict)
        and row.keys() == kinds.keys()
        and all(type(row[name]) is kind for name, kind in kinds.items())
        and _ID.fullmatch(row["id"])  # it becomes the name of a file
        and all(isinstance(request, str) for request in row["requests"])
        for row in value
    )


def _mkv_file(folder: Path, id_: str) -> Path:
    return folder / "mkvs" / f"{id_}.safetensors"


def _read_mkv(folder: Path, id_: str) -> MKV:
    file = _mkv_file(folder, id_)
    try:
        mkv = from_bytes(file.read_bytes())
    except OSError as error:
        raise FedEditError(f"ledger file {file}: cannot be read ({error.strerror})") from None
    except FedEditError as error:
        raise FedEditError(f"ledger file {file}: damaged ({error})") from None
    if mkv.id != id_:
        raise FedEditError(f"ledger file {file}: damaged (it holds MKV {mkv.id})")
    return mkv
