"""What holds in the place of others is served instead of them, as long as the pool has it."""

import numpy as np
import pytest

from fedit_app.mkv import create
from fedit_app.pool import MKVPool
from fedit_app.pool.superseded import supersede, superseded, superseded_by
from fedit_app.pool.withdraw import withdraw


def mkv(key: int, value: int, node: str, slot: int = 1):
    axes = np.eye(8)
    return create(node, slot, "f", axes[key][None], axes[value][None], 2 * axes[value], axes[value])


@pytest.fixture
def pool(tmp_path):
    return MKVPool(str(tmp_path / "pool"))


def served(pool):
    return {id_ for block in pool.blocks("key", "f") for id_ in block.ids}


A, B, BOTH, OTHER = mkv(0, 1, "bank"), mkv(0, 2, "court"), mkv(0, 3, "bank", 2), mkv(4, 5, "bank")


def test_the_superseded_are_not_served_once_the_other_is_there(pool, tmp_path):
    pool.append([A, B, OTHER])
    supersede(pool, {BOTH.id: [A.id, B.id]})
    assert served(pool) == {A.id, B.id, OTHER.id}
    pool.append([BOTH])
    for found in (pool, MKVPool(str(tmp_path / "pool"))):
        assert served(found) == {BOTH.id, OTHER.id}
        assert superseded(found) == {A.id, B.id}
        assert found.fetch([A.id])[0].id == A.id, "it stays, for who has it"


def test_they_are_served_again_when_it_is_withdrawn(pool):
    pool.append([A, B, BOTH])
    supersede(pool, {BOTH.id: [A.id, B.id]})
    withdraw(pool, "bank", {BOTH.id})
    assert served(pool) == {A.id, B.id}


def test_what_is_superseded_through_others_counts(pool):
    last = mkv(0, 6, "bank", 3)
    pool.append([A, B, BOTH, last])
    supersede(pool, {BOTH.id: [A.id, B.id]})
    supersede(pool, {BOTH.id: [A.id], last.id: [BOTH.id]})
    assert superseded_by(pool, [A.id, BOTH.id, last.id]) == {
        BOTH.id: sorted([A.id, B.id]),
        last.id: sorted([A.id, B.id, BOTH.id]),
    }
    assert served(pool) == {last.id}


def test_nothing_supersedes_itself_and_rounds_end(pool):
    pool.append([A, B])
    supersede(pool, {A.id: [A.id, B.id], B.id: [A.id]})
    assert superseded_by(pool, [A.id]) == {A.id: [B.id]}


def test_what_supersedes_is_served_though_it_is_the_same_fact(pool):
    axes = np.eye(8)
    shifts = axes[1][None] + 0.1 * axes[6]
    anew = create("bank", 2, "f", axes[0][None], shifts, 2 * axes[1], axes[1])
    pool.append([A])
    supersede(pool, {anew.id: [A.id]})
    pool.append([anew])
    assert served(pool) == {anew.id}
    assert pool.facts([anew.id]) == {anew.id: anew.id}
