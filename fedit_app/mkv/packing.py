"""Vectors as half-precision numbers with one scale each, and the content hash over them.

Vectors are packed to numbers in [-1, 1] (fp16) times their largest magnitude (fp32), so that large
activations do not overflow and small shifts do not become subnormal. Packing what was unpacked
gives the same bits again: the element of largest magnitude is stored as exactly +-1.
"""

import hashlib

import numpy as np

from fedit_app.errors import FedEditError

VECTOR_FIELDS = ("keys", "shifts", "v_star", "h0")
PACKED_FIELDS = tuple(name for field in VECTOR_FIELDS for name in (field, f"{field}_scale"))

HALF = np.dtype("<f2")
SINGLE = np.dtype("<f4")
# Far outside what activations reach; within these bounds no step can overflow or lose bits.
SMALLEST_SCALE = 1e-12
LARGEST_SCALE = 1e12


def pack(vectors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Packs every field of finite vectors `(..., d)` into `field` (fp16) and `field_scale` `(...)`.

    A vector whose largest magnitude is below `SMALLEST_SCALE` becomes zeros with scale 0.

    Raises:
        FedEditError: a field holds NaN, infinity or a magnitude above `LARGEST_SCALE`.
    """
    packed = {}
    for field, values in vectors.items():
        scales = np.abs(values).max(axis=-1)
        if not np.all(scales <= LARGEST_SCALE):
            raise FedEditError(
                f"MKV field `{field}`: NaN, infinity or a magnitude above {LARGEST_SCALE:g} found; "
                "every element has to be a finite activation"
            )
        scales = np.where(scales < SMALLEST_SCALE, 0, scales).astype(SINGLE)
        column = scales[..., None]
        halves = np.divide(values, column, out=np.zeros_like(values), where=column > 0)
        packed[field] = halves.astype(HALF)
        packed[f"{field}_scale"] = scales
    return packed


def unpack(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The float32 vectors of a packed record, by field; the inverse of `pack` bit for bit."""
    return {
        field: packed[field].astype(np.float32) * packed[f"{field}_scale"][..., None]
        for field in VECTOR_FIELDS
    }


def check_packed(packed: dict[str, np.ndarray]) -> None:
    """Raises FedEditError unless every vector is one that `pack` can have written.

    That is: the scale is 0 and the vector all zero bits, or the scale lies within the bounds and
    the element of largest magnitude is exactly +-1 (which excludes NaN and infinity).
    """
    for field in VECTOR_FIELDS:
        halves, scales = packed[field], packed[f"{field}_scale"]
        zero = (scales == 0) & ~np.signbit(scales) & ~halves.view(np.uint16).any(axis=-1)
        bounded = (scales >= SINGLE.type(SMALLEST_SCALE)) & (scales <= SINGLE.type(LARGEST_SCALE))
        if not np.all(zero | (bounded & (np.abs(halves).max(axis=-1) == 1))):
            raise FedEditError(
                f"MKV field `{field}`: a vector that no sender packs (not finite, a scale outside "
                f"{SMALLEST_SCALE:g} to {LARGEST_SCALE:g}, or a largest magnitude other than 1)"
            )


def content_id(fingerprint: str, packed: dict[str, np.ndarray]) -> str:
    """32 hex digits: BLAKE2b over the fingerprint and the packed shapes and bytes of one record."""
    digest = hashlib.blake2b(fingerprint.encode("utf-8"), digest_size=16)
    for name in PACKED_FIELDS:
        digest.update(f"\0{name}{packed[name].shape}".encode())
        digest.update(packed[name].tobytes())
    return digest.hexdigest()
