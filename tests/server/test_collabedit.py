"""CollabEdit's merge is the joint solve of everybody's keys and shifts."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedit_app.protocol.messages import KEY_SUMS, PRIOR, arrays_record
from fedit_app.protocol.schema import TrainAnswer
from fedit_app.server.collabedit import collabedit
from fedit_app.server.uploads import check_average
from fedit_app.support.errors import FedEditError

RANDOM = np.random.default_rng(0)
ROOT = RANDOM.standard_normal((6, 8))
PRIOR_6 = ROOT @ ROOT.T
ROUNDS = [
    [(RANDOM.standard_normal((6, n)), RANDOM.standard_normal((4, n))) for n in (2, 1, 3)]
    for _ in range(2)
]
"""Rounds of nodes, each with keys (d_ff, n) and shifts (d_model, n)."""


def own_change(keys, shifts):
    return shifts @ keys.T @ np.linalg.inv(PRIOR_6 + keys @ keys.T)


def joint(parts):
    """R K^T (lambda C + K K^T)^-1 of all keys and shifts."""
    keys, shifts = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return shifts @ keys.T @ np.linalg.inv(PRIOR_6 + keys @ keys.T)


def test_the_merge_is_the_formula_of_the_paper_and_the_joint_solve():
    changes = [own_change(*part) for part in ROUNDS[0]]
    sums = [keys @ keys.T for keys, _ in ROUNDS[0]]
    formula = sum(
        change @ (PRIOR_6 + own) for change, own in zip(changes, sums, strict=True)
    ) @ np.linalg.inv(PRIOR_6 + sum(sums))
    merged = collabedit(changes, sums, PRIOR_6)
    np.testing.assert_allclose(merged, formula, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(merged, joint(ROUNDS[0]), rtol=1e-9, atol=1e-12)


def test_rounds_one_after_another_end_where_one_solve_of_all_does():
    """A shift of a later round is measured from the model as it is then."""
    common, earlier = np.zeros((4, 6)), np.zeros((6, 6))
    for parts in ROUNDS:
        now = [(keys, shifts - common @ keys) for keys, shifts in parts]
        sums = [keys @ keys.T for keys, _ in now]
        common = common + collabedit([own_change(*part) for part in now], sums, PRIOR_6, earlier)
        earlier = earlier + sum(sums)
    np.testing.assert_allclose(common, joint([*ROUNDS[0], *ROUNDS[1]]), rtol=1e-8, atol=1e-11)


def answered(sums, prior=None):
    content = {
        "arrays": arrays_record({"layer-1": np.zeros((4, 6), np.float32)}),
        "metrics": MetricRecord({"num-examples": 2.0}),
    }
    content |= {KEY_SUMS: arrays_record({"layer-1": sums})} if sums is not None else {}
    content |= {PRIOR: arrays_record({"layer-1": prior})} if prior is not None else {}
    return RecordDict(content)


SQUARE = np.eye(6, dtype=np.float32)


@pytest.mark.parametrize(
    ("sums", "prior", "why"),
    [
        (None, SQUARE, "arrays and key-sums and prior have to come"),
        (SQUARE, None, "arrays and key-sums and prior have to come"),
        (SQUARE[:5], SQUARE, "its key-sums have other names or shapes"),
        (SQUARE * np.nan, SQUARE, "its key-sums are not finite"),
        (SQUARE, SQUARE[:5], "its prior have other names or shapes"),
    ],
)
def test_sums_that_would_end_the_run_are_refused(sums, prior, why):
    config = ConfigRecord({"server-round": 1, "key-sums": True, "prior-from": "bank"})
    sent = RecordDict({"arrays": answered(None)["arrays"], "config": config})
    answer = TrainAnswer(node="bank", requests=2, optimised=2, cached=0)
    check_average(answered(SQUARE, SQUARE), sent, answer)
    with pytest.raises(FedEditError, match=why):
        check_average(answered(sums, prior), sent, answer)
