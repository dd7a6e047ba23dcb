"""The merged change of the weights is that of the published formulas."""

import itertools

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedit_app.protocol.messages import arrays_record, unpack_arrays
from fedit_app.server.merging import task_arithmetic, ties
from fedit_app.server.strategies import strategy_named

CHANGES = np.random.default_rng(0).standard_normal((3, 4, 5))


def test_task_arithmetic_is_the_sum():
    assert np.allclose(task_arithmetic(CHANGES), CHANGES[0] + CHANGES[1] + CHANGES[2])
    assert np.allclose(task_arithmetic(CHANGES, scale=0.3), 0.3 * CHANGES.sum(0))


def test_ties_entry_by_entry():
    kept = 0.4
    merged = ties(CHANGES, kept)
    least = [sorted(np.abs(change).ravel())[-8] for change in CHANGES]
    for place in itertools.product(range(4), range(5)):
        values = [
            c[place] if abs(c[place]) >= low else 0.0 for c, low in zip(CHANGES, least, strict=True)
        ]
        sign = np.sign(sum(values))
        chosen = [value for value in values if value * sign > 0]
        assert merged[place] == pytest.approx(np.mean(chosen) if chosen else 0.0)
    assert 0 < np.count_nonzero(merged) < merged.size


def test_ties_of_one_node_is_its_trimmed_change():
    merged = ties(CHANGES[:1], 0.5)
    assert np.count_nonzero(merged) == 10 and np.isin(merged[merged != 0], CHANGES[0]).all()


def test_a_change_that_is_smaller_than_the_share_keeps_its_largest_entry():
    assert np.count_nonzero(ties([np.array([[1.0, -3.0]])], 0.01)) == 1
    assert not ties([np.zeros((2, 2))] * 2).any()


class Nodes:
    def get_node_ids(self):
        return [1, 2, 3]


@pytest.fixture
def _in_a_run():
    """What messages are made for; Flower cannot unset it."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


@pytest.mark.usefixtures("_in_a_run")
@pytest.mark.parametrize(("name", "merge"), [("task-arithmetic", task_arithmetic), ("ties", ties)])
def test_a_round_adds_the_merged_change_to_the_common_model(name, merge):
    common, found = np.full((4, 5), 0.5, np.float32), []
    for order in itertools.permutations(range(3)):
        strategy = strategy_named(name)(None, None, "")
        arrays = arrays_record({"layer-1": common})
        sent = strategy.configure_train(1, arrays, ConfigRecord(), Nodes())
        replies = [
            answer(message, (common + change).astype(np.float32))
            for message, change in zip(sent, CHANGES[list(order)], strict=True)
        ]
        arrays, _ = strategy.aggregate_train(1, replies)
        found += unpack_arrays(RecordDict({"arrays": arrays}), "arrays").values()
    assert np.allclose(found[0], common + merge(CHANGES), atol=1e-6)
    assert all(np.array_equal(other, found[0]) for other in found), "whoever answers first"


def answer(message: Message, weights: np.ndarray) -> Message:
    content = {
        "arrays": arrays_record({"layer-1": weights}),
        "metrics": MetricRecord({"num-examples": 2.0}),
    }
    message.metadata.__dict__["_message_id"] = str(message.metadata.dst_node_id)
    return Message(RecordDict(content), reply_to=message)
