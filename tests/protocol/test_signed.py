"""What a node signs: every part of its answer, and what it has answered to."""

import dataclasses

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedit_app.mkv.authorship import SigningKey
from fedit_app.protocol.messages import EDIT, REEDIT, pack
from fedit_app.protocol.signed import Question, require_signature, sign
from fedit_app.support.errors import FedEditError

KEY = SigningKey(ec.generate_private_key(ec.SECP384R1()))


def content():
    return RecordDict(
        {
            "info": ConfigRecord({"json": "{}", "n": 1, "x": 0.5, "b": b"\x01", "list": ["a"]}),
            "keys": ArrayRecord({"lookup": Array(np.arange(6.0).reshape(2, 3))}),
            "metrics": MetricRecord({"num-examples": 2.0, "counts": [1, 2]}),
            "empty": ConfigRecord({"text": "", "list": []}),
        }
    )


QUESTION = Question(7, "message-1", EDIT, "bank", pack({"slot": 1}))


@pytest.fixture
def answer():
    found = content()
    sign(found, QUESTION, KEY)
    return found


def test_a_signed_answer_is_sound_after_its_journey(answer):
    require_signature(answer, QUESTION, KEY.public)
    wire = recorddict_to_proto(answer).SerializeToString()
    arrived = recorddict_from_proto(ProtoRecordDict.FromString(wire))
    require_signature(arrived, QUESTION, KEY.public)
    turned = RecordDict(dict(reversed(arrived.items())))
    require_signature(turned, QUESTION, KEY.public)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["info"].update({"json": "{} "}),
        lambda c: c["info"].update({"n": 1.0}),
        lambda c: c["info"].update({"x": 0.25}),
        lambda c: c["info"].update({"b": b"\x02"}),
        lambda c: c["info"].update({"list": ["a", "a"]}),
        lambda c: c["info"].update({"more": 1}),
        lambda c: c["info"].pop("n"),
        lambda c: c["metrics"].update({"counts": [1, 3]}),
        lambda c: c["keys"].update({"lookup": Array(np.arange(6.0).reshape(3, 2))}),
        lambda c: c["keys"].update({"lookup": Array(np.arange(1.0, 7.0).reshape(2, 3))}),
        lambda c: c["keys"].update({"more": c["keys"]["lookup"]}),
        lambda c: c.update({"other": c["info"]}),
        lambda c: c.pop("keys"),
        lambda c: c.update({"keys": c["metrics"]}),
        lambda c: c["empty"].update({"text": "x"}),
    ],
)
def test_any_change_of_an_answer_breaks_its_signature(answer, change):
    change(answer)
    with pytest.raises(FedEditError, match="registered as 'bank'"):
        require_signature(answer, QUESTION, KEY.public)


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": 8},
        {"message_id": "message-2"},
        {"message_type": REEDIT},
        {"node": "court"},
        {"content": pack({"slot": 2})},
    ],
)
def test_a_signature_counts_for_one_message_to_one_node(answer, change):
    with pytest.raises(FedEditError, match="not signed, for this message"):
        require_signature(answer, dataclasses.replace(QUESTION, **change), KEY.public)


@pytest.mark.parametrize("signature", ["", "x" * 100, 7, b"", ["x"], None])
def test_what_is_no_signature_is_refused(answer, signature):
    answer["signature"] = ConfigRecord({} if signature is None else {"signature": signature})
    with pytest.raises(FedEditError, match="not signed"):
        require_signature(answer, QUESTION, KEY.public)
    answer["signature"] = MetricRecord({"signature": 1.0})
    with pytest.raises(FedEditError, match="is not signed; `fedit node start`"):
        require_signature(answer, QUESTION, KEY.public)


def test_a_signature_of_another_key_is_refused(answer):
    other = SigningKey(ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(FedEditError, match="not signed"):
        require_signature(answer, QUESTION, other.public)
