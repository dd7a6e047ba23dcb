"""The wire form of MKVs, open or sealed: arrays and names for a message, bytes for a file.

`decode` and `from_bytes` take what other organisations send: they accept exactly what `encode` and
`to_bytes` write and answer everything else with a FedEditError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedit_app.mkv.open_form import decode_open, encode_open
from fedit_app.mkv.record import MAX_HEADER_BYTES, MKV, Form
from fedit_app.mkv.sealed import SealedMKV, decode_sealed, encode_sealed
from fedit_app.mkv.wire_checks import MAX_MKV_BYTES, Arrays, Meta
from fedit_app.support.errors import FedEditError, shown

Record = MKV | SealedMKV
"""What a server passes on and a pool keeps."""

# How messages and files name a kind of record. In a file it is the one key of the metadata:
# safetensors writes several in random order.
KINDS = ("mkv", "sealed-mkv")
OPEN, SEALED = KINDS
_UNREADABLE = (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError)


def encode(records: Sequence[Record]) -> tuple[str, Arrays, Meta]:
    """Packs records for a message.

    Args:
        records: at least one, all open or all sealed.

    Returns:
        One of `KINDS`, and what `encode_open` or `encode_sealed` gives.

    Raises:
        FedEditError: some are open and others sealed; see `encode_open`.
    """
    opened = [record for record in records if isinstance(record, MKV)]
    sealed = [record for record in records if isinstance(record, SealedMKV)]
    if opened and sealed:
        raise FedEditError("open and sealed MKVs cannot share one message")
    return (SEALED, *encode_sealed(sealed)) if sealed else (OPEN, *encode_open(opened))


def decode(
    kind: str, arrays: Mapping[str, np.ndarray], meta: object, form: Form | None = None
) -> list[Record]:
    """The records of a message; the inverse of `encode` bit for bit.

    Args:
        kind: one of `KINDS`.
        arrays: as sent.
        meta: as sent.
        form: what the run's MKVs look like, which is checked before any of them is decoded; None
            in a file, which may be of any run.

    Raises:
        FedEditError: see `decode_open` and `decode_sealed`.
    """
    return [*(decode_open if kind == OPEN else decode_sealed)(arrays, meta, form)]


def to_bytes(record: Record) -> bytes:
    """One record as a safetensors file: the arrays of `encode`, and the rest as JSON metadata."""
    kind, arrays, meta = encode([record])
    return save(arrays, metadata={kind: json.dumps(meta, sort_keys=True)})


def from_bytes(data: bytes) -> Record:
    """The record that `to_bytes` wrote, checked as `decode` checks.

    Raises:
        FedEditError: the bytes are damaged, more than `MAX_MKV_BYTES`, or hold another thing.
    """
    records = decode(*_read(data))
    if len(records) != 1:
        raise FedEditError(f"MKV file: {len(records)} MKVs found; it has to hold one")
    return records[0]


def mkv_from_bytes(data: bytes) -> MKV:
    """`from_bytes` where an open MKV is expected.

    Raises:
        FedEditError: it is sealed; see `from_bytes`.
    """
    record = from_bytes(data)
    if isinstance(record, SealedMKV):
        raise FedEditError("MKV file: sealed; only a node that has the federation key can open it")
    return record


def _read(data: bytes) -> tuple[str, Arrays, object]:
    """Kind, arrays and names of a file; the arrays and names are not checked yet."""
    if not isinstance(data, bytes) or len(data) > MAX_MKV_BYTES:
        raise FedEditError(f"MKV file: expected at most {MAX_MKV_BYTES} bytes")
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise FedEditError(
            f"MKV file: a header of {header_bytes} bytes found; expected at most {MAX_HEADER_BYTES}"
        )
    try:
        arrays = load(data)
        header = json.loads(data[8 : 8 + header_bytes])
        ((key, text),) = header["__metadata__"].items()
        meta = json.loads(text)
    except _UNREADABLE as error:
        raise FedEditError(
            f"MKV file: damaged, or not written by FedEdit ({str(error)[:200]})"
        ) from error
    if key not in KINDS:
        raise FedEditError(f"MKV file: metadata {shown(key)} found; not written by FedEdit")
    return key, arrays, meta
