"""The messages: what travels between the server and the nodes, and nothing else.

A message has up to two records: `mkvs` or `keys` with arrays, and `info` with JSON. An answer whose
`info` has an `error` says why the node could not do its part.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedit_app.config import ConfigValue
from fedit_app.errors import FedEditError
from fedit_app.mkv import MKV, decode, encode

VERSION = 1
HELLO = "query.hello"
EDIT = "train.edit"
REEDIT = "train.reedit"
EVALUATE = "evaluate"
TRAIN = "train"

_META = "mkv-meta"


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
        """The last part of the message type: hello, edit, reedit, train or evaluate."""
        return self.message_type.rpartition(".")[2]

    @property
    def node(self) -> str:
        """The name in the node configuration; empty in a simulation, where the data has it."""
        return str(self.node_config.get("name", ""))


def pack(info: Mapping[str, Any], mkvs: Sequence[MKV] = ()) -> RecordDict:
    """A message's content.

    Args:
        info: what JSON can hold; never text of a request.
        mkvs: MKVs of one fingerprint.
    """
    content = RecordDict({"info": ConfigRecord({"json": json.dumps(dict(info))})})
    if mkvs:
        arrays, meta = encode(mkvs)
        meta_json = json.dumps({**meta, "fingerprint": mkvs[0].fingerprint})
        content["mkvs"] = arrays_record(arrays)
        content["info"][_META] = meta_json
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
    try:
        info = json.loads(content.config_records["info"]["json"])
    except (KeyError, TypeError, ValueError) as error:
        raise FedEditError(f"message: no readable info ({type(error).__name__})") from None
    if not isinstance(info, dict):
        raise FedEditError("message: info is not an object")
    return info


def unpack_mkvs(content: RecordDict, fingerprint: str) -> list[MKV]:
    """The MKVs of a message, checked.

    Args:
        content: the message's content.
        fingerprint: the one that they must have.

    Raises:
        FedEditError: they are damaged, or of another fingerprint.
    """
    if "mkvs" not in content.array_records:
        return []
    arrays = unpack_arrays(content, "mkvs")
    try:
        meta = json.loads(content.config_records["info"][_META])
        found = meta.pop("fingerprint")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FedEditError(f"message: no readable MKV names ({type(error).__name__})") from None
    if found != fingerprint:
        raise FedEditError(f"MKVs of fingerprint {found!r:.80} sent, {fingerprint!r} is expected")
    return decode(arrays, meta, fingerprint)


def unpack_arrays(content: RecordDict, name: str) -> dict[str, np.ndarray]:
    """The named arrays of a message.

    Raises:
        FedEditError: the record is missing or cannot be read as arrays.
    """
    try:
        return {key: array.numpy() for key, array in content.array_records[name].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise FedEditError(f"message: no arrays {name!r} ({type(error).__name__})") from None


def content_bytes(content: RecordDict) -> int:
    """Size of a message's records in bytes, without Flower's envelope."""
    return sum(record.count_bytes() for record in content.values())


@functools.cache
def code_fingerprint() -> str:
    """Hash of this package's source files: two nodes with different ones may disagree silently."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
