"""The ledger: the set of MKVs that a node has accepted. With the base model it is the edited model.

On disk a ledger is a folder: `mkvs/ID.safetensors`, one file an MKV, never changed, and
`index.json`, which says which of them count, replaced in one step after they are written. What the
index does not name does not exist.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedit_app.errors import FedEditError
from fedit_app.files import replace_file, write_json_atomic
from fedit_app.mkv import MKV, from_bytes, to_bytes

_VERSION = 1


@dataclass(frozen=True)
class LedgerEntry:
    """One accepted MKV.

    Attributes:
        mkv: the vectors.
        slot: time slot in which this node accepted it.
        requests: ids of the node's own requests that it fulfils; empty for what only others asked.
    """

    mkv: MKV
    slot: int
    requests: tuple[str, ...] = ()


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
            ledger.entries[mkv.id] = LedgerEntry(mkv, row["slot"], tuple(row["requests"]))
        return ledger

    def __len__(self) -> int:
        return len(self.entries)

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
        """Take MKVs out: the edited model is then as if they had never been accepted."""
        for id_ in ids:
            del self.entries[id_]
        self._save()

    def fulfilled(self) -> dict[str, str]:
        """Own request id -> id of the MKV that fulfils it."""
        return {request: id_ for id_, entry in self.entries.items() for request in entry.requests}

    def vectors(self, n_layers: int, d_ff: int, d_model: int) -> tuple[Tensor, Tensor]:
        """Keys and shifts of all entries, ordered by id, so that arrival order changes nothing.

        Args:
            n_layers: number of edited layers.
            d_ff: width of a key.
            d_model: width of a shift.

        Returns:
            (n, n_layers, d_ff) and (n, n_layers, d_model) float64.
        """
        mkvs = [self.entries[id_].mkv for id_ in sorted(self.entries)]
        keys = np.array([mkv.keys for mkv in mkvs], np.float64).reshape(-1, n_layers, d_ff)
        shifts = np.array([mkv.shifts for mkv in mkvs], np.float64).reshape(-1, n_layers, d_model)
        return torch.from_numpy(keys), torch.from_numpy(shifts)

    def _save(self) -> None:
        if self.folder is None:
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
    except (OSError, ValueError) as error:
        raise FedEditError(f"ledger index {file}: cannot be read ({error})") from None
    if not isinstance(stored, dict) or stored.get("version") != _VERSION:
        raise FedEditError(f"ledger index {file}: not of version {_VERSION}")
    return stored


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
