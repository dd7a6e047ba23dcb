"""Mediator knowledge vectors: the record and its wire forms.

Knows no Flower, no torch and no model.
"""

from fedit_app.mkv.packing import DEFAULT_PRECISION, PRECISIONS, precision_named, rounding_error
from fedit_app.mkv.record import MKV, SIGNATURES, create
from fedit_app.mkv.records import KINDS, OPEN, SEALED, Record, decode_records, encode_records
from fedit_app.mkv.sealed import SealedMKV
from fedit_app.mkv.wire import decode, encode, from_bytes, to_bytes

__all__ = [
    "DEFAULT_PRECISION",
    "KINDS",
    "MKV",
    "OPEN",
    "PRECISIONS",
    "SEALED",
    "SIGNATURES",
    "Record",
    "SealedMKV",
    "create",
    "decode",
    "decode_records",
    "encode",
    "encode_records",
    "from_bytes",
    "precision_named",
    "rounding_error",
    "to_bytes",
]
