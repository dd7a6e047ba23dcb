"""Same subject or not, and what follows from it."""

import numpy as np
import pytest

from fedit_app.editing.ledger import Ledger
from fedit_app.federation.reconcile import judge, near_keys
from fedit_app.mkv import MKV, create

D_FF, D_MODEL, LAYERS = 6, 4, 2
SHAPES = (LAYERS, D_FF, D_MODEL)
THRESHOLD = 0.98


def mkv(subject: int, target: int, node: str = "n", tilt: float = 0.0) -> MKV:
    """An MKV whose key points along axis `subject` and whose v* - h0 along axis `target`."""
    keys = np.zeros((LAYERS, D_FF))
    keys[:, subject] = 1
    keys[:, (subject + 1) % D_FF] = tilt
    delta = np.zeros(D_MODEL)
    delta[target] = 2
    shifts = np.full((LAYERS, D_MODEL), 0.1 + len(node))
    h0 = np.full(D_MODEL, 0.5)
    return create(node, 1, "f", keys, shifts, h0 + delta, h0)


@pytest.fixture
def ledger():
    ledger = Ledger("f")
    ledger.accept([mkv(0, 0, "own"), mkv(1, 1, "own")], 1)
    return ledger


def reasons(offered, ledger) -> list[str | None]:
    verdicts = judge(offered, ledger, SHAPES, THRESHOLD)
    return [verdict and verdict.reason for verdict in verdicts]


def test_near_keys_orders_by_cosine_and_leaves_out_the_rest():
    exact, close, far = mkv(0, 0), mkv(0, 1, tilt=0.1), mkv(0, 2, tilt=0.5)
    queries = np.zeros((3, D_FF))
    queries[0, 0] = 9
    queries[1, 3] = 1

    near = near_keys(queries, [far, close, exact], THRESHOLD)
    assert [[m.id for m in row] for row in near] == [[exact.id, close.id], [], []]


def test_near_keys_breaks_ties_by_id():
    twins = [mkv(0, target) for target in range(D_MODEL)]
    query = np.eye(D_FF)[:1]

    forward = [m.id for m in near_keys(query, twins, THRESHOLD)[0]]
    assert forward == [m.id for m in near_keys(query, twins[::-1], THRESHOLD)[0]]
    assert forward == sorted(m.id for m in twins)


def test_near_keys_with_nothing_known():
    assert near_keys(np.eye(D_FF)[:2], [], THRESHOLD) == [[], []]


def test_judge_accepts_other_subjects(ledger):
    assert reasons([mkv(2, 0), mkv(3, 1)], ledger) == [None, None]


def test_judge_knows_what_the_ledger_has(ledger):
    held = next(iter(ledger.entries.values())).mkv

    assert reasons([held], ledger) == ["known"]


def test_judge_tells_a_duplicate_from_a_conflict(ledger):
    own = {m.mkv.delta.argmax(): m.mkv.id for m in ledger.entries.values()}
    same, other = mkv(0, 0, "b", tilt=0.05), mkv(1, 2, "b")
    verdicts = judge([same, other], ledger, SHAPES, THRESHOLD)

    assert verdicts[0].reason == "duplicate"
    assert verdicts[0].conflict is None
    assert verdicts[1].reason == "conflict"
    assert (verdicts[1].conflict.own, verdicts[1].conflict.other) == (own[1], other.id)


def test_judge_refuses_another_shape(ledger):
    narrow = create("b", 1, "f", *(np.ones(s) for s in ((2, D_FF - 1), (2, D_MODEL), 4, 4)))
    shallow = create("b", 1, "f", *(np.ones(s) for s in ((1, D_FF), (1, D_MODEL), 4, 4)))

    assert reasons([narrow, mkv(4, 0), shallow], ledger) == ["shape", None, "shape"]


def test_of_two_offered_about_one_subject_the_first_is_taken(ledger):
    first, second, third = mkv(4, 0), mkv(4, 0, tilt=0.01), mkv(4, 1)

    assert reasons([first, second, third], ledger) == [None, "duplicate", "conflict"]
    assert reasons([third, first, second], ledger) == [None, "conflict", "conflict"]
    assert reasons([first, first], ledger) == [None, "known"]


def test_what_was_refused_does_not_count_as_held(ledger):
    refused = mkv(0, 1, tilt=0.15)  # in conflict with the own MKV on axis 0
    near_refused_only = mkv(0, 1, tilt=0.3)

    assert reasons([refused, near_refused_only], ledger) == ["conflict", None]


def test_an_empty_ledger_takes_all(ledger):
    assert reasons([mkv(0, 0), mkv(1, 1)], Ledger("f")) == [None, None]
    assert reasons([], Ledger("f")) == []
