"""Vectors as numbers of a chosen precision with one scale each, and the content hash over them.

An element is `number / one * scale`. Packing what was unpacked gives the same bits again, so that
an author holds exactly what every receiver decodes.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedit_app.support.errors import FedEditError, shown

VECTOR_FIELDS = ("keys", "shifts", "v_star", "h0")
PACKED_FIELDS = tuple(name for field in VECTOR_FIELDS for name in (field, f"{field}_scale"))

SCALE_DTYPE = np.dtype("<f4")
# Far outside what activations reach; within these bounds no step can overflow or lose bits.
SMALLEST_SCALE = 1e-12
LARGEST_SCALE = 1e12

Elements = Callable[[np.ndarray], np.ndarray]
Vectors = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Keys, shifts, v* and h0."""


@dataclass(frozen=True)
class Precision:
    """How the elements of a vector become numbers.

    Attributes:
        dtype: of the numbers.
        one: the number of an element that equals the scale.
        rounded: brings `element / scale * one` to a number that `dtype` holds or rounds itself.
        scale: the scale of a vector from its largest magnitude.
    """

    dtype: np.dtype
    one: int
    rounded: Elements
    scale: Elements


# Scaled by the largest magnitude, large activations do not overflow and small shifts keep all bits
# that the type has. float32 has the range already, and a division would cost it the last bit.
PRECISIONS = {
    "int8": Precision(np.dtype("i1"), one=127, rounded=np.rint, scale=np.positive),
    "float16": Precision(np.dtype("<f2"), one=1, rounded=np.positive, scale=np.positive),
    "float32": Precision(np.dtype("<f4"), one=1, rounded=np.positive, scale=np.sign),
}
DEFAULT_PRECISION = "int8"


def precision_named(name: str) -> Precision:
    """The entry of `PRECISIONS` with this name.

    Raises:
        FedEditError: there is none.
    """
    if not isinstance(name, str) or name not in PRECISIONS:
        raise FedEditError(f"MKV precision {shown(name)} must be one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def pack(vectors: Mapping[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    """Packs every field of float32 vectors `(..., d)` into `field` and `field_scale` `(...)`.

    A vector whose largest magnitude is below `SMALLEST_SCALE` becomes zeros with scale 0.

    Raises:
        FedEditError: no such precision, or a field holds NaN, infinity or a magnitude above
            `LARGEST_SCALE`.
    """
    form = precision_named(precision)
    packed = {}
    for field, values in vectors.items():
        largest = np.abs(values).max(axis=-1)
        if not np.all(largest <= LARGEST_SCALE):
            raise FedEditError(
                f"MKV field `{field}`: NaN, infinity or a magnitude above {LARGEST_SCALE:g} found; "
                "every element has to be a finite activation"
            )
        largest = np.where(largest < SMALLEST_SCALE, 0, largest)
        scales = form.scale(largest).astype(SCALE_DTYPE)
        column = scales[..., None]
        shares = np.divide(values, column, out=np.zeros_like(values), where=column > 0)
        packed[field] = form.rounded(shares * form.one).astype(form.dtype)
        packed[f"{field}_scale"] = scales
    return packed


def unpack(packed: Mapping[str, np.ndarray], precision: str) -> Vectors:
    """The float32 vectors of a packed record, in the order of `VECTOR_FIELDS`; the inverse of
    `pack` bit for bit."""
    one = np.float32(precision_named(precision).one)
    keys, shifts, v_star, h0 = (
        packed[field].astype(np.float32) / one * packed[f"{field}_scale"][..., None]
        for field in VECTOR_FIELDS
    )
    return keys, shifts, v_star, h0


def unpack_checked(packed: Mapping[str, np.ndarray], precision: str) -> Vectors:
    """`unpack` for what others send.

    Raises:
        FedEditError: the bits are none that `pack` writes: packing gives others.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = unpack(packed, precision)
    again = pack(dict(zip(VECTOR_FIELDS, vectors, strict=True)), precision)
    for name in PACKED_FIELDS:
        if again[name].tobytes() != packed[name].tobytes():
            raise FedEditError(f"MKV array `{name}`: holds a vector that no sender packs")
    return vectors


def rounding_error(vector: np.ndarray, precision: str) -> float:
    """The largest Euclidean distance `(d,)` vectors can have that are rounded to this one."""
    form = precision_named(precision)
    if form.one > 1:
        return float(np.abs(vector).max()) * float(vector.size**0.5) / (2 * form.one)
    return float(np.linalg.norm(vector)) * float(np.finfo(form.dtype).eps)


def content_id(fingerprint: str, packed: Mapping[str, np.ndarray]) -> str:
    """32 hex digits: BLAKE2b over fingerprint, packed types, shapes and bytes of one record."""
    digest = hashlib.blake2b(fingerprint.encode("utf-8"), digest_size=16)
    for name in PACKED_FIELDS:
        digest.update(f"\0{name} {packed[name].dtype.str} {packed[name].shape}".encode())
        digest.update(packed[name].tobytes())
    return digest.hexdigest()
