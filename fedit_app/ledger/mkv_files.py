"""The files of a ledger's MKVs: one for those of a step, each MKV read when it is asked for.

`mkvs/NUMBER.mkvs` holds the MKVs that a step has accepted: a line of JSON, [[id, bytes], ...], and
behind it every MKV as `to_bytes` makes it. The number is that of the step's first record in the
journal. A file is never changed; one that an interrupted step has left is replaced by the next
step's. FedEdit 0.1 wrote every MKV to a file of its own, `mkvs/ID.safetensors`, which is read, too.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from fedit_app.ledger.entries import EntryRow, MKVId
from fedit_app.mkv import MKV, mkv_from_bytes, to_bytes
from fedit_app.mkv.record import Authorship
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import replace_file

BYTES_IN_MEMORY = 2**30
"""Vectors that a ledger keeps in memory at most: 24,000 MKVs of SmolLM2-135M."""

_ALONE, _TOGETHER = ".safetensors", ".mkvs"
_IN_FILE = frozenset({"slot", "precision", "keys", "shifts", "v_star", "h0"})
_CONTENT = TypeAdapter(list[tuple[MKVId, NonNegativeInt]])

_Place = tuple[str, int, int]
"""Name of a file, at which byte an MKV begins, and how many it has; -1: all."""


class MKVFiles:
    """The MKVs of a ledger's folder; those that were asked for last stay in memory.

    Args:
        folder: of the ledger.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "mkvs"
        self._places: dict[str, _Place] = {}
        self._damages: list[str] = []
        self._read: OrderedDict[str, MKV] = OrderedDict()
        self._bytes = 0

    def mkv(self, id_: str) -> MKV:
        """One of them, as `read` gives it."""
        if id_ in self._read:
            self._read.move_to_end(id_)
            return self._read[id_]
        found = self.read(id_)
        self._read[id_] = found
        self._bytes += _bytes(found)
        while self._bytes > BYTES_IN_MEMORY and len(self._read) > 1:
            self._bytes -= _bytes(self._read.popitem(last=False)[1])
        return found

    def read(self, id_: str) -> MKV:
        """One of them, from its file.

        Raises:
            FedEditError: its file is missing, damaged, or holds another one.
        """
        name, begin, size = self._place(id_)
        file = self._folder / name
        try:
            with file.open("rb") as stream:
                stream.seek(begin)
                mkv = mkv_from_bytes(stream.read(size))
        except OSError as error:
            raise FedEditError(f"ledger file {file}: cannot be read ({error.strerror})") from None
        except FedEditError as error:
            raise FedEditError(f"ledger file {file}: damaged ({error})") from None
        if mkv.id != id_:
            raise FedEditError(f"ledger file {file}: damaged (it holds MKV {mkv.id} for {id_})")
        return mkv

    def require(self, ids: Iterable[str]) -> None:
        """Check that the MKVs are there, not what is in them.

        Raises:
            FedEditError: one is missing.
        """
        missing = set(ids) - self._places.keys()
        if missing:
            self._look()
        for id_ in sorted(missing - self._places.keys()):
            self._place(id_)

    def add(self, number: int, mkvs: Sequence[MKV]) -> None:
        """Write the MKVs of a step; a power cut afterwards loses none.

        Args:
            number: of the step's first record in the journal.
            mkvs: one or more.
        """
        parts = [to_bytes(mkv) for mkv in mkvs]
        content = [(mkv.id, len(part)) for mkv, part in zip(mkvs, parts, strict=True)]
        with (
            replace_file(self._folder / f"{number:010d}{_TOGETHER}") as temporary,
            temporary.open("wb") as stream,
        ):
            stream.write(_CONTENT.dump_json(content) + b"\n")
            stream.writelines(parts)

    def _place(self, id_: str) -> _Place:
        """Where an MKV is; raises FedEditError if it is nowhere."""
        if id_ not in self._places:
            self._look()
        if id_ not in self._places:
            lost = self._damages or [f"ledger files {self._folder}: none holds MKV {id_}"]
            raise FedEditError(f"{lost[0]}; restore a backup")
        return self._places[id_]

    def _look(self) -> None:
        """Note what every file holds; the latest that holds an MKV counts."""
        self._places, self._damages = {}, []
        names = sorted(os.listdir(self._folder)) if self._folder.exists() else []
        for name in names:
            if name.endswith(_ALONE):
                self._places[name.removesuffix(_ALONE)] = name, 0, -1
        for name in names:
            if name.endswith(_TOGETHER):
                self._look_into(name)

    def _look_into(self, name: str) -> None:
        file = self._folder / name
        try:
            with file.open("rb") as stream:
                content = _CONTENT.validate_json(stream.readline())
                begin = stream.tell()
        except OSError as error:
            self._damages.append(f"ledger file {file}: cannot be read ({error.strerror})")
            return
        except ValidationError:
            self._damages.append(f"ledger file {file}: damaged (in its first line)")
            return
        for id_, size in content:
            self._places[id_] = name, begin, size
            begin += size


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
            FedEditError: see `MKVFiles.read`.
        """
        if name not in _IN_FILE:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(vars(self)["files"].mkv(self.id), name)


def _bytes(mkv: MKV) -> int:
    return sum(part.nbytes for part in (mkv.keys, mkv.shifts, mkv.v_star, mkv.h0))
