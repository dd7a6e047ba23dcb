"""Which MKVs stand for the same fact, and how the pool folds them."""

import itertools

import lancedb
import pytest
from mkv.test_same_key import mkv

from fedit_app.mkv.same_key import SameFact, same_fact
from fedit_app.pool import MKVPool
from fedit_app.support.errors import FedEditError

FINGERPRINT = "model-a"
CONFIG = SameFact()


@pytest.fixture
def pool(pool_uri) -> MKVPool:
    return MKVPool(pool_uri)


def served(pool: MKVPool) -> set[str]:
    return {id_ for block in pool.blocks("key", FINGERPRINT) for id_ in block.ids}


def test_a_later_mkv_is_folded_under_the_pooled_one(pool):
    first, same, other = mkv(), mkv("school", key=0.99), mkv("school", value=0.3)
    pool.append([first])
    assert pool.append([same, other]) == [same.id, other.id]
    assert pool.facts([first.id, same.id, other.id, "unknown"]) == {
        first.id: first.id,
        same.id: first.id,
        other.id: other.id,
    }
    assert served(pool) == {first.id, other.id}
    assert len(pool) == 3
    assert pool.fetch([same.id])[0].node == "school"


def test_a_folded_mkv_does_not_attract_others(pool):
    """Only canonical ones are compared with, so that facts do not drift along a chain."""
    first, second = mkv(), mkv("school", key=0.985, axis=1)
    third = mkv("court", key=0.975, axis=1)
    assert same_fact(second, third, CONFIG) and not same_fact(first, third, CONFIG)
    for one in (first, second, third):
        pool.append([one])
    assert pool.facts([third.id]) == {third.id: third.id}


def test_the_most_similar_canonical_one_is_taken(pool):
    far, near = mkv(key=0.985, axis=1), mkv(key=0.99, axis=2, shifts=0.3)
    new = mkv("school", shifts=0.8, axis=2)
    assert same_fact(far, new, CONFIG) and same_fact(near, new, CONFIG)
    pool.append([far])
    pool.append([near])
    pool.append([new])
    assert pool.facts([near.id, new.id]) == {near.id: near.id, new.id: near.id}


def test_the_order_of_arrival_does_not_matter(tmp_path):
    batch = [
        mkv(node, slot, key=key)
        for node, slot, key in (("a", 2, 1.0), ("b", 1, 0.998), ("c", 1, 0.996), ("d", 3, 0.994))
    ]
    expected = min(batch[1:3], key=lambda one: one.id).id
    for number, order in enumerate(itertools.permutations(batch)):
        if number % 5 == 0:
            pool = MKVPool(str(tmp_path / str(number)))
            pool.append(order)
            assert set(pool.facts([one.id for one in batch]).values()) == {expected}


def test_facts_stay_apart_between_fingerprints(pool):
    here, there = mkv(), mkv(fingerprint="model-b")
    pool.append([here, there])
    assert pool.facts([here.id, there.id]) == {here.id: here.id, there.id: there.id}


def test_authors_are_all_nodes_that_uploaded_a_fact(pool, pool_uri):
    first, same = mkv("clinic"), mkv("school", key=0.99)
    twin_of_first, other = mkv("court"), mkv("bank", value=0.1)
    assert twin_of_first.id == first.id
    pool.append([first])
    pool.append([same, other])
    assert pool.append([twin_of_first]) == []
    assert pool.append([twin_of_first, mkv("museum")]) == []
    expected = {first.id: {"clinic", "school", "court", "museum"}, other.id: {"bank"}}
    for one in (pool, MKVPool(pool_uri)):
        assert one.authors([first.id, other.id, "unknown"]) == expected
    assert len(pool) == 3
    assert [one.node for one in pool.fetch([first.id])] == ["clinic"]


def test_authors_of_equal_content_in_one_batch(pool):
    pool.append([mkv("clinic"), mkv("school")])
    assert pool.authors([mkv().id]) == {mkv().id: {"clinic", "school"}}


def test_nearest_and_select_never_serve_a_folded_one(pool):
    first, same = mkv("clinic"), mkv("school", key=0.99)
    pool.append([first])
    pool.append([same])
    queries = {"school": same.lookup_key[None]}
    found = pool.nearest(queries, "key", FINGERPRINT, 0.5, 5)
    assert [match.id for match in found["school"][0]] == [first.id]
    held = {"school": set(pool.facts([same.id]).values())}
    assert pool.nearest(queries, "key", FINGERPRINT, 0.5, 5, held)["school"] == [[]]


def test_a_pool_without_facts_is_refused(pool_uri):
    lancedb.connect(pool_uri).create_table("mkvs", [{"id": "a", "node": "n"}])
    with pytest.raises(FedEditError, match=r"no column nodes, slot, .*fact"):
        MKVPool(pool_uri)
