"""Copies of facts at other nodes: how many, in what form, where and when."""

from collections import Counter

import pytest

from fedit_app.facts.overlap import Overlap, with_overlap
from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError

SLOTS, PER_SLOT = 3, 4


def fact(node: str, number: int, **changes) -> EditRequest:
    subject = f"Subject {node}{number}"
    fields = {
        "id": f"{number}",
        "subject": subject,
        "prompt": "The seat of {} is in",
        "target_new": f"new {number % 4}",
        "target_true": "true",
        "paraphrase_prompts": (
            f"It rained. {subject} sits in",
            "Where is it?",
            f"{subject}'s seat",
        ),
        "neighborhood_prompts": ("The seat of another is in",),
        "relation": "P1" if number % 2 else "P2",
    }
    return EditRequest(**fields | changes)


def federation(names: str = "abcd", **changes) -> dict:
    return {
        name: [
            [fact(name, slot * PER_SLOT + number, **changes) for number in range(PER_SLOT)]
            for slot in range(SLOTS)
        ]
        for name in names
    }


NODES = federation()


def requests_of(nodes, name: str) -> dict[str, EditRequest]:
    return {request.id: request for slot in nodes[name] for request in slot}


def originals(name: str) -> dict[str, EditRequest]:
    return requests_of(NODES, name)


@pytest.mark.parametrize(("share", "clients"), [(0.5, 1), (0.25, 3), (1.0, 2)])
def test_a_share_of_each_nodes_facts_goes_to_so_many_others(share, clients):
    nodes, copies = with_overlap(NODES, Overlap(share, clients), seed=0)

    given = Counter((copy.owner, copy.original) for copy in copies)
    assert set(given.values()) == {clients}
    by_owner = Counter(owner for owner, _ in given)
    assert by_owner == dict.fromkeys("abcd", int(share * SLOTS * PER_SLOT))
    assert all(copy.node != copy.owner for copy in copies)
    assert len({(copy.owner, copy.original, copy.node) for copy in copies}) == len(copies)


def test_copies_come_on_top_and_say_where_they_are_from():
    nodes, copies = with_overlap(NODES, Overlap(0.5, 2), seed=0)

    for name in NODES:
        for slot, (before, after) in enumerate(zip(NODES[name], nodes[name], strict=True), 1):
            assert after[:PER_SLOT] == before
            here = [copy.id for copy in copies if (copy.node, copy.slot) == (name, slot)]
            assert [request.id for request in after[PER_SLOT:]] == here
        assert len(requests_of(nodes, name)) == sum(map(len, nodes[name]))
    assert all(copy.id == f"{copy.original}~{copy.owner}" for copy in copies)


def test_a_verbatim_copy_is_the_same_fact_in_the_same_slot():
    nodes, copies = with_overlap(NODES, Overlap(0.5), seed=0)

    for copy in copies:
        original = originals(copy.owner)[copy.original]
        found = requests_of(nodes, copy.node)[copy.id]
        assert (found.text, found.target_new) == (original.text, original.target_new)
        assert found.paraphrase_prompts == original.paraphrase_prompts
        assert copy.slot == copy.original_slot == int(copy.original) // PER_SLOT + 1
        assert not copy.conflict


def test_a_later_copy_is_never_in_the_slot_of_the_original_or_before():
    _, copies = with_overlap(NODES, Overlap(0.6, 2, slot="later"), seed=0)

    assert all(copy.original_slot < copy.slot <= SLOTS for copy in copies)
    assert {copy.slot - copy.original_slot for copy in copies} == {1, 2}
    by_owner = Counter((copy.owner, copy.original) for copy in copies)
    assert Counter(owner for owner, _ in by_owner) == dict.fromkeys("abcd", 7)


def test_facts_of_the_last_slot_have_no_later_one(log):
    _, copies = with_overlap(NODES, Overlap(1.0, slot="later"), seed=0)

    assert {copy.original_slot for copy in copies} == {1, 2}
    assert len(copies) == 4 * 2 * PER_SLOT
    assert "node a should share 12 of its 12 facts, but only 8 can be copied" in log.text


def test_a_paraphrase_has_one_of_the_prompts_and_keeps_the_others_for_evaluation():
    nodes, copies = with_overlap(NODES, Overlap(1.0, 2, form="paraphrase"), seed=0)

    used = Counter()
    for copy in copies:
        original = originals(copy.owner)[copy.original]
        found = requests_of(nodes, copy.node)[copy.id]
        used[found.prompt] += 1
        assert found.subject == original.subject and found.target_new == original.target_new
        assert found.text in original.paraphrase_prompts
        asked = {original.text, *original.paraphrase_prompts}
        assert {found.text, *found.paraphrase_prompts} == asked
        assert len(found.paraphrase_prompts) == len(original.paraphrase_prompts)
    assert set(used) == {"It rained. {} sits in", "{}'s seat"}  # not the one without the subject


def test_without_paraphrases_nothing_can_be_paraphrased():
    bare = federation(paraphrase_prompts=("Where is it?",))
    with pytest.raises(FedEditError, match="paraphrase prompts that contain the subject"):
        with_overlap(bare, Overlap(0.5, form="paraphrase"), seed=0)


def test_one_slot_has_no_later_one():
    single = {name: slots[:1] for name, slots in NODES.items()}
    with pytest.raises(FedEditError, match="num-slots = 2"):
        with_overlap(single, Overlap(0.5, slot="later"), seed=0)


def test_a_share_of_the_copies_wants_a_target_of_the_same_relation():
    nodes, copies = with_overlap(NODES, Overlap(0.5, 2, conflicts=0.25), seed=0)

    conflicts = [copy for copy in copies if copy.conflict]
    assert len(conflicts) == len(copies) // 4
    for copy in copies:
        original = originals(copy.owner)[copy.original]
        found = requests_of(nodes, copy.node)[copy.id]
        assert (found.target_new != original.target_new) == copy.conflict
        same = [r for n in NODES for r in originals(n).values() if r.relation == original.relation]
        assert found.target_new in {r.target_new for r in same}
        assert found.text == original.text


def test_a_conflict_is_never_the_true_target():
    two = {
        name: [[fact(name, 1), fact(name, 3, target_new="true", target_true=None)]] for name in "ab"
    }
    _, copies = with_overlap(two, Overlap(1.0, conflicts=1.0), seed=0)

    # Fact 1 could only want "true", which it says today; fact 3 wants "new 1".
    assert {copy.original: copy.conflict for copy in copies} == {"1": False, "3": True}


def test_without_relations_a_conflict_is_another_target_of_the_owner():
    unrelated = {
        name: [[fact(name, n, relation=None, target_new=f"{name}{n}") for n in range(3)]]
        for name in "ab"
    }
    nodes, copies = with_overlap(unrelated, Overlap(1.0, conflicts=1.0), seed=0)

    for copy in copies:
        target = requests_of(nodes, copy.node)[copy.id].target_new
        assert target[0] == copy.owner and target[1:] != copy.original


def test_everything_is_seeded_and_the_order_of_nodes_is_not_looked_at():
    overlap = Overlap(0.5, 2, "paraphrase", "later", 0.5)
    one = with_overlap(NODES, overlap, seed=1)
    turned = with_overlap({name: NODES[name] for name in reversed(NODES)}, overlap, seed=1)

    assert turned == one
    assert with_overlap(NODES, overlap, seed=2)[1] != one[1]


def test_nobody_is_given_what_it_has():
    same = {name: [[fact("x", 1)], [fact(name, 2)]] for name in "abc"}
    _, copies = with_overlap(same, Overlap(1.0, 2), seed=0)

    assert {copy.original for copy in copies} == {"2"}


def test_no_overlap_changes_nothing():
    assert with_overlap(NODES, Overlap(0.0, clients=9), seed=0) == (NODES, [])


def test_too_few_nodes():
    with pytest.raises(FedEditError, match="overlap-clients = 4 .* 4 nodes; it must be at most 3"):
        with_overlap(NODES, Overlap(0.5, clients=4), seed=0)


def test_an_id_that_a_copy_would_take():
    taken = {"a": [[fact("a", 1)]], "b": [[fact("b", 2, id="1~a")]]}
    with pytest.raises(FedEditError, match="a request of node b has the id"):
        with_overlap(taken, Overlap(1.0), seed=0)
