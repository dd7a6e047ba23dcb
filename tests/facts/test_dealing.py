"""One data set dealt out to nodes, and a node's requests to slots."""

from collections import Counter

import numpy as np
import pytest

from fedit_app.facts.dealing import (
    by_slot,
    deal_at_random,
    deal_by_cluster,
    deal_by_dirichlet,
    deal_by_relation,
    similar_relations,
    with_similar,
)
from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError


def request(id_: str, slot: int | None = None, relation: str | None = None) -> EditRequest:
    return EditRequest(id_, "S", "{} is", "x", slot=slot, relation=relation)


def ids(requests) -> list[str]:
    return [request.id for request in requests]


def numbered(count: int) -> list[EditRequest]:
    return [request(str(number)) for number in range(count)]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_random_deals_out_every_request_once(count):
    dealt = deal_at_random(numbered(11), count, seed=0)

    assert sorted(id_ for part in dealt.values() for id_ in ids(part)) == sorted(ids(numbered(11)))
    sizes = [len(part) for part in dealt.values()]
    assert max(sizes) - min(sizes) <= 1


def test_random_is_seeded_and_shuffles():
    one, same, other = (deal_at_random(numbered(40), 2, seed) for seed in (1, 1, 2))

    assert one == same != other
    assert ids(one["node-1"]) != ids(numbered(20))


def test_names_of_random_nodes_sort_in_their_order():
    names = list(deal_at_random(numbered(20), 12, seed=0))

    assert names[0] == "node-01" and len(set(names)) == 12
    assert names == sorted(names)


def test_random_with_fewer_requests_than_nodes():
    with pytest.raises(FedEditError, match="2 requests are too few for 3 nodes"):
        deal_at_random(numbered(2), 3, seed=0)


RELATIONS = ["P1", "P2", "P3", "P2", "P3", "P2", None, "P4", "P1"]
RELATED = [request(str(number), relation=of) for number, of in enumerate(RELATIONS)]


def test_a_relation_a_node_the_most_frequent_first():
    dealt = deal_by_relation(RELATED, 3)

    assert list(dealt) == ["P2", "P1", "P3"]  # P1 and P3 are equally frequent
    assert [ids(part) for part in dealt.values()] == [["1", "3", "5"], ["0", "8"], ["2", "4"]]


def test_fewer_relations_than_nodes():
    with pytest.raises(FedEditError, match="4 relations, too few for 5 nodes"):
        deal_by_relation(RELATED, 5)


def test_a_cluster_a_node_the_largest_first():
    dealt = deal_by_cluster(numbered(6), [2, 0, 1, 1, 0, 1])

    assert {name: ids(part) for name, part in dealt.items()} == {
        "cluster-1": ["2", "3", "5"],
        "cluster-2": ["1", "4"],
        "cluster-3": ["0"],
    }


GROUPS = [f"P{number % 5}" for number in range(200)]


def mixtures(alpha: float, seed: int = 0, first: int = 50) -> list[Counter]:
    """How often each node has each group among its first requests."""
    dealt = deal_by_dirichlet(numbered(200), GROUPS, 4, alpha, seed)
    assert [len(part) for part in dealt.values()] == [50] * 4
    assert len({id_ for part in dealt.values() for id_ in ids(part)}) == 200
    return [Counter(GROUPS[int(id_)] for id_ in ids(part[:first])) for part in dealt.values()]


def test_dirichlet_gives_even_mixtures_for_a_large_alpha_and_few_groups_for_a_small_one():
    assert all(min(mixture.values()) >= 5 for mixture in mixtures(1e4))
    # Later requests are of whatever group is left.
    assert all(max(mixture.values()) >= 8 for mixture in mixtures(0.01, first=10))


def test_dirichlet_is_seeded():
    assert mixtures(0.5, seed=1) == mixtures(0.5, seed=1) != mixtures(0.5, seed=2)


def test_dirichlet_with_fewer_requests_than_nodes():
    with pytest.raises(FedEditError, match="2 requests are too few for 3 nodes"):
        deal_by_dirichlet(numbered(2), ["a", "b"], 3, 1.0, seed=0)


def test_slots_by_field():
    requests = [request("a", 3), request("b"), request("c", 1), request("d", 3), request("e", 4)]

    assert [ids(slot) for slot in by_slot(requests, 3, None)] == [["b", "c"], [], ["a", "d"]]


def test_slots_by_count_go_by_the_order_of_the_requests():
    requests = [request(str(number), slot=1) for number in range(8)]

    assert [ids(slot) for slot in by_slot(requests, 3, 2)] == [["0", "1"], ["2", "3"], ["4", "5"]]


def test_slots_by_count_with_too_few_requests():
    assert [len(slot) for slot in by_slot([request("a")], 3, 2)] == [1, 0, 0]


def of_relations(**sizes: int) -> list[EditRequest]:
    return [
        request(f"{name}{n}", relation=name) for name, size in sizes.items() for n in range(size)
    ]


def test_relations_are_similar_whose_texts_are():
    vectors = {"a": [1.0, 0.0], "b": [0.9, 0.1], "c": [0.0, 1.0]}
    requests = [
        EditRequest(f"{name}{n}", f"S{n}", f"{name} {{}} is", "x", relation=name)
        for name in vectors
        for n in range(30)
    ]
    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.array([vectors[text[0]] for text in texts])

    assert similar_relations(requests, embed) == {"a": ["b", "c"], "b": ["a", "c"], "c": ["b", "a"]}
    assert len(asked) == 60


def test_each_slot_has_its_share_of_facts_of_similar_relations():
    requests = of_relations(a=40, b=8, c=8, d=8, e=8)
    dealt = deal_by_relation(requests, 2)
    near = {"a": ["b", "c", "d", "e"], "b": ["a", "c", "d", "e"]}
    mixed = with_similar(dealt, requests, near, 0.3, per_slot=10, num_slots=4, seed=1)

    for slot in by_slot(mixed["a"], 4, 10):
        found = Counter(request.relation for request in slot)
        assert found["a"] == 7 and sum(found.values()) == 10
        assert found["e"] == 0, "only the three most similar ones"
    counts = [Counter(r.relation for r in slot)["b"] for slot in by_slot(mixed["b"], 4, 10)]
    assert counts == [2, 2, 2, 2], "as many as it has for every slot"
    for part in mixed.values():
        assert len(set(ids(part))) == len(part)
    assert mixed == with_similar(dealt, requests, near, 0.3, per_slot=10, num_slots=4, seed=1)
