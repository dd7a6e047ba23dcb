"""Mediator knowledge vectors: the record, its wire form, the pool and the selection from it.

Knows no Flower, no torch and no model.
"""

from fedit_app.mkv.blocks import SignatureBlock
from fedit_app.mkv.facts import SameFact, same_fact
from fedit_app.mkv.nearest import Match
from fedit_app.mkv.packing import DEFAULT_PRECISION, PRECISIONS, precision_named, rounding_error
from fedit_app.mkv.pool import MKVPool
from fedit_app.mkv.record import MKV, SIGNATURES, create
from fedit_app.mkv.records import KINDS, OPEN, SEALED, Record, decode_records, encode_records
from fedit_app.mkv.sealed import SealedMKV
from fedit_app.mkv.selection import POLICIES, Ranked, SelectionConfig, select
from fedit_app.mkv.wire import decode, encode, from_bytes, to_bytes

__all__ = [
    "DEFAULT_PRECISION",
    "KINDS",
    "MKV",
    "OPEN",
    "POLICIES",
    "PRECISIONS",
    "SEALED",
    "SIGNATURES",
    "MKVPool",
    "Match",
    "Ranked",
    "Record",
    "SameFact",
    "SealedMKV",
    "SelectionConfig",
    "SignatureBlock",
    "create",
    "decode",
    "decode_records",
    "encode",
    "encode_records",
    "from_bytes",
    "same_fact",
    "precision_named",
    "rounding_error",
    "select",
    "to_bytes",
]
