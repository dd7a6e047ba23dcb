"""The files of a ledger's MKVs, each read when its vectors are asked for."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedit_app.ledger.entries import EntryRow
from fedit_app.mkv import MKV, mkv_from_bytes
from fedit_app.mkv.record import Authorship
from fedit_app.support.errors import FedEditError

BYTES_IN_MEMORY = 2**30
"""Vectors that a ledger keeps in memory at most: 24,000 MKVs of SmolLM2-135M."""

_SUFFIX = ".safetensors"
_IN_FILE = frozenset({"slot", "precision", "keys", "shifts", "v_star", "h0"})


class MKVFiles:
    """The MKVs of a ledger's folder; those that were asked for last stay in memory.

    Args:
        folder: of the ledger.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: OrderedDict[str, MKV] = OrderedDict()
        self._bytes = 0

    def mkv(self, id_: str) -> MKV:
        """One of them, as `read_mkv` gives it."""
        if id_ in self._read:
            self._read.move_to_end(id_)
            return self._read[id_]
        found = read_mkv(self._folder, id_)
        self._read[id_] = found
        self._bytes += _bytes(found)
        while self._bytes > BYTES_IN_MEMORY and len(self._read) > 1:
            self._bytes -= _bytes(self._read.popitem(last=False)[1])
        return found

    def require(self, ids: Iterable[str]) -> None:
        """Check that the files of MKVs are there, not what is in them.

        Raises:
            FedEditError: one is missing.
        """
        folder = self._folder / "mkvs"
        there = (
            {name.removesuffix(_SUFFIX) for name in os.listdir(folder)} if folder.exists() else ()
        )
        for id_ in ids:
            if id_ not in there:
                raise FedEditError(
                    f"ledger file {mkv_file(self._folder, id_)}: cannot be read (no such file)"
                )


class StoredMKV(MKV):
    """An MKV of a ledger's folder: known by its row of the index, its file read on first use."""

    @classmethod
    def of_row(cls, row: EntryRow, fingerprint: str, files: MKVFiles) -> StoredMKV:
        """The MKV of a row.

        Args:
            row: of the index.
            fingerprint: the ledger's.
            files: where it is.
        """
        mkv = object.__new__(cls)
        signature = row["signature"]
        author = None if signature is None else Authorship(**signature)
        vars(mkv).update(
            id=row["id"], node=row["node"], fingerprint=fingerprint, author=author, files=files
        )
        return mkv

    def __getattr__(self, name: str) -> Any:
        """What only the file says.

        Raises:
            FedEditError: see `read_mkv`.
        """
        if name not in _IN_FILE:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(vars(self)["files"].mkv(self.id), name)


def mkv_file(folder: Path, id_: str) -> Path:
    """Where a ledger folder keeps an MKV."""
    return folder / "mkvs" / f"{id_}{_SUFFIX}"


def read_mkv(folder: Path, id_: str) -> MKV:
    """An MKV of a ledger folder.

    Raises:
        FedEditError: its file is missing, damaged, or holds another one.
    """
    file = mkv_file(folder, id_)
    try:
        mkv = mkv_from_bytes(file.read_bytes())
    except OSError as error:
        raise FedEditError(f"ledger file {file}: cannot be read ({error.strerror})") from None
    except FedEditError as error:
        raise FedEditError(f"ledger file {file}: damaged ({error})") from None
    if mkv.id != id_:
        raise FedEditError(f"ledger file {file}: damaged (it holds MKV {mkv.id})")
    return mkv


def _bytes(mkv: MKV) -> int:
    return sum(part.nbytes for part in (mkv.keys, mkv.shifts, mkv.v_star, mkv.h0))
