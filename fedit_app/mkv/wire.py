"""The wire form of MKVs: plain arrays and lists for a message, self-describing bytes for a file.

`decode` and `from_bytes` take what other organisations send: they accept exactly what `encode`
and `to_bytes` write and answer everything else with a FedEditError.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedit_app.errors import FedEditError
from fedit_app.mkv.packing import (
    HALF,
    PACKED_FIELDS,
    SINGLE,
    VECTOR_FIELDS,
    check_packed,
    content_id,
    pack,
    unpack,
)
from fedit_app.mkv.record import MKV, check_origin, check_shapes

MAX_MKVS = 100_000
MAX_MKV_BYTES = 64 * 2**20
META_FIELDS = ("ids", "nodes", "slots")
# Every array of the wire form with its number of axes.
AXES = {"keys": 3, "keys_scale": 2, "shifts": 3, "shifts_scale": 2}
AXES |= {"v_star": 2, "v_star_scale": 1, "h0": 2, "h0_scale": 1}
# safetensors writes metadata keys in random order: one key keeps the bytes reproducible.
METADATA_KEY = "mkv"

Arrays = dict[str, np.ndarray]
Meta = dict[str, list[str] | list[int]]


def encode(mkvs: Sequence[MKV]) -> tuple[Arrays, Meta]:
    """Packs MKVs of one fingerprint for a message; the fingerprint itself travels separately.

    Returns:
        The arrays `keys` `(n, n_layers, d_ff)` fp16 with `keys_scale` `(n, n_layers)` fp32, and in
        the same way `shifts`, `v_star` and `h0`; and the lists `ids`, `nodes`, `slots`.

    Raises:
        FedEditError: the MKVs differ in fingerprint or shapes, or are more than `MAX_MKVS`.
    """
    if len(mkvs) > MAX_MKVS:
        raise FedEditError(f"{len(mkvs)} MKVs in one message found; at most {MAX_MKVS} are allowed")
    if len({(mkv.fingerprint, mkv.keys.shape, mkv.shifts.shape) for mkv in mkvs}) > 1:
        raise FedEditError("MKVs of different fingerprints or shapes cannot share one message")
    if not mkvs:
        arrays = {name: np.zeros((0,) * AXES[name], _dtype(name)) for name in PACKED_FIELDS}
        return arrays, {name: [] for name in META_FIELDS}
    records = [pack({field: getattr(mkv, field) for field in VECTOR_FIELDS}) for mkv in mkvs]
    arrays = {name: np.stack([record[name] for record in records]) for name in PACKED_FIELDS}
    meta: Meta = {
        "ids": [mkv.id for mkv in mkvs],
        "nodes": [mkv.node for mkv in mkvs],
        "slots": [mkv.slot for mkv in mkvs],
    }
    return arrays, meta


def decode(
    arrays: Mapping[str, np.ndarray], meta: Mapping[str, list], fingerprint: str
) -> list[MKV]:
    """The MKVs of a message; the inverse of `encode` bit for bit.

    Raises:
        FedEditError: names, types, shapes or values are not what `encode` writes, an id occurs
            twice or is not the hash of its content.
    """
    n = _check_meta(meta)
    _check_arrays(arrays, n)
    mkvs = []
    for i, (id_, node, slot) in enumerate(zip(*(meta[name] for name in META_FIELDS), strict=True)):
        check_origin(node, slot, fingerprint)
        packed = {name: arrays[name][i] for name in PACKED_FIELDS}
        found = content_id(fingerprint, packed)
        if id_ != found:
            raise FedEditError(
                f"MKV {i} from node {node!r}: id {id_!r:.80} found, but its content and "
                f"fingerprint give {found}; it was damaged or computed on another model"
            )
        mkvs.append(MKV(found, node, slot, fingerprint, **unpack(packed)))
    return mkvs


def to_bytes(mkv: MKV) -> bytes:
    """One MKV as a safetensors file: the arrays of `encode`, the rest as JSON in its metadata."""
    arrays, meta = encode([mkv])
    text = json.dumps({"fingerprint": mkv.fingerprint, **meta}, sort_keys=True)
    return save(arrays, metadata={METADATA_KEY: text})


def from_bytes(data: bytes) -> MKV:
    """The MKV that `to_bytes` wrote, checked as `decode` checks.

    Raises:
        FedEditError: the bytes are damaged, more than `MAX_MKV_BYTES`, or hold another thing.
    """
    if not isinstance(data, bytes) or len(data) > MAX_MKV_BYTES:
        raise FedEditError(f"MKV file: expected at most {MAX_MKV_BYTES} bytes")
    try:
        arrays = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        meta = json.loads(header["__metadata__"][METADATA_KEY])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise FedEditError(f"MKV file: damaged, or not written by FedEdit ({error})") from error
    if not isinstance(meta, dict) or set(meta) != {"fingerprint", *META_FIELDS}:
        raise FedEditError("MKV file: its metadata does not have the fields of one MKV")
    mkvs = decode(arrays, meta, meta.pop("fingerprint"))
    if len(mkvs) != 1:
        raise FedEditError(f"MKV file: {len(mkvs)} MKVs found; it has to hold one")
    return mkvs[0]


def _dtype(name: str) -> np.dtype:
    return HALF if name in VECTOR_FIELDS else SINGLE


def _check_meta(meta: Mapping[str, list]) -> int:
    """The number of MKVs that the lists agree on."""
    if not isinstance(meta, Mapping) or set(meta) != set(META_FIELDS):
        raise FedEditError(f"MKV message: the lists have to be {', '.join(META_FIELDS)}")
    if not all(isinstance(meta[name], list | tuple) for name in META_FIELDS):
        raise FedEditError("MKV message: ids, nodes and slots have to be lists")
    lengths = {name: len(meta[name]) for name in META_FIELDS}
    n = lengths["ids"]
    if len(set(lengths.values())) > 1 or n > MAX_MKVS:
        raise FedEditError(
            f"MKV message: lists of lengths {lengths} found; they have to be of one length, at "
            f"most {MAX_MKVS}"
        )
    if not all(isinstance(id_, str) for id_ in meta["ids"]) or len(set(meta["ids"])) < n:
        raise FedEditError("MKV message: the ids have to be strings, each of them once")
    return n


def _check_arrays(arrays: Mapping[str, np.ndarray], n: int) -> None:
    """Names, types and shapes, then the values of all `n` MKVs."""
    if not isinstance(arrays, Mapping) or set(arrays) != set(PACKED_FIELDS):
        raise FedEditError(f"MKV message: the arrays have to be {', '.join(PACKED_FIELDS)}")
    for name in PACKED_FIELDS:
        array = arrays[name]
        if not isinstance(array, np.ndarray) or array.dtype != _dtype(name):
            found = getattr(array, "dtype", type(array).__name__)
            raise FedEditError(
                f"MKV message, array `{name}`: {found} found; it has to be {_dtype(name)}"
            )
        if array.ndim != AXES[name] or len(array) != n:
            raise FedEditError(
                f"MKV message, array `{name}`: shape {array.shape} found; it has to have "
                f"{AXES[name]} axes, the first of them {n} long"
            )
    if n == 0:
        return
    check_shapes({field: arrays[field].shape[1:] for field in VECTOR_FIELDS})
    for field in VECTOR_FIELDS:
        if arrays[f"{field}_scale"].shape != arrays[field].shape[:-1]:
            raise FedEditError(
                f"MKV message, array `{field}_scale`: shape {arrays[f'{field}_scale'].shape} found;"
                f" it has to be {arrays[field].shape[:-1]}"
            )
    check_packed(arrays)
