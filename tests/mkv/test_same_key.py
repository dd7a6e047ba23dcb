"""Same subject or not, same fact or not: decided alike by nodes and pool."""

import math

import numpy as np
import pytest

from fedit_app.ledger.conflicts import settle
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import create
from fedit_app.mkv.same_key import SameFact, key_cosines, near_keys, same_fact
from fedit_app.pool import MKVPool
from fedit_app.support.errors import FedEditError

FINGERPRINT = "model-a"
D_FF, D_MODEL, LAYERS = 12, 8, 2
CONFIG = SameFact()


def towards(axis: int, width: int, cosine: float) -> np.ndarray:
    """A vector with this cosine to axis 0; what is left points along another axis."""
    vector = np.zeros(width)
    vector[0] = cosine
    vector[axis] += np.sqrt(1 - cosine**2)
    return vector


def mkv(node="clinic", slot=1, fingerprint=FINGERPRINT, key=1.0, value=1.0, shifts=1.0, axis=1):
    """An MKV with these cosines to `mkv()`; those with different axes are less alike."""
    keys = np.tile(towards(axis, D_FF, key), (LAYERS, 1))
    h0 = np.full(D_MODEL, 0.5)
    shift = towards(axis, LAYERS * D_MODEL, shifts).reshape(LAYERS, D_MODEL)
    return create(node, slot, fingerprint, keys, shift, h0 + towards(axis, D_MODEL, value), h0)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"node": "school", "slot": 3}, True),
        ({"key": 0.985, "value": 0.65, "shifts": 0.65}, True),
        ({"key": 0.97}, False),
        ({"value": 0.55}, False),
        ({"shifts": 0.55}, False),
        ({"fingerprint": "model-b"}, False),
    ],
)
def test_same_fact_asks_for_subject_target_and_change(changes, same):
    assert same_fact(mkv(), mkv(**changes), CONFIG) is same
    assert same_fact(mkv(**changes), mkv(), CONFIG) is same


def test_the_thresholds_decide():
    other = mkv(key=0.9, value=0.5, shifts=0.4)
    assert same_fact(mkv(), other, SameFact(0.89, 0.49, 0.39))
    for stricter in (SameFact(0.91, 0.4, 0.3), SameFact(0.8, 0.51, 0.3), SameFact(0.8, 0.4, 0.41)):
        assert not same_fact(mkv(), other, stricter)
    with pytest.raises(FedEditError, match="same_value 1.5"):
        SameFact(same_value=1.5)


def test_other_shapes_and_zero_vectors_are_never_the_same():
    base = mkv()
    fewer = create("a", 1, FINGERPRINT, base.keys[:1], base.shifts[:1], base.v_star, base.h0)
    empty = create("a", 1, FINGERPRINT, base.keys, base.shifts, base.h0, base.h0)
    for other in (fewer, empty):
        assert not same_fact(base, other, CONFIG)
    assert not same_fact(empty, empty, CONFIG)


@pytest.mark.parametrize("key", [0.98, 0.5])
def test_a_pair_at_the_threshold_is_decided_alike_by_node_and_pool(tmp_path, key):
    one, other = mkv(), mkv("school", key=key)
    cosine = float(key_cosines(one.lookup_key[None], [other])[0, 0])
    assert abs(cosine - key) < 1e-2
    for number, least in enumerate((math.nextafter(cosine, -1), cosine, math.nextafter(cosine, 2))):
        same = SameFact(same_key=least)
        ledger, pool = Ledger(FINGERPRINT), MKVPool(str(tmp_path / str(number)), same_fact=same)
        ledger.accept([one, other], 1)
        settle(ledger, [other.id], "own-wins", same)
        for record in (one, other):
            pool.append([record])

        expected = least <= cosine
        assert (len(ledger) == 1) is expected
        assert (pool.facts([other.id])[other.id] == one.id) is expected
        assert bool(near_keys(one.lookup_key[None], [other], least)[0]) is expected


def test_near_keys_orders_by_cosine_and_leaves_out_the_rest():
    exact, close, far = mkv(), mkv(key=0.99), mkv(key=0.9)
    queries = np.stack([exact.lookup_key, np.eye(D_FF)[3]])

    (near, none) = near_keys(queries, [far, close, exact], 0.98)
    assert [m.id for _, m in near] == [exact.id, close.id] and none == []
    assert near[0][0] == 1.0 > near[1][0] >= 0.98


def test_near_keys_breaks_ties_by_id():
    twins = [mkv(value=value) for value in (0.1, 0.2, 0.3, 0.4)]
    query = twins[0].lookup_key[None]

    forward = [m.id for _, m in near_keys(query, twins, 0.98)[0]]
    assert forward == [m.id for _, m in near_keys(query, twins[::-1], 0.98)[0]]
    assert forward == sorted(m.id for m in twins)


def test_near_keys_with_nothing_known_or_nothing_asked():
    assert near_keys(np.eye(D_FF)[:2], [], 0.98) == [[], []]
    assert near_keys(np.array([]), [mkv()], 0.98) == []
