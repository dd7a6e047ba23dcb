"""Withdrawn MKVs leave the pool for good, unless somebody else stands by them."""

import numpy as np
import pytest

from fedit_app.mkv import SIGNATURES, create
from fedit_app.pool import MKVPool
from fedit_app.pool.check import check
from fedit_app.pool.rows import COLUMNS
from fedit_app.pool.withdraw import confirm, receipts, withdraw, withdrawals, withdrawn

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


def test_no_byte_of_its_vectors_stays_on_the_disk(pool, tmp_path):
    """Not in the table, nor in an earlier version of it: the files are searched for the bytes."""
    random = np.random.default_rng(0)

    def secret(node):
        key, shift, value, h0 = random.standard_normal((4, 64))
        return create(node, 1, "f", key[None], shift[None], value, h0)

    def found(id_):
        """Which parts of a row are somewhere in the files."""
        content = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        return [part in content for part in parts[id_]]

    mine, theirs, later = secret("bank"), secret("court"), secret("court")
    pool.append([mine, theirs])
    pool.append([later])  # in a version of its own
    parts = {
        row["id"]: [row["payload"]] + [np.float16(row[kind]).tobytes() for kind in SIGNATURES]
        for row in pool.rows(COLUMNS)
    }
    assert all(sum(map(found, parts), []))
    withdraw(pool, "bank", {mine.id})
    assert not any(found(mine.id))
    assert all(found(theirs.id) + found(later.id))


def test_who_has_confirmed_is_written_down_once(pool, tmp_path):
    mine = mkv(0, "bank")
    pool.append([mine])
    assert receipts(pool) == {}
    withdraw(pool, "bank", {mine.id})
    for node in ("court", "bank", "court"):
        confirm(pool, node, {mine.id})
    confirm(pool, "school", ())
    assert receipts(MKVPool(str(tmp_path / "pool"))) == {mine.id: ["bank", "court"]}
