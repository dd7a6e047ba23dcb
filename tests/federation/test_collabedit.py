"""CollabEdit beside the joint ledger, in whole runs."""

import inprocess
import pytest

from fedit_app.config.run_config import RunConfig
from fedit_app.node.participant import Participant
from fedit_app.protocol.messages import EVALUATE, PRIOR, TRAIN, unpack_arrays

pytestmark = pytest.mark.integration


def test_it_writes_the_weights_of_the_joint_ledger_when_nothing_is_shared_twice(settings, answer):
    common = {"num_slots": 1, "mkv_precision": "float32", "reuse_threshold": 0.0}
    config = settings("fedit", **common)
    results, _ = inprocess.federate(config, 2)
    assert [n["received_from"] for n in results["slots"][0]["nodes"].values()] == [
        {"hospital": 5},
        {"bank": 5},
    ]
    place = {"partition-id": 0, "num-partitions": 2}
    bank = Participant(RunConfig.parse(config), place, inprocess.RUN_ID)
    ledger = bank.workbench.deltas(bank.ledger())

    other, seen, asked = settings("collabedit", strategy="collabedit", **common), [], []

    def spy(node_id, message):
        if message.metadata.message_type == EVALUATE and "arrays" in message.content:
            seen.append(unpack_arrays(message.content, "arrays"))
        if message.metadata.message_type != TRAIN:
            return None
        reply = answer(message, other, node_id - 101, nodes=2)
        asked.append(PRIOR in reply.content.array_records)
        return reply

    merged, _ = inprocess.federate(other, 2, tamper=spy)
    assert merged["status"] == "completed" and merged["failed_nodes"] == []
    assert asked == [True, False], "one node sends lambda C"
    for layer, delta in ledger.items():
        found = seen[-1][f"layer-{layer}"]
        assert abs(found - delta.numpy()).max() < 1e-4 * delta.abs().max()
    assert merged["slots"][0]["bytes_up"] > results["slots"][0]["bytes_up"]


def test_later_slots_go_on_from_what_is_there(settings):
    results, _ = inprocess.federate(settings(strategy="collabedit", num_slots=2), 3)
    assert results["status"] == "completed" and results["failed_nodes"] == []
    federation = results["summary"]["federation"]
    assert federation["count"] and federation != results["summary"]["before"]["federation"]
