"""Packing and unpacking messages: the records that travel between the server and the nodes.

A message has records with arrays (`mkvs` or `sealed-mkvs`, `keys`, `values`), and `info` with JSON,
whose fields are in `schema`. An answer whose `info` has an `error` says why the node could not do
its part. Beside the JSON an answer's `info` says how many seconds the node took for it. On its way
a message is a `parcel`.
"""

from __future__ import annotations

import io
import json
import math
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedit_app.config.run_config import ConfigValue
from fedit_app.mkv import KINDS, OPEN, Form, Record, decode, encode
from fedit_app.mkv.sealed import SEALING_BYTES
from fedit_app.mkv.wire_checks import MAX_MKVS
from fedit_app.support.errors import FedEditError, shown

VERSION = 10
HELLO = "query.hello"
EDIT = "train.edit"
REEDIT = "train.reedit"
COMPOSE = "train.compose"
EVALUATE = "evaluate"
TRAIN = "train"

# The part of a fingerprint that tells sealed runs, and which key the nodes have.
FEDERATION_KEY = "federation-key"

# What a stock strategy weights the weights of a node without requests by: it divides by the sum.
LEAST_WEIGHT = 1e-9

# Arrays that a strategy may ask for beside a node's weights: K K^T of its new keys, and lambda C.
KEY_SUMS, PRIOR = "key-sums", "prior"

# Of one JSON text: what the names of 100,000 MKVs need.
MAX_JSON_LENGTH = 16 * 2**20

INFO = "info"
_META = "mkv-meta"
_SECONDS, _MEMORY = "seconds", "memory"
_MOST_SECONDS, _MOST_MEMORY = 1e9, 2**50
_KEYS, _LOOKUP = "keys", "lookup"
_VALUES = "values"
_RECORDS = {kind: f"{kind}s" for kind in KINDS}
# How Flower calls bytes that numpy.save has written.
STYPE = "numpy.ndarray"
# Arrays of MKVs and of weights have these types and at most so many axes.
_DTYPES = ("|i1", "<f2", "<f4", "<f8")
_MOST_AXES = 8
# More than numpy.save writes for such an array. Its header is a Python literal: a short one keeps
# parsing it cheap whatever it says.
_MOST_HEADER_BYTES = 256


@dataclass(frozen=True)
class Call:
    """A message as it reaches a node, all but its content.

    Attributes:
        message_type: Flower's message type, such as `EDIT`.
        run_config: the run configuration as Flower hands it over.
        node_config: Flower's node configuration.
        run_id: Flower's run id.
    """

    message_type: str
    run_config: Mapping[str, ConfigValue]
    node_config: Mapping[str, ConfigValue]
    run_id: int

    @property
    def stage(self) -> str:
        """The last part of the message type: hello, edit, reedit, compose, train or evaluate."""
        return self.message_type.rpartition(".")[2]

    @property
    def node(self) -> str:
        """The name in the node configuration; empty in a simulation, where the data has it."""
        return str(self.node_config.get("name", ""))


def pack(info: Mapping[str, Any], mkvs: Sequence[Record] = ()) -> RecordDict:
    """A message's content.

    Args:
        info: what JSON can hold; never text of a request.
        mkvs: MKVs of one fingerprint, all open (and then of one precision) or all sealed.
    """
    told = ConfigRecord({"json": json.dumps(dict(info))})
    content = RecordDict({INFO: told})
    if mkvs:
        kind, arrays, meta = encode(mkvs)
        content[_RECORDS[kind]] = arrays_record(arrays)
        told[_META] = json.dumps(meta)
    return content


def pack_error(node: str, stage: str, error: Exception) -> RecordDict:
    """An answer that says why there is none: a FedEditError's text.

    Of any other error only the type is told, as its text may quote a request.
    """
    reason = str(error)
    if not isinstance(error, FedEditError):
        reason = f"unexpected {type(error).__name__} in {stage}; see the node's log"
    return pack({"node": node, "error": reason})


def arrays_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Named arrays as Flower carries them."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def unpack_info(content: RecordDict) -> dict[str, Any]:
    """The JSON part of a message.

    Raises:
        FedEditError: there is none, or it is damaged.
    """
    return _json_object(content, "json")


def _info(content: RecordDict) -> ConfigRecord:
    """The record `info` of a message; empty if it has none."""
    return content.config_records.get(INFO) or ConfigRecord()


def _json_object(content: RecordDict, key: str) -> dict[str, Any]:
    """A JSON text of the record `info`."""
    text = _info(content).get(key)
    if not isinstance(text, str):
        raise FedEditError(f"message: no readable info `{key}`")
    if len(text) > MAX_JSON_LENGTH:
        raise FedEditError(
            f"message: info `{key}` has {len(text)} characters; at most {MAX_JSON_LENGTH} are read"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FedEditError(f"message: no readable info `{key}` ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise FedEditError(f"message: info `{key}` is {shown(value)}, not an object")
    return value


def note_cost(content: RecordDict, seconds: float, memory: int) -> None:
    """Write into an answer what it took the node.

    Args:
        content: of the answer.
        seconds: how long it took.
        memory: the most bytes that the process that answers has held so far.
    """
    content.config_records[INFO].update({_SECONDS: seconds, _MEMORY: memory})


def noted_seconds(content: RecordDict) -> float:
    """How long a node took for an answer, in seconds; 0 if it does not say so."""
    seconds = _info(content).get(_SECONDS)
    return seconds if isinstance(seconds, float) and 0 <= seconds < _MOST_SECONDS else 0.0


def noted_memory(content: RecordDict) -> int:
    """The most bytes that a node has held by the time of an answer; 0 if it does not say so."""
    memory = _info(content).get(_MEMORY)
    return memory if isinstance(memory, int) and 0 <= memory < _MOST_MEMORY else 0


def unpack_mkvs(
    content: RecordDict,
    fingerprint: str,
    precision: str,
    form: Form | None = None,
    most: int = MAX_MKVS,
) -> list[Record]:
    """The MKVs of a message, checked, open or sealed as they were sent.

    Args:
        content: the message's content.
        fingerprint: the one that they must have. That of sealed MKVs is another than that of open
            ones, so it says which of the two are expected.
        precision: the one that open ones must have.
        form: what they must look like; None for any.
        most: how many they may be.

    Raises:
        FedEditError: they are too many, damaged, or of another fingerprint, precision or form.
    """
    kinds = [kind for kind, name in _RECORDS.items() if name in content.array_records]
    if not kinds:
        return []
    if len(kinds) > 1:
        raise FedEditError("message: open and sealed MKVs in one")
    meta = _json_object(content, _META)
    wanted = {"fingerprint": fingerprint}
    if kinds[0] == OPEN:
        wanted["precision"] = precision
    for name, value in wanted.items():
        if meta.get(name) != value:
            raise FedEditError(
                f"MKVs of {name} {shown(meta.get(name))} sent, {value!r} is expected"
            )
    ids = meta.get("ids")
    if isinstance(ids, list) and len(ids) > most:
        raise FedEditError(f"{len(ids)} MKVs sent; at most {most} are expected")
    return decode(kinds[0], unpack_arrays(content, _RECORDS[kinds[0]]), meta, form)


def unpack_arrays(content: RecordDict, name: str) -> dict[str, np.ndarray]:
    """The named arrays of a message, read-only.

    Raises:
        FedEditError: the record is missing, or is none that `arrays_record` makes of numbers.
    """
    if name not in content.array_records:
        raise FedEditError(f"message: no arrays {name!r}")
    return {
        key: _elements(array, f"message, {name!r} array {shown(key)}")
        for key, array in content.array_records[name].items()
    }


def _elements(array: Array, place: str) -> np.ndarray:
    """A view of an array's bytes, which numpy.save has written.

    numpy.load would allocate whatever size the header claims before it reads the elements.
    """
    if array.stype != STYPE:
        raise FedEditError(f"{place}: {shown(array.stype)} found; it has to be {STYPE}")
    try:
        shape, fortran, dtype, start = read_header(array.data)
    except ValueError as error:
        raise FedEditError(f"{place}: {error}") from None
    elements = memoryview(array.data)[start:]
    expected = math.prod(shape) * dtype.itemsize
    if len(elements) != expected:
        raise FedEditError(
            f"{place}: {len(elements)} bytes found, its shape {shape} needs {expected}"
        )
    return np.frombuffer(elements, dtype).reshape(shape, order="F" if fortran else "C")


def read_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, Fortran order, dtype, and where the elements start, of what numpy.save has written.

    Raises:
        ValueError: it is no header of an array that a message may hold.
    """
    stream = io.BytesIO(data[:_MOST_HEADER_BYTES])
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not of version 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, _MOST_HEADER_BYTES)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError) as error:
        raise ValueError(f"not an array as numpy.save writes it ({type(error).__name__})") from None
    if dtype.str not in _DTYPES:
        raise ValueError(f"elements should be int8, float16, float32 or float64, not {dtype.kind}")
    if len(shape) > _MOST_AXES or any(length < 1 for length in shape):
        raise ValueError(f"shape {shape} found; at most {_MOST_AXES} axes, none empty, are read")
    return shape, fortran, dtype, stream.tell()


def with_lookup(content: RecordDict, keys: np.ndarray) -> RecordDict:
    """A node's answer with the lookup keys of its next slot.

    Args:
        content: the answer.
        keys: (n, width); left out if n is 0.
    """
    if len(keys):
        content[_KEYS] = arrays_record({_LOOKUP: keys})
    return content


def unpack_lookup(content: RecordDict, width: int) -> np.ndarray:
    """The lookup keys of an answer, or sketches of them: (n, width), n = 0 if it has none.

    Raises:
        FedEditError: they are damaged, not finite, or of another width.
    """
    if _KEYS not in content.array_records:
        return np.zeros((0, width), np.float32)
    found = unpack_arrays(content, _KEYS).get(_LOOKUP, np.zeros(0))
    if found.ndim != 2 or found.shape[1] != width:
        raise FedEditError(f"lookup keys of shape {found.shape} found; expected (n, {width})")
    if not np.isfinite(found).all():
        raise FedEditError("lookup keys: NaN or infinity found; every element must be finite")
    return found


def with_values(content: RecordDict, values: np.ndarray) -> RecordDict:
    """A message of a round of composition with the values of contested keys.

    Args:
        content: the message.
        values: (n, width) float16, or sealed as int8; left out if n is 0.
    """
    if len(values):
        content[_VALUES] = arrays_record({_VALUES: values})
    return content


def unpack_values(content: RecordDict, n: int, d_model: int, sealed: bool) -> np.ndarray:
    """The values of a message of composition: (n, d_model) float16, or sealed, (n, bytes) int8.

    Args:
        content: the message.
        n: how many it has to have.
        d_model: width of a value.
        sealed: whether they have to be sealed.

    Raises:
        FedEditError: they are damaged, or of another number, width or form.
    """
    if not n and _VALUES not in content.array_records:
        return np.zeros((0, d_model), np.float16)
    found = unpack_arrays(content, _VALUES).get(_VALUES, np.zeros(0))
    expected = (n, 2 * d_model + SEALING_BYTES if sealed else d_model)
    dtype = "|i1" if sealed else "<f2"
    if found.shape != expected or found.dtype.str != dtype:
        raise FedEditError(
            f"values of shape {found.shape}, {found.dtype.str} found; expected {expected}, {dtype}"
        )
    return found


def content_bytes(content: RecordDict) -> int:
    """Size of a message's records in bytes, without Flower's envelope."""
    # Flower's own count fails on the texts and lists of a record that are empty.
    arrays = sum(record.count_bytes() for record in content.array_records.values())
    others = [*content.config_records.values(), *content.metric_records.values()]
    return arrays + sum(len(record.deflate()) for record in others)
