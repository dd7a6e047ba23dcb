"""Vectors packed as numbers of a chosen precision with one scale each, and their content hash.

An element is `number / one * scale`. Unpacking and packing again gives the same bits, so an author
holds exactly the vectors that every receiver decodes.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedit_app.support.errors import FedEditError, shown

VECTOR_FIELDS = ("keys", "shifts", "v_star", "h0")
PACKED_FIELDS = tuple(name for field in VECTOR_FIELDS for name in (field, f"{field}_scale"))

SCALE_DTYPE = np.dtype("<f4")
# Far beyond the range of activations; within these bounds no step can overflow or lose bits.
SMALLEST_SCALE = 1e-12
LARGEST_SCALE = 1e12

Elements = Callable[[np.ndarray], np.ndarray]
Vectors = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Keys, shifts, v* and h0."""


@dataclass(frozen=True)
class Precision:
    """A number format for the elements of a vector.

    Attributes:
        dtype: type of the numbers.
        one: the number for an element that equals the scale.
        rounded: rounds `element / scale * one`, where the conversion to `dtype` does not.
        scale: largest magnitude of a vector -> its scale.
    """

    dtype: np.dtype
    one: int
    rounded: Elements
    scale: Elements


# Scaling by the largest magnitude prevents overflow of large activations and keeps all bits of
# small shifts. float32 has sufficient range, and a division would cost its last bit.
PRECISIONS = {
    "int8": Precision(np.dtype("i1"), one=127, rounded=np.rint, scale=np.positive),
    "float16": Precision(np.dtype("<f2"), one=1, rounded=np.positive, scale=np.positive),
    "float32": Precision(np.dtype("<f4"), one=1, rounded=np.positive, scale=np.sign),
}
DEFAULT_PRECISION = "int8"


def precision_named(name: str) -> Precision:
    """The entry of `PRECISIONS` with this name; raises FedEditError if there is none."""
    if not isinstance(name, str) or name not in PRECISIONS:
        raise FedEditError(f"MKV precision {shown(name)} must be one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def pack(vectors: Mapping[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    """Pack every field of float32 vectors `(..., d)` into `field` and `field_scale` `(...)`.

    A vector whose largest magnitude is below `SMALLEST_SCALE` becomes zeros with scale 0.

    Raises:
        FedEditError: the precision is unknown, or a field holds NaN, infinity or a magnitude above
            `LARGEST_SCALE`.
    """
    form = precision_named(precision)
    packed = {}
    for field, values in vectors.items():
        largest = np.abs(values).max(axis=-1)
        if not np.all(largest <= LARGEST_SCALE):
            raise FedEditError(
                f"MKV field `{field}`: NaN, infinity or a magnitude above {LARGEST_SCALE:g} found; "
                "every element must be finite"
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
    """`unpack` for records of others.

    Raises:
        FedEditError: packing the vectors again gives other bits, so `pack` never wrote these.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = unpack(packed, precision)
    again = pack(dict(zip(VECTOR_FIELDS, vectors, strict=True)), precision)
    for name in PACKED_FIELDS:
        if again[name].tobytes() != packed[name].tobytes():
            raise FedEditError(f"MKV array `{name}`: holds a vector that `pack` does not write")
    return vectors


def rounded(vector: np.ndarray, precision: str) -> np.ndarray:
    """A vector `(d,)` float32 as every receiver of an MKV of a precision decodes it.

    Raises:
        FedEditError: see `pack`.
    """
    packed = pack(dict.fromkeys(VECTOR_FIELDS, vector), precision)
    return unpack(packed, precision)[0]


def rounding_error(vector: np.ndarray, precision: str) -> float:
    """Upper bound of the Euclidean distance of this vector `(d,)` from its unrounded original."""
    form = precision_named(precision)
    if form.one > 1:
        return float(np.abs(vector).max()) * float(vector.size**0.5) / (2 * form.one)
    return float(np.linalg.norm(vector)) * float(np.finfo(form.dtype).eps)


def content_id(fingerprint: str, packed: Mapping[str, np.ndarray]) -> str:
    """32 hex digits: BLAKE2b of the fingerprint and a record's packed types, shapes and bytes."""
    digest = hashlib.blake2b(fingerprint.encode("utf-8"), digest_size=16)
    for name in PACKED_FIELDS:
        digest.update(f"\0{name} {packed[name].dtype.str} {packed[name].shape}".encode())
        digest.update(packed[name].tobytes())
    return digest.hexdigest()
