"""Answers that a node has signed: one answer, to one message, of one node, in one run.

Flower signs the time of a request, not what it carries. The statement that a node signs names the
run, the message that it answers by its id, type and content (which names the slot), itself as the
sender, the server as the receiver, and the content of the answer. So an answer counts nowhere else:
not with another content, not once more in a later slot, not under another name, and not to a
message that somebody has changed on its way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Array, ConfigRecord, RecordDict

from fedit_app.mkv.authorship import SigningKey, is_signature_of
from fedit_app.support.errors import FedEditError

_RECORD, _FIELD = "signature", "signature"
_RECEIVER = "server"


@dataclass(frozen=True)
class Question:
    """A message to a node, as its answer's signature names it.

    Attributes:
        run_id: Flower's run id.
        message_id: Flower's id of the message, which no other message of the run has.
        message_type: such as `messages.EDIT`.
        node: the name of the node that is asked.
        content: what it says.
    """

    run_id: int
    message_id: str
    message_type: str
    node: str
    content: RecordDict


def sign(answer: RecordDict, question: Question, key: SigningKey) -> None:
    """Write a node's signature into its answer.

    Args:
        answer: all that the node answers.
        question: what it answers.
        key: the node's.
    """
    answer.pop(_RECORD, None)
    answer[_RECORD] = ConfigRecord({_FIELD: key.signature(_statement(answer, question))})


def require_signature(answer: RecordDict, question: Question, public_key: str) -> None:
    """Check that an answer to a message is signed by the node that was asked.

    Args:
        answer: what has arrived.
        question: what was asked.
        public_key: under which the node is registered, in OpenSSH's form.

    Raises:
        FedEditError: it is not.
    """
    signature = answer.config_records.get(_RECORD, ConfigRecord()).get(_FIELD)
    if not isinstance(signature, str):
        raise FedEditError(
            "its answer is not signed; `fedit node start` signs with the key that is registered"
        )
    if not is_signature_of(_statement(answer, question), signature, public_key):
        raise FedEditError(
            f"its answer is not signed, for this message, with the key registered as "
            f"{question.node!r}; the name in its node.toml has to be that of its registration"
        )


def _statement(answer: RecordDict, question: Question) -> bytes:
    said = {
        "run": question.run_id,
        "message": question.message_id,
        "type": question.message_type,
        "sender": question.node,
        "receiver": _RECEIVER,
        "asked": digest(question.content),
        "answered": digest(answer),
    }
    return b"FedEdit answer " + json.dumps(said, sort_keys=True).encode()


def digest(content: RecordDict) -> str:
    """SHA-256 of a message's records but its signature, whatever the order in which they came."""
    records = hashlib.sha256()
    for name in sorted(content):
        if name != _RECORD:
            fields = hashlib.sha256()
            for part in _parts(content[name]):
                fields.update(f"{len(part)} ".encode())
                fields.update(part)
            kind = type(content[name]).__name__
            records.update(json.dumps([name, kind, fields.hexdigest()]).encode())
    return records.hexdigest()


def _parts(record: Mapping[str, object]) -> Iterator[bytes | memoryview]:
    """The fields of a record in the order of their names, each as its name and its value."""
    for name in sorted(record):
        value = record[name]
        yield name.encode()
        if isinstance(value, Array):
            yield json.dumps([value.dtype, list(value.shape), value.stype]).encode()
            yield memoryview(value.data)
        elif isinstance(value, bytes):
            yield b"bytes"
            yield value
        else:
            yield repr((type(value).__name__, value)).encode()
