"""Withdrawn MKVs leave the pool for good, unless somebody else stands by them."""

import numpy as np
import pytest

from fedit_app.mkv import create
from fedit_app.pool import MKVPool
from fedit_app.pool.check import check
from fedit_app.pool.withdraw import withdraw, withdrawals, withdrawn

WIDTH = 8


def mkv(subject: int, node: str, slot: int = 1, tilt: float = 0.0):
    axes = np.eye(WIDTH)
    vector = axes[subject] + tilt * axes[-1]
    return create(node, slot, "f", vector[None], vector[None], 2 * vector, vector / 2)


@pytest.fixture
def pool(tmp_path):
    return MKVPool(str(tmp_path / "pool"))


def ranked(pool):
    """Ids of all that can be served."""
    return {id_ for block in pool.blocks("key", "f") for id_ in block.ids}


def test_an_author_takes_its_own_back(pool, tmp_path):
    mine, theirs = mkv(0, "bank"), mkv(1, "court")
    pool.append([mine, theirs])
    withdraw(pool, "bank", {mine.id})

    for found in (pool, MKVPool(str(tmp_path / "pool"))):
        assert ranked(found) == set(found.facts([mine.id, theirs.id])) == {theirs.id}
        assert withdrawn(found) == {mine.id: ["bank"]}
    withdraw(pool, "bank", {mine.id})
    assert withdrawn(pool) == {mine.id: ["bank"]}
    assert list(check(pool)) == []


def test_nobody_else_can(pool):
    theirs = mkv(1, "court")
    pool.append([theirs])
    withdraw(pool, "bank", {theirs.id})
    assert ranked(pool) == {theirs.id}
    assert withdrawn(pool) == {} == withdrawals(pool)


def test_of_several_authors_the_last_one_removes_it(pool):
    pool.append([mkv(0, "bank"), mkv(0, "court")])
    (id_,) = ranked(pool)
    withdraw(pool, "bank", {id_})
    assert pool.uploaders([id_]) == {id_: ["court"]}
    assert pool.fetch([id_])[0].node == "court"
    assert withdrawn(pool) == {}
    withdraw(pool, "bank", {id_})
    assert ranked(pool) == {id_}
    withdraw(pool, "court", {id_})
    assert ranked(pool) == set()
    assert withdrawn(pool) == {id_: ["bank", "court"]}


def test_a_folded_one_stands_for_the_fact_then(pool):
    first, second = mkv(0, "bank"), mkv(0, "court", 2, tilt=0.01)
    pool.append([first])
    pool.append([second])
    assert ranked(pool) == {first.id}
    withdraw(pool, "bank", {first.id})
    assert ranked(pool) == {second.id}


def test_what_this_pool_never_had_is_noted(pool):
    id_ = mkv(0, "bank").id
    withdraw(pool, "bank", {id_})
    assert withdrawn(pool) == {id_: ["bank"]}
    assert not pool.exists


def test_who_uploads_it_again_stands_by_it_again(pool):
    mine = mkv(0, "bank")
    pool.append([mine])
    withdraw(pool, "bank", {mine.id})
    pool.append([mine])
    assert ranked(pool) == {mine.id} and withdrawn(pool) == {}
