"""The wire form of MKVs: plain arrays and lists for a message, self-describing bytes for a file.

`decode` and `from_bytes` take what other organisations send: they accept exactly what `encode`
and `to_bytes` write and answer everything else with a FedEditError.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedit_app.mkv.packing import (
    PACKED_FIELDS,
    SCALE_DTYPE,
    VECTOR_FIELDS,
    content_id,
    pack,
    precision_named,
    unpack_checked,
)
from fedit_app.mkv.record import MKV, Authorship, check_origin, check_shapes
from fedit_app.support.errors import FedEditError, shown

MAX_MKVS = 100_000
# Of one MKV as a file: more than the largest vectors (`MAX_ELEMENTS`) and names need.
MAX_MKV_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 64 * 2**10
# What all MKVs of a message share, and lists with an entry for each.
COMMON_FIELDS = ("fingerprint", "precision")
LIST_FIELDS = ("ids", "nodes", "slots")
# A further list if any MKV of a message is signed: public key and signature, or nothing.
AUTHORS = "authors"
MAX_SIGNATURE_LENGTH = 1024
# Every array of the wire form with its number of axes.
AXES = {"keys": 3, "keys_scale": 2, "shifts": 3, "shifts_scale": 2}
AXES |= {"v_star": 2, "v_star_scale": 1, "h0": 2, "h0_scale": 1}
# safetensors writes metadata keys in random order: one key keeps the bytes reproducible.
METADATA_KEY = "mkv"
SEALED_KEY = "sealed-mkv"
_TOLD = "MKV message"
_UNREADABLE = (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError)

Arrays = dict[str, np.ndarray]
Meta = dict[str, str | list[str] | list[int]]


def encode(mkvs: Sequence[MKV]) -> tuple[Arrays, Meta]:
    """Packs MKVs for a message.

    Args:
        mkvs: n MKVs of one fingerprint and one precision, 1 <= n <= `MAX_MKVS`.

    Returns:
        The arrays `keys` `(n, n_layers, d_ff)`, of the precision's type, with `keys_scale`
        `(n, n_layers)` float32, and in the same way `shifts`, `v_star` and `h0`; and what JSON
        can hold: `fingerprint`, `precision`, and the lists `ids`, `nodes`, `slots` and, if any is
        signed, `authors`.

    Raises:
        FedEditError: the MKVs differ in fingerprint, precision or shapes, or are none or too many.
    """
    if not 1 <= len(mkvs) <= MAX_MKVS:
        raise FedEditError(f"{len(mkvs)} MKVs in one message found; it holds 1 to {MAX_MKVS}")
    kinds = {(mkv.fingerprint, mkv.precision, mkv.keys.shape, mkv.shifts.shape) for mkv in mkvs}
    if len(kinds) > 1:
        raise FedEditError(
            "MKVs of different fingerprints, precisions or shapes cannot share one message"
        )
    records = [
        pack({field: getattr(mkv, field) for field in VECTOR_FIELDS}, mkv.precision) for mkv in mkvs
    ]
    arrays = {name: np.stack([record[name] for record in records]) for name in PACKED_FIELDS}
    meta: Meta = {
        "fingerprint": mkvs[0].fingerprint,
        "precision": mkvs[0].precision,
        "ids": [mkv.id for mkv in mkvs],
        "nodes": [mkv.node for mkv in mkvs],
        "slots": [mkv.slot for mkv in mkvs],
    }
    if any(mkv.author for mkv in mkvs):
        authors = [mkv.author for mkv in mkvs]
        meta[AUTHORS] = [[a.public_key, a.signature] if a else [] for a in authors]
    return arrays, meta


def decode(arrays: Mapping[str, np.ndarray], meta: Mapping[str, object]) -> list[MKV]:
    """The MKVs of a message; the inverse of `encode` bit for bit.

    Raises:
        FedEditError: names, types, shapes or values are not what `encode` writes, an id occurs
            twice or is not the hash of its content.
    """
    n = _check_meta(meta)
    fingerprint, precision = (meta[name] for name in COMMON_FIELDS)
    _check_arrays(arrays, n, precision)
    authors = [_author(parts) for parts in meta.get(AUTHORS, [[]] * n)]
    mkvs = []
    for i, (id_, node, slot) in enumerate(zip(*(meta[name] for name in LIST_FIELDS), strict=True)):
        check_origin(node, slot, fingerprint)
        packed = {name: arrays[name][i] for name in PACKED_FIELDS}
        vectors = unpack_checked(packed, precision)
        found = content_id(fingerprint, packed)
        if id_ != found:
            raise FedEditError(
                f"MKV {i} from node {node!r}: id {shown(id_)} found, but its content and "
                f"fingerprint give {found}; it was damaged or computed on another model"
            )
        mkvs.append(MKV(found, node, slot, fingerprint, precision, **vectors, author=authors[i]))
    return mkvs


def to_bytes(mkv: MKV) -> bytes:
    """One MKV as a safetensors file: the arrays of `encode`, the rest as JSON in its metadata."""
    return write_file(METADATA_KEY, *encode([mkv]))


def from_bytes(data: bytes) -> MKV:
    """The MKV that `to_bytes` wrote, checked as `decode` checks.

    Raises:
        FedEditError: the bytes are damaged, more than `MAX_MKV_BYTES`, or hold another thing.
    """
    key, arrays, meta = read_file(data)
    if key != METADATA_KEY:
        raise FedEditError("MKV file: sealed; only a node that has the federation key can open it")
    mkvs = decode(arrays, meta)
    if len(mkvs) != 1:
        raise FedEditError(f"MKV file: {len(mkvs)} MKVs found; it has to hold one")
    return mkvs[0]


def write_file(key: str, arrays: Arrays, meta: Meta) -> bytes:
    """A safetensors file of arrays, with `meta` as JSON under the one `key` of its metadata."""
    return save(arrays, metadata={key: json.dumps(meta, sort_keys=True)})


def read_file(data: bytes) -> tuple[str, Arrays, object]:
    """The key, arrays and `meta` of `write_file`; none of them is checked yet.

    Raises:
        FedEditError: the bytes are damaged, or more than `MAX_MKV_BYTES`.
    """
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
    if key not in (METADATA_KEY, SEALED_KEY):
        raise FedEditError(f"MKV file: metadata {shown(key)} found; not written by FedEdit")
    return key, arrays, meta


def _check_meta(meta: Mapping[str, object]) -> int:
    """The number of MKVs that the lists agree on."""
    fields = (*COMMON_FIELDS, *LIST_FIELDS)
    if not isinstance(meta, Mapping) or set(meta) - {AUTHORS} != set(fields):
        raise FedEditError(f"{_TOLD}: what is beside the arrays has to be {', '.join(fields)}")
    n = check_lists(meta, [name for name in meta if name not in COMMON_FIELDS], _TOLD)
    if not all(isinstance(id_, str) for id_ in meta["ids"]) or len(set(meta["ids"])) < n:
        raise FedEditError(f"{_TOLD}: the ids have to be strings, each of them once")
    return n


def check_lists(meta: Mapping[str, object], names: Sequence[str], told: str) -> int:
    """The number of MKVs in a message, on which its lists agree.

    Args:
        meta: what is beside the arrays; `names` are in it.
        names: the lists, with an entry for every MKV.
        told: how an error begins.

    Raises:
        FedEditError: one is no list, or they differ in length, or are empty or too long.
    """
    if not all(isinstance(meta[name], list) for name in names):
        raise FedEditError(f"{told}: {', '.join(names)} have to be lists")
    lengths = {name: len(meta[name]) for name in names}
    n = lengths[names[0]]
    if len(set(lengths.values())) > 1 or not 1 <= n <= MAX_MKVS:
        raise FedEditError(
            f"{told}: lists of lengths {lengths} found; they have to be of one length, 1 to "
            f"{MAX_MKVS}"
        )
    return n


def check_types(
    arrays: Mapping[str, np.ndarray], wanted: Mapping[str, np.dtype], told: str
) -> None:
    """Make sure that a message has the wanted arrays, of the wanted types.

    Args:
        arrays: those of the message.
        wanted: name -> type.
        told: how an error begins.

    Raises:
        FedEditError: one is missing, too much, or of another type.
    """
    if not isinstance(arrays, Mapping) or set(arrays) != set(wanted):
        raise FedEditError(f"{told}: the arrays have to be {', '.join(wanted)}")
    for name, dtype in wanted.items():
        if not isinstance(arrays[name], np.ndarray) or arrays[name].dtype != dtype:
            found = getattr(arrays[name], "dtype", type(arrays[name]).__name__)
            raise FedEditError(f"{told}, array `{name}`: {found} found; it has to be {dtype}")


def _author(parts: object) -> Authorship | None:
    """What stands in the list of authors for one MKV. Whether it is true, receivers ask."""
    if parts == []:
        return None
    texts = parts if isinstance(parts, list) and len(parts) == 2 else [None]
    if not all(
        isinstance(t, str) and t.isascii() and t.isprintable() and len(t) <= MAX_SIGNATURE_LENGTH
        for t in texts
    ):
        raise FedEditError(f"{_TOLD}: author {shown(parts)}; it has to be a key and a signature")
    return Authorship(*texts)


def _check_arrays(arrays: Mapping[str, np.ndarray], n: int, precision: str) -> None:
    """Names, types and shapes of all `n` MKVs, so that none needs more memory than was sent."""
    dtypes = dict.fromkeys(VECTOR_FIELDS, precision_named(precision).dtype)
    check_types(arrays, {name: dtypes.get(name, SCALE_DTYPE) for name in PACKED_FIELDS}, _TOLD)
    for name in PACKED_FIELDS:
        array = arrays[name]
        if array.ndim != AXES[name] or len(array) != n:
            raise FedEditError(
                f"{_TOLD}, array `{name}`: shape {array.shape} found; it has to have "
                f"{AXES[name]} axes, the first of them {n} long"
            )
    check_shapes({field: arrays[field].shape[1:] for field in VECTOR_FIELDS})
    for field in VECTOR_FIELDS:
        if arrays[f"{field}_scale"].shape != arrays[field].shape[:-1]:
            raise FedEditError(
                f"{_TOLD}, array `{field}_scale`: shape {arrays[f'{field}_scale'].shape} found;"
                f" it has to be {arrays[field].shape[:-1]}"
            )
