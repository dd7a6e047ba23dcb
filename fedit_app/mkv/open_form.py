"""Open MKVs in a message: plain arrays, and what JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedit_app.mkv.packing import (
    PACKED_FIELDS,
    SCALE_DTYPE,
    VECTOR_FIELDS,
    content_id,
    pack,
    precision_named,
    unpack_checked,
)
from fedit_app.mkv.record import MKV, Authorship, Form, check_form, check_origin, check_shapes
from fedit_app.mkv.wire_checks import (
    COMMON_FIELDS,
    MAX_MKVS,
    Arrays,
    Meta,
    check_meta,
    check_types,
)
from fedit_app.support.errors import FedEditError, shown

MAX_SIGNATURE_LENGTH = 1024
# Every array with its number of axes.
AXES = {"keys": 3, "keys_scale": 2, "shifts": 3, "shifts_scale": 2}
AXES |= {"v_star": 2, "v_star_scale": 1, "h0": 2, "h0_scale": 1}
_FIELDS = (*COMMON_FIELDS, "ids", "nodes", "slots")
_TOLD = "MKV message"


def encode_open(mkvs: Sequence[MKV]) -> tuple[Arrays, Meta]:
    """Packs MKVs for a message.

    Args:
        mkvs: n MKVs of one fingerprint and one precision, 1 <= n <= `MAX_MKVS`.

    Returns:
        The arrays `keys` `(n, pairs, d_ff)`, of the precision's type, with `keys_scale`
        `(n, pairs)` float32, and in the same way `shifts`, `v_star` and `h0`; and what JSON
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
        meta["authors"] = [[a.public_key, a.signature] if a else [] for a in authors]
    return arrays, meta


def decode_open(
    arrays: Mapping[str, np.ndarray], meta: object, form: Form | None = None
) -> list[MKV]:
    """The MKVs of a message; the inverse of `encode_open` bit for bit.

    Args:
        arrays: as sent.
        meta: as sent.
        form: see `wire.decode`.

    Raises:
        FedEditError: names, types, shapes or values are not what `encode_open` writes, an id occurs
            twice or is not the hash of its content.
    """
    names = check_meta(meta, _FIELDS, "authors", lambda id_: isinstance(id_, str), _TOLD)
    fingerprint, precision = names["fingerprint"], names["precision"]
    n = len(names["ids"])
    _check_arrays(arrays, n, precision, form)
    authors = [_author(parts) for parts in names.get("authors", [[]] * n)]
    mkvs = []
    for i, (id_, node, slot) in enumerate(
        zip(names["ids"], names["nodes"], names["slots"], strict=True)
    ):
        check_origin(node, slot, fingerprint)
        packed = {name: arrays[name][i] for name in PACKED_FIELDS}
        vectors = unpack_checked(packed, precision)
        found = content_id(fingerprint, packed)
        if id_ != found:
            raise FedEditError(
                f"MKV {i} from node {node!r}: id {shown(id_)} found, but its content and "
                f"fingerprint give {found}; it was damaged or computed on another model"
            )
        mkvs.append(MKV(found, node, slot, fingerprint, precision, *vectors, authors[i]))
    return mkvs


def _author(parts: object) -> Authorship | None:
    """An entry of the list of authors; receivers check that the signature is valid."""
    if parts == []:
        return None
    if not isinstance(parts, list) or len(parts) != 2 or not all(map(_is_short_text, parts)):
        raise FedEditError(f"{_TOLD}: author {shown(parts)}; it has to be a key and a signature")
    return Authorship(*parts)


def _is_short_text(text: object) -> bool:
    return (
        isinstance(text, str)
        and text.isascii()
        and text.isprintable()
        and len(text) <= MAX_SIGNATURE_LENGTH
    )


def _check_arrays(
    arrays: Mapping[str, np.ndarray], n: int, precision: str, form: Form | None
) -> None:
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
    shapes = {field: arrays[field].shape[1:] for field in VECTOR_FIELDS}
    check_shapes(shapes)
    if form is not None:
        check_form(shapes, form)
    for field in VECTOR_FIELDS:
        if arrays[f"{field}_scale"].shape != arrays[field].shape[:-1]:
            raise FedEditError(
                f"{_TOLD}, array `{field}_scale`: shape {arrays[f'{field}_scale'].shape} found;"
                f" it has to be {arrays[field].shape[:-1]}"
            )
