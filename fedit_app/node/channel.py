"""Messages between a node's ClientApp and its resident process, over a private unix socket.

Both sides prove that they know the key (HMAC, see `multiprocessing.connection`) before anything
else is read. Then the resident process sends a greeting, and one message goes each way: a head
(JSON), Flower's records without the data of their arrays, and the data of each array in a frame of
its own, so that neither side holds a second copy of a whole message.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedit_app.protocol.messages import content_bytes
from fedit_app.support.errors import FedEditError

# The change of five layers of a 20-billion-parameter model in float32 has 3 GB.
MOST_BYTES = 4 * 2**30
_MOST_GREETING = 2**16
# What a head and the names of arrays may add to the records.
_MOST_FRAMING = 2**24


def welcome(accepted: socket.socket, key: bytes) -> Connection:
    """The resident process's end of a connection; the ClientApp's end is `Client`.

    Args:
        accepted: the accepted socket; the connection owns it from now on.
        key: the key.

    Raises:
        multiprocessing.AuthenticationError: the other side does not know the key.
        OSError, EOFError: the other side has ended.
    """
    accepted.setblocking(True)
    connection = Connection(accepted.detach())
    try:
        deliver_challenge(connection, key)
        answer_challenge(connection, key)
    except BaseException:
        connection.close()
        raise
    return connection


def send_greeting(connection: Connection, greeting: Mapping[str, object]) -> None:
    """Send what this process is, as JSON."""
    connection.send_bytes(json.dumps(dict(greeting)).encode())


def receive_greeting(connection: Connection) -> object:
    """The other side's greeting; another version of it may send any JSON."""
    found: object = json.loads(connection.recv_bytes(_MOST_GREETING))
    return found


def check_size(content: RecordDict) -> None:
    """Check a message before it is sent.

    Raises:
        FedEditError: it has more than `MOST_BYTES`.
    """
    size = content_bytes(content)
    if size > MOST_BYTES:
        raise FedEditError(
            f"message of {size / 1e6:.0f} MB; a node's ClientApp and its resident process exchange "
            f"at most {MOST_BYTES / 1e6:.0f} MB: serve fewer MKVs or edit fewer layers"
        )


def send(connection: Connection, head: Mapping[str, object], content: RecordDict) -> None:
    """Send a message; its arrays are not copied."""
    bare = RecordDict()
    arrays: list[Array] = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays += record.values()
            record = ArrayRecord({key: _with_data(array, b"") for key, array in record.items()})
        bare[name] = record
    connection.send_bytes(json.dumps(dict(head)).encode())
    connection.send_bytes(recorddict_to_proto(bare).SerializeToString())
    for array in arrays:
        connection.send_bytes(array.data)


def receive(connection: Connection) -> tuple[dict[str, Any], RecordDict]:
    """The head and content of the message that the other side sends.

    Raises:
        OSError, EOFError: the other side has ended, or sends more than `MOST_BYTES`.
    """
    left = MOST_BYTES + _MOST_FRAMING

    def frame() -> bytes:
        nonlocal left
        data = connection.recv_bytes(left)
        left -= len(data)
        return data

    head = json.loads(frame())
    content = recorddict_from_proto(ProtoRecordDict.FromString(frame()))
    for record in content.array_records.values():
        for key in list(record):
            record[key] = _with_data(record[key], frame())
    return head, content


def _with_data(array: Array, data: bytes) -> Array:
    return Array(array.dtype, array.shape, array.stype, data)
