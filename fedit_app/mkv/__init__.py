"""Mediator knowledge vectors: the record and its wire forms.

Knows no Flower, no torch and no model.
"""

from fedit_app.mkv.packing import DEFAULT_PRECISION, PRECISIONS, precision_named, rounding_error
from fedit_app.mkv.record import MKV, SIGNATURES, Form, create
from fedit_app.mkv.sealed import SealedMKV
from fedit_app.mkv.wire import (
    KINDS,
    OPEN,
    SEALED,
    Record,
    decode,
    encode,
    from_bytes,
    mkv_from_bytes,
    to_bytes,
)

__all__ = [
    "DEFAULT_PRECISION",
    "Form",
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
    "encode",
    "from_bytes",
    "mkv_from_bytes",
    "precision_named",
    "rounding_error",
    "to_bytes",
]
