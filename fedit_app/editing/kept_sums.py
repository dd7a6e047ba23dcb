"""Sums of a ledger's MKVs that are kept on disk, so that a solve reads only what came and went.

A folder has a file for every edited layer, of K_l K_l^T and K_l R_l^T (see `solver`) and of the ids
of the MKVs whose sums they are. A file is replaced in one step and says itself what it is the sum
of: whatever was interrupted, what differs from the ledger is added and taken out at the next solve.
A file that is missing or damaged is made anew from the MKVs, as all of it can be.

Adding and taking out rounds. The bound on what that has added since the last fresh sum is kept
beside it (see `Sums.drift`); beyond `MAX_DRIFT` the sum is made afresh.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError

from fedit_app.editing.pairs import Pairs, Sums, blocks
from fedit_app.editing.rows import VectorsOf
from fedit_app.mkv import MKV
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import replace_file

logger = logging.getLogger(__name__)

MAX_DRIFT = 1e-12
"""Of the trace of K K^T: some 9,000 slots of new facts, if none is taken out."""

_VERSION = 1
_NAME = "layer-"
_ID_BYTES = 16
_ROUNDING = 1e-10


@dataclass(frozen=True)
class KeptSums:
    """The sums of a ledger on disk.

    Attributes:
        folder: of their files; made when there is something to keep.
        mkv: an MKV by its id, that may have left the ledger; raises FedEditError if it is not
            there any more.
        exact: whether the sums of the very MKVs of every solve are kept; else those of a solve that
            differs from them by more than a block of MKVs, d_ff / 8.
    """

    folder: Path
    mkv: Callable[[str], MKV]
    exact: bool = True

    def of_variant(self) -> KeptSums:
        """The same, for a ledger with some MKVs more or fewer: they are no reason to write."""
        return dataclasses.replace(self, exact=False)

    def pairs(self, mkvs: Sequence[MKV], d_ff: int, d_model: int, kinds: int = 1) -> Pairs:
        """The pairs of MKVs, whose sums are found from those that are kept.

        Args:
            mkvs: some of them, each once.
            d_ff: width of a key.
            d_model: width of a shift.
            kinds: how many pairs an MKV has of each layer.
        """
        shape = d_ff, d_model, kinds
        return pairs_of(mkvs, *shape, _Wanted(self, mkvs, shape).sums)

    def damages(self) -> Iterator[str]:
        """A sentence for every file that does not hold the sums of the MKVs that it names."""
        for file in sorted(self.folder.glob(f"{_NAME}*")):
            found = _read(file)
            if found is None:
                yield f"kept sums {file}: damaged; delete it, and it is computed again"
                continue
            try:
                mkvs = [self.mkv(id_) for id_ in _ids(found.ids)]
            except FedEditError:
                continue  # the next solve cannot take them out either, and sums afresh
            if not _agree(found, mkvs, int(file.name.removeprefix(_NAME))):
                yield f"kept sums {file}: not those of the MKVs that it names; delete it"


def pairs_of(
    mkvs: Sequence[MKV],
    d_ff: int,
    d_model: int,
    kinds: int = 1,
    known: Callable[[int, torch.device], Sums] | None = None,
) -> Pairs:
    """The pairs of MKVs.

    Args:
        mkvs: some of them.
        d_ff: width of a key.
        d_model: width of a shift.
        kinds: how many pairs an MKV has of each layer.
        known: see `Pairs`.
    """
    keys, shifts = VectorsOf(mkvs, "keys", d_ff, kinds), VectorsOf(mkvs, "shifts", d_model, kinds)
    return Pairs(keys, shifts, known)


@dataclass(frozen=True)
class _Header:
    """The first line of a file."""

    version: int
    mkvs: int
    d_ff: int
    d_model: int
    rounding: float
    checksum: int
    kinds: Annotated[int, Field(ge=1, le=2)] = 1


_HEADER = TypeAdapter(_Header)


@dataclass(frozen=True)
class _Stored:
    """What a file holds.

    Attributes:
        ids: of the MKVs, 16 bytes each, rising.
        sums: of their pairs.
        kinds: how many pairs an MKV has.
    """

    ids: bytes
    sums: Sums
    kinds: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """d_ff, d_model and kinds."""
        d_ff, d_model = self.sums.cross.shape
        return d_ff, d_model, self.kinds


class _Wanted:
    """The sums of MKVs that are asked for, layer by layer."""

    def __init__(self, kept: KeptSums, mkvs: Sequence[MKV], shape: tuple[int, int, int]) -> None:
        self._kept, self._mkvs, self._shape = kept, mkvs, shape
        self._bytes: bytes | None = None
        self._differ: tuple[bytes, list[MKV], list[str]] = b"", [], []

    @property
    def _ids(self) -> bytes:
        if self._bytes is None:
            self._bytes = bytes.fromhex("".join(sorted(mkv.id for mkv in self._mkvs)))
        return self._bytes

    def sums(self, i: int, device: torch.device) -> Sums:
        """New sums of the i-th edited layer; they are kept if they were not."""
        file = self._kept.folder / f"{_NAME}{i}"
        updated = self._updated(file, i, device)
        if updated is None:
            found = pairs_of(self._mkvs, *self._shape).layer(i).sums(device)
            differ = len(self._mkvs)
            found.rounding = 0.0
        else:
            found, differ = updated
        d_ff, _, kinds = self._shape
        if differ > (0 if self._kept.exact else d_ff // 8):
            _keep(file, self._ids, found, kinds)
        return found

    def _updated(self, file: Path, i: int, device: torch.device) -> tuple[Sums, int] | None:
        """The kept sums with what came, without what went, and how many these are.

        Returns:
            None if a fresh sum is due.
        """
        stored = _read(file)
        if stored is None or stored.shape != self._shape:
            return None
        came, went = self._difference(stored.ids)
        if len(came) + len(went) >= len(self._mkvs):
            return None
        try:
            gone = [self._kept.mkv(id_) for id_ in went]
        except FedEditError:
            return None
        keys, cross = stored.sums.keys.to(device), stored.sums.cross.to(device)
        found = Sums(keys, cross, stored.sums.rounding)
        for mkvs, times in ((gone, -1), (came, 1)):
            layer = pairs_of(mkvs, *self._shape).layer(i)
            found.add(layer.keys, layer.shifts, times)
        return (found, len(came) + len(went)) if found.drift <= MAX_DRIFT else None

    def _difference(self, stored: bytes) -> tuple[list[MKV], list[str]]:
        """MKVs that are not among stored ids, and ids whose MKVs are not asked for."""
        if stored == self._ids:
            return [], []
        if self._differ[0] != stored:
            before, now = set(_ids(stored)), {mkv.id: mkv for mkv in self._mkvs}
            came = [now[id_] for id_ in sorted(now.keys() - before)]
            self._differ = stored, came, sorted(before - now.keys())
        return self._differ[1:]


def _ids(stored: bytes) -> list[str]:
    text, digits = stored.hex(), 2 * _ID_BYTES
    return [text[begin : begin + digits] for begin in range(0, len(text), digits)]


def _agree(stored: _Stored, mkvs: Sequence[MKV], i: int) -> bool:
    """Whether the sums of a layer are those of MKVs, but for rounding."""
    kept, layer = stored.sums, pairs_of(mkvs, *stored.shape).layer(i)
    fresh = layer.sums(torch.device("cpu"))
    keys = float(fresh.keys.trace())
    parts = blocks(len(layer), stored.shape[0])
    shifts = sum(float(layer.shifts[rows].square().sum()) for rows in parts)
    wrong = float((kept.keys - fresh.keys).norm()), float((kept.cross - fresh.cross).norm())
    return wrong[0] <= _ROUNDING * keys and wrong[1] <= _ROUNDING * math.sqrt(keys * shifts)


def _keep(file: Path, ids: bytes, sums: Sums, kinds: int) -> None:
    """Write sums; where nothing can be written, the next solve does without."""
    parts = [part.cpu().contiguous().numpy() for part in (sums.keys, sums.cross)]
    header = _Header(
        version=_VERSION,
        mkvs=len(ids) // _ID_BYTES,
        d_ff=sums.cross.shape[0],
        d_model=sums.cross.shape[1],
        rounding=sums.rounding,
        checksum=_checksum(ids, *parts),
        kinds=kinds,
    )
    try:
        with replace_file(file) as temporary, temporary.open("wb") as stream:
            stream.write(_HEADER.dump_json(header) + b"\n" + ids)
            for part in parts:
                stream.write(part.data)
    except (OSError, FedEditError) as error:
        logger.info("%s: sums of the ledger are not kept (%s)", file, error)


def _read(file: Path) -> _Stored | None:
    """The content of a file; None if there is none, or it is not complete."""
    try:
        with file.open("rb") as stream:
            header = _HEADER.validate_json(stream.readline(2**12))
            size = header.mkvs * _ID_BYTES + 8 * header.d_ff * (header.d_ff + header.d_model)
            if header.version != _VERSION or file.stat().st_size != stream.tell() + size:
                return None
            ids = stream.read(header.mkvs * _ID_BYTES)
            parts = [np.empty((header.d_ff, n)) for n in (header.d_ff, header.d_model)]
            for part in parts:
                stream.readinto(part.data.cast("B"))
    except (OSError, ValidationError):
        return None
    if _checksum(ids, *parts) != header.checksum:
        return None
    keys, cross = map(torch.from_numpy, parts)
    return _Stored(ids, Sums(keys, cross, header.rounding), header.kinds)


def _checksum(ids: bytes, *parts: np.ndarray) -> int:
    found = zlib.crc32(ids)
    for part in parts:
        found = zlib.crc32(part.data, found)
    return found
