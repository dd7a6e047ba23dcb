"""What a server passes on and a pool keeps, open or sealed: one name for both, and their forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedit_app.mkv.record import MKV
from fedit_app.mkv.sealed import SealedMKV, decode_sealed, encode_sealed
from fedit_app.mkv.wire import (
    METADATA_KEY,
    SEALED_KEY,
    Arrays,
    Meta,
    decode,
    encode,
    read_file,
    write_file,
)
from fedit_app.support.errors import FedEditError

Record = MKV | SealedMKV
# Kind of record, as it is named in messages and files -> what packs and unpacks many of it.
_FORMS = {
    METADATA_KEY: (MKV, encode, decode),
    SEALED_KEY: (SealedMKV, encode_sealed, decode_sealed),
}
KINDS = tuple(_FORMS)
OPEN, SEALED = KINDS


def encode_records(records: Sequence[Record]) -> tuple[str, Arrays, Meta]:
    """Kind, arrays and names of records, as `encode` or `encode_sealed` packs them.

    Args:
        records: at least one, all open or all sealed.

    Raises:
        FedEditError: some are open and others sealed; see `encode`.
    """
    for kind, (form, pack, _) in _FORMS.items():
        if all(isinstance(record, form) for record in records):
            return kind, *pack(records)
    raise FedEditError("open and sealed MKVs cannot share one message")


def decode_records(
    kind: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, object]
) -> list[Record]:
    """The records of a message; the inverse of `encode_records`.

    Args:
        kind: one of `KINDS`.
        arrays: as sent.
        meta: as sent.

    Raises:
        FedEditError: see `decode` and `decode_sealed`.
    """
    return _FORMS[kind][2](arrays, meta)


def record_to_bytes(record: Record) -> bytes:
    """One record as a safetensors file; of an open MKV the same as `to_bytes`."""
    return write_file(*encode_records([record]))


def record_from_bytes(data: bytes) -> Record:
    """The record that `record_to_bytes` wrote, checked as `decode_records` checks.

    Raises:
        FedEditError: the bytes are damaged, or hold another thing.
    """
    records = decode_records(*read_file(data))
    if len(records) != 1:
        raise FedEditError(f"MKV file: {len(records)} MKVs found; it has to hold one")
    return records[0]
