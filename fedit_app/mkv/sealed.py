"""The sealed MKV: what a server and its pool hold of an MKV that only nodes can open.

Its form in a message is checked as that of an open one: exactly what is written here is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedit_app.mkv.record import SIGNATURES, Form, check_origin, check_signature, is_id
from fedit_app.mkv.sketch import LARGEST_WIDTH, SMALLEST_WIDTH
from fedit_app.mkv.wire_checks import MAX_MKV_BYTES, Arrays, Meta, check_meta, check_types
from fedit_app.support.errors import FedEditError, shown

# A sketch of every signature and, for the same-fact test, of the flattened shifts.
SKETCHES = (*SIGNATURES, "shifts")
PAYLOAD = "payload"
_TOLD = "sealed MKVs"
_FIELDS = ("fingerprint", "ids", "nodes", "slots", "sizes")
SEALING_BYTES = 12 + 16
"""What sealing adds: nonce and tag of AES-GCM."""
# Rounding a unit vector to float16 changes its squared length by less.
_LENGTH_ERROR = 2**-9


@dataclass(frozen=True, eq=False)
class SealedMKV:
    """An MKV that only nodes can open; `Sealer` makes and opens it.

    Attributes:
        id: 32 hex digits, the MKV's id enciphered: the same for the same MKV, and to a server
            without meaning.
        node: the node that computed it.
        slot: the time slot in which it was computed, from 1.
        fingerprint: the MKV's, the federation key and the width of the sketches in one hash.
        sketches: kind of `SKETCHES` -> `(m,)` float16 of length 1, or zero.
        payload: the encrypted MKV.
    """

    id: str
    node: str
    slot: int
    fingerprint: str
    sketches: Mapping[str, np.ndarray]
    payload: bytes

    def signature(self, kind: str) -> np.ndarray:
        """The sketch `(m,)` of the vector that ranking compares, see `MKV.signature`."""
        check_signature(kind)
        return self.sketches[kind]

    @property
    def fact_vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sketches of what tells facts apart, see `MKV.fact_vectors`."""
        return self.sketches["key"], self.sketches["delta"], self.sketches["shifts"]


def encode_sealed(mkvs: Sequence[SealedMKV]) -> tuple[Arrays, Meta]:
    """Packs sealed MKVs for a message.

    Args:
        mkvs: n of one fingerprint, 1 <= n <= `MAX_MKVS`.

    Returns:
        The arrays of the sketches, by kind, `(n, m)` float16, and `payload` `(total,)` int8, all
        of them concatenated; and what JSON can hold: `fingerprint` and the lists `ids`, `nodes`,
        `slots`, `sizes` (of the payloads, in bytes).
    """
    arrays = {kind: np.stack([mkv.sketches[kind] for mkv in mkvs]) for kind in SKETCHES}
    arrays[PAYLOAD] = np.frombuffer(b"".join(mkv.payload for mkv in mkvs), np.int8)
    meta: Meta = {
        "fingerprint": mkvs[0].fingerprint,
        "ids": [mkv.id for mkv in mkvs],
        "nodes": [mkv.node for mkv in mkvs],
        "slots": [mkv.slot for mkv in mkvs],
        "sizes": [len(mkv.payload) for mkv in mkvs],
    }
    return arrays, meta


def decode_sealed(
    arrays: Mapping[str, np.ndarray], meta: object, form: Form | None = None
) -> list[SealedMKV]:
    """The sealed MKVs of a message; the inverse of `encode_sealed`. None of them is opened.

    Args:
        arrays: as sent.
        meta: as sent.
        form: see `wire.decode`.

    Raises:
        FedEditError: names, types, shapes or values are not what `encode_sealed` writes, or an id
            occurs twice.
    """
    names = check_meta(meta, _FIELDS, "", is_id, _TOLD)
    fingerprint, sizes = names["fingerprint"], names["sizes"]
    most = form.most_bytes + SEALING_BYTES if form else MAX_MKV_BYTES
    for size in sizes:
        if type(size) is not int or not SEALING_BYTES <= size <= most:
            raise FedEditError(
                f"{_TOLD}: a payload of {shown(size)} bytes found; it has {SEALING_BYTES} to {most}"
            )
    _check_arrays(arrays, len(sizes), sum(sizes), form)
    payloads = memoryview(arrays[PAYLOAD].tobytes())
    found, begin = [], 0
    for i, (id_, node, slot, size) in enumerate(
        zip(names["ids"], names["nodes"], names["slots"], sizes, strict=True)
    ):
        check_origin(node, slot, fingerprint)
        sketches = {kind: arrays[kind][i] for kind in SKETCHES}
        payload = bytes(payloads[begin : begin + size])
        found.append(SealedMKV(id_, node, slot, fingerprint, sketches, payload))
        begin += size
    return found


def _check_arrays(arrays: Mapping[str, np.ndarray], n: int, total: int, form: Form | None) -> None:
    wanted = dict.fromkeys(SKETCHES, np.dtype("<f2")) | {PAYLOAD: np.dtype("i1")}
    check_types(arrays, wanted, _TOLD)
    if arrays[PAYLOAD].shape != (total,):
        raise FedEditError(
            f"{_TOLD}, array `{PAYLOAD}`: shape {arrays[PAYLOAD].shape} found; the sizes say "
            f"({total},)"
        )
    shapes = {arrays[kind].shape for kind in SKETCHES}
    (shape, *others) = shapes
    if others or len(shape) != 2 or shape[0] != n:
        raise FedEditError(
            f"{_TOLD}: sketches of shapes {sorted(shapes)} found; all have to be ({n}, m)"
        )
    least, most = (form.sketch_width,) * 2 if form else (SMALLEST_WIDTH, LARGEST_WIDTH)
    if not least <= shape[1] <= most:
        raise FedEditError(
            f"{_TOLD}: sketches of width {shape[1]} found; it has to be {least} to {most}"
        )
    for kind in SKETCHES:
        squares = (arrays[kind].astype(np.float64) ** 2).sum(axis=1)
        if not np.all((np.abs(squares - 1) <= _LENGTH_ERROR) | (squares == 0)):
            raise FedEditError(f"{_TOLD}, array `{kind}`: a sketch that has not length 1 found")
