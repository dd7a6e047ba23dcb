"""An answer counts if the node that was asked has signed it: this content, to this message."""

import json

import inprocess
import pytest
import tiny
from flwr.app import Message
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedit_app.mkv.node_key import load_public_key, make_node_key
from fedit_app.protocol.messages import EDIT, REEDIT, unpack_info

pytestmark = pytest.mark.integration

NAMES = ["bank", "hospital", "museum"]
FAULTY = 102  # the hospital
RUN = {"num_slots": 2, "requests_per_slot": 1, "evaluate_every": 2, "value_steps": 2}


def copied(content):
    wire = recorddict_to_proto(content).SerializeToString()
    return recorddict_from_proto(ProtoRecordDict.FromString(wire))


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Folder with NAME.key of every node, and of a stranger; name -> public key."""
    folder, public = tmp_path_factory.mktemp("keys"), {}
    for name in (*NAMES, "stranger"):
        pair = make_node_key()
        (folder / f"{name}.key").write_bytes(pair.private)
        (folder / f"{name}.key").chmod(0o600)
        public[name] = pair.public.decode().strip()
    return folder, public


def node_config(keys, name, key=""):
    given = inprocess.real_node(name, tiny.DEMO / f"{name}.jsonl")
    return given | ({"node-key": str(keys[0] / f"{key or name}.key")} if key != "none" else {})


class Registered(inprocess.InProcessGrid):
    """Nodes that are registered under their names with their keys, as `fedit server register`."""

    public: dict[str, str] = {}

    def get_nodes(self):
        return [
            NodeInfo(
                node_id=101 + number,
                name=name,
                public_key=public_key_to_bytes(load_public_key(self.public[name])),
            )
            for number, name in enumerate(NAMES)
        ]


@pytest.fixture
def federate(settings, keys):
    """Runs two slots; returns the faults, by node, slot and stage, and the results."""

    def federate(tamper=lambda node_id, message: None, key="", grid=Registered):
        config = settings(**RUN)
        given = lambda n: node_config(keys, NAMES[n], key if 101 + n == FAULTY else "")  # noqa: E731
        made = grid(config, 3, tamper=tamper, node_config=given)
        made.public = keys[1]
        results = inprocess.federate_on(made, config)
        assert results["status"] == "completed"
        found = results["failed_nodes"]
        assert {fault["node"] for fault in found} <= {"hospital"}, found
        for slot in results["slots"]:
            assert slot["nodes"]["bank"]["requests"] == 1
        return [(fault["slot"], fault["stage"]) for fault in found], results

    return federate


def is_edit(message, slot):
    told = message.metadata.message_type == EDIT and unpack_info(message.content)
    return bool(told) and told["slot"] == slot


def test_nodes_that_sign_take_part(federate):
    faults, results = federate()
    assert faults == []
    assert results["slots"][1]["nodes"]["hospital"]["requests"] == 1


def test_another_body_under_a_signature_is_refused(federate, settings, keys, answer):
    own = node_config(keys, "hospital")

    def exchange(node_id, message):
        if node_id != FAULTY or not is_edit(message, 1):
            return None
        reply = answer(message, settings(**RUN), 1, node_config=own)
        reply.content.pop("sealed-mkvs")
        return reply

    faults, results = federate(exchange)
    assert faults[0] == (1, "edit")
    assert "is not signed, for this message" in results["failed_nodes"][0]["reason"]


def test_an_answer_of_an_earlier_slot_is_refused(federate):
    kept = {}

    def replay(node_id, message):
        if node_id == FAULTY and is_edit(message, 2):
            return Message(copied(kept["slot 1"]), reply_to=message)
        return None

    class Keeping(Registered):
        def _answer(self, node_id, message):
            reply = super()._answer(node_id, message)
            if node_id == FAULTY and is_edit(message, 1):
                kept["slot 1"] = copied(reply.content)
            return reply

    faults, _ = federate(replay, grid=Keeping)
    assert faults == [(2, "edit")]


def test_an_answer_that_comes_twice_counts_once(federate):
    class Twice(Registered):
        def pull_messages(self, message_ids):
            found = list(super().pull_messages(message_ids))
            return [reply for reply in found for _ in range(2)]

    faults, results = federate(grid=Twice)
    assert faults == []
    assert [slot["nodes"]["hospital"]["requests"] for slot in results["slots"]] == [1, 1]


def test_another_nodes_answer_under_ones_own_name_is_refused(federate):
    others = {}

    def take(node_id, message):
        if node_id == FAULTY and message.metadata.message_type == REEDIT:
            return Message(copied(others["reedit"]), reply_to=message)
        return None

    class Others(Registered):
        def _answer(self, node_id, message):
            reply = super()._answer(node_id, message)
            if node_id == 101 and message.metadata.message_type == REEDIT:
                others["reedit"] = copied(reply.content)
            return reply

    faults, _ = federate(take, grid=Others)
    assert (1, "reedit") in faults


@pytest.mark.parametrize("key", ["none", "stranger"])
def test_a_registered_nodes_answer_without_its_signature_is_refused(federate, key):
    faults, results = federate(key=key)
    assert set(faults) == {(0, "hello")}
    assert "signed" in results["failed_nodes"][0]["reason"]


def test_a_message_that_was_changed_on_its_way_to_a_node_is_noticed(
    federate, settings, keys, answer
):
    """The node signs what it was asked: the server finds out that it has asked something else."""

    def change(node_id, message):
        if node_id != FAULTY or not is_edit(message, 1):
            return None
        content = copied(message.content)
        content["info"]["json"] = json.dumps(unpack_info(content) | {"upload": False})
        asked = Message(content, message_type=EDIT, dst_node_id=FAULTY)
        asked.metadata.__dict__["_message_id"] = message.metadata.message_id
        reply = answer(asked, settings(**RUN), 1, node_config=node_config(keys, "hospital"))
        return Message(reply.content, reply_to=message)

    faults, _ = federate(change)
    assert faults[0] == (1, "edit")
