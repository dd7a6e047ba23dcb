"""The mediator knowledge vector (MKV): one edit as vectors, without its text."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedit_app.mkv.packing import DEFAULT_PRECISION, VECTOR_FIELDS, content_id, pack, unpack
from fedit_app.support.errors import FedEditError, shown

SIGNATURES = ("v_star", "delta", "key")
MAX_NAME_LENGTH = 1024
# Of all vectors together; an MKV of a model with 405 billion parameters has a quarter of it.
MAX_ELEMENTS = 2**22
MAX_SLOT = 2**31 - 1
# Of the JSON before the vectors in a file.
MAX_HEADER_BYTES = 64 * 2**10
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Authorship:
    """A node's signature under an MKV; see `authorship`.

    Attributes:
        public_key: of who signed, one line in OpenSSH's form.
        signature: in base64.
    """

    public_key: str
    signature: str


@dataclass(frozen=True)
class Form:
    """What every MKV of a run looks like. Messages are checked against it before they are decoded.

    Attributes:
        n_layers: the number of edited layers.
        d_ff: the width of a key.
        d_model: the width of a shift and of a value.
        sketch_width: the number of elements of a sketch, where MKVs are sealed.
        kinds: of how many kinds of contexts an MKV has a pair: of texts, or of texts and chats.
    """

    n_layers: int
    d_ff: int
    d_model: int
    sketch_width: int
    kinds: int = 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each vector field."""
        value, pairs = (self.d_model,), self.n_layers * self.kinds
        keys, shifts = (pairs, self.d_ff), (pairs, self.d_model)
        return dict(zip(VECTOR_FIELDS, (keys, shifts, value, value), strict=True))

    @property
    def most_bytes(self) -> int:
        """The most bytes of an MKV as a file: in float32, with the longest names."""
        elements = sum(math.prod(shape) for shape in self.shapes.values())
        return 4 * elements + 4 * (2 * self.n_layers * self.kinds + 2) + MAX_HEADER_BYTES


@dataclass(frozen=True, eq=False)
class MKV:
    """One edit as an organisation shares it (FedEdit, arXiv 2502.15677, section 4). No text.

    Make one with `create`: its vectors are then exactly those that every receiver decodes.

    Attributes:
        id: 32 hex digits, the content hash of fingerprint and wire bytes.
        node: the node that computed it.
        slot: the time slot in which it was computed, from 1.
        fingerprint: hash of all that the vectors depend on (model, editor, settings, contexts,
            precision).
        precision: one of `PRECISIONS`, to which the vectors are rounded.
        keys: `(n_layers, d_ff)` float32, the input of each edited projection at the subject. Where
            chats are among the contexts it is `(2 n_layers, d_ff)`: of each layer the key in texts,
            then that in a chat.
        shifts: `(n_layers, d_model)` float32, or `(2 n_layers, d_model)`: how far the projection's
            output at each key is to move, measured from the base weights.
        v_star: `(d_model,)` float32, the optimised value at the last edited layer.
        h0: `(d_model,)` float32, the unedited state at the last edited layer.
        author: the signature of `node`; None if it does not sign.
    """

    id: str
    node: str
    slot: int
    fingerprint: str
    precision: str
    keys: np.ndarray
    shifts: np.ndarray
    v_star: np.ndarray
    h0: np.ndarray
    author: Authorship | None = None

    @property
    def delta(self) -> np.ndarray:
        """`v_star - h0`, `(d_model,)`: what the edit adds to the unedited state."""
        delta: np.ndarray = self.v_star - self.h0
        return delta

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each vector field."""
        return {field: getattr(self, field).shape for field in VECTOR_FIELDS}

    @property
    def lookup_key(self) -> np.ndarray:
        """The key in texts at the first edited layer, `(d_ff,)`: for equal facts on every node."""
        key: np.ndarray = self.keys[0]
        return key

    def signature(self, kind: str) -> np.ndarray:
        """The vector `(d,)` that ranking compares: `v_star`, `delta` or `key` (the lookup key)."""
        check_signature(kind)
        return {"v_star": self.v_star, "delta": self.delta, "key": self.lookup_key}[kind]

    @property
    def fact_vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What tells facts apart: lookup key, `delta` and the flattened shifts (see `facts`)."""
        return self.lookup_key, self.delta, self.shifts.ravel()


def create(
    node: str,
    slot: int,
    fingerprint: str,
    keys: np.ndarray,
    shifts: np.ndarray,
    v_star: np.ndarray,
    h0: np.ndarray,
    precision: str = DEFAULT_PRECISION,
) -> MKV:
    """Makes an MKV, its vectors rounded to a precision and its id computed from them.

    The id does not depend on node and slot: the same content has one identity everywhere.

    Raises:
        FedEditError: a shape, value, name or precision is wrong; see `MKV` for what is right.
    """
    check_origin(node, slot, fingerprint)
    given = dict(zip(VECTOR_FIELDS, (keys, shifts, v_star, h0), strict=True))
    vectors = {field: _as_float32(field, values) for field, values in given.items()}
    check_shapes({field: values.shape for field, values in vectors.items()})
    packed = pack(vectors, precision)
    id_ = content_id(fingerprint, packed)
    return MKV(id_, node, slot, fingerprint, precision, *unpack(packed, precision))


def check_origin(node: object, slot: object, fingerprint: object) -> None:
    """Raises FedEditError unless node and fingerprint are printable names and slot is >= 1."""
    for field, name in (("node", node), ("fingerprint", fingerprint)):
        if (
            not isinstance(name, str)
            or not name.isprintable()
            or not (1 <= len(name) <= MAX_NAME_LENGTH)
        ):
            raise FedEditError(
                f"MKV field `{field}`: {shown(name)} found; it has to be 1 to {MAX_NAME_LENGTH} "
                "printable characters"
            )
    if type(slot) is not int or not 1 <= slot <= MAX_SLOT:
        raise FedEditError(
            f"MKV field `slot`: {shown(slot)} found; it has to be an integer from 1 to {MAX_SLOT}"
        )


def check_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises FedEditError unless the shapes by vector field are those of one MKV (see `MKV`)."""
    ranks = tuple(len(shapes[field]) for field in VECTOR_FIELDS)
    if (
        ranks != (2, 2, 1, 1)
        or shapes["keys"][0] != shapes["shifts"][0]
        or not shapes["shifts"][1:] == shapes["v_star"] == shapes["h0"]
        or 0 in shapes["keys"] + shapes["shifts"]
    ):
        raise FedEditError(
            f"MKV vectors: shapes {shapes} found; keys have to be (pairs, d_ff), shifts "
            "(pairs, d_model), v_star and h0 (d_model,), none of them empty"
        )
    elements = sum(math.prod(shape) for shape in shapes.values())
    if elements > MAX_ELEMENTS:
        raise FedEditError(
            f"MKV vectors: shapes {shapes} found, {elements} elements; at most {MAX_ELEMENTS} are "
            "allowed, edit fewer layers"
        )


def check_form(shapes: Mapping[str, tuple[int, ...]], form: Form) -> None:
    """Raises FedEditError unless the shapes by vector field are those of a run's MKVs."""
    if dict(shapes) != form.shapes:
        raise FedEditError(
            f"MKV vectors: shapes {dict(shapes)} found; those of this run are {form.shapes}"
        )


def is_id(value: object) -> bool:
    """Whether a value is 32 hex digits, as every id of an MKV is."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def check_signature(kind: str) -> None:
    """Raises FedEditError unless `kind` is one of `SIGNATURES`."""
    if kind not in SIGNATURES:
        raise FedEditError(f"signature {kind!r} found; it has to be one of {', '.join(SIGNATURES)}")


def _as_float32(field: str, values: np.ndarray) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):
            return np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise FedEditError(f"MKV field `{field}`: not an array of numbers ({error})") from error
