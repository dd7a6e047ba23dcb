"""Which facts count at which node."""

import pytest

from fedit_app.facts.federation_facts import (
    apart_from,
    drawn,
    facts_for,
    facts_received,
    that_must_stay,
    that_share_a_subject,
)
from fedit_app.facts.request import EditRequest


def fact(id_: str, subject: str, target: str, prompt: str = "{} is in") -> EditRequest:
    return EditRequest(id_, subject, prompt, target)


FACTS = {
    "a": [fact("a1", "Tower", "Rome"), fact("a2", "Gate", "Oslo")],
    "b": [fact("b1", "Tower", "Rome"), fact("b2", "Gate", "Bern"), fact("b3", "Arch", "Kiel")],
    "c": [fact("c1", "Arch", "Kiel", "{} stands in"), fact("c2", "Dome", "Bonn")],
}


def at(node: str) -> list[str]:
    return [request.id for request in facts_for(node, FACTS)]


def test_own_facts_come_first_and_duplicates_count_once():
    assert at("a") == ["a1", "a2", "b3", "c1", "c2"]
    assert at("b") == ["b1", "b2", "b3", "c1", "c2"]


def test_a_conflict_counts_at_its_owners_only_with_their_own_target():
    assert "a2" in at("a") and "b2" not in at("a")
    assert "b2" in at("b") and "a2" not in at("b")
    assert not {"a2", "b2"} & set(at("c"))


def test_another_prompt_about_the_same_subject_is_another_fact():
    assert {"b3", "c1"} <= set(at("c"))


def test_a_node_that_is_asked_twice_for_a_fact_counts_it_once():
    own = {"a": [fact("x", "Tower", "Rome"), fact("y", "Tower", "Rome")]}

    assert [request.id for request in facts_for("a", own)] == ["x"]


def test_an_unknown_node_has_the_others_facts():
    assert [r.id for r in facts_for("z", FACTS)] == ["a1", "b3", "c1", "c2"]


def reworded(fact: EditRequest, target: str) -> EditRequest:
    """The fact with a paraphrase for its prompt, and its prompt among the paraphrases."""
    asked = (fact.text, f"In 1900 {fact.subject} was in")
    return EditRequest("z~a", fact.subject, "There {} stands in", target, None, asked)


@pytest.mark.parametrize("owner", ["a", "z"])
def test_a_paraphrased_copy_is_the_same_fact(owner):
    original = fact("a1", "Tower", "Rome")
    nodes = {"a": [original], "z": [reworded(original, "Rome")]}

    assert [r.id for r in facts_for(owner, nodes)] == [nodes[owner][0].id]
    assert [r.id for r in facts_for("m", nodes)] == ["a1"]


def test_a_paraphrased_copy_with_another_target_is_a_conflict():
    original = fact("a1", "Tower", "Rome")
    nodes = {"a": [original], "z": [reworded(original, "Oslo")]}

    assert [r.id for r in facts_for("a", nodes)] == ["a1"]
    assert [r.id for r in facts_for("z", nodes)] == ["z~a"]
    assert facts_for("m", nodes) == []


FULFILLED = {
    "a": {"a1": "tower-a", "a2": "gate-oslo"},
    "b": {"b1": "tower-b", "b2": "gate-bern", "b3": "arch"},
    "c": {"c1": "arch-c", "c2": "dome"},
}


def received(node: str, held: set[str]) -> list[str]:
    return [request.id for request in facts_received(node, FACTS, FULFILLED, held)]


def test_a_fact_is_received_if_the_mkv_of_its_owner_holds():
    assert received("c", {"arch", "dome"}) == ["b3"]
    assert received("a", {"tower-a", "dome", "arch-c"}) == ["c1", "c2"]
    assert received("a", set()) == []


def test_a_fact_of_two_nodes_is_received_through_either_ones_mkv():
    assert received("c", {"tower-a"}) == received("c", {"tower-b"}) == ["a1"]


def test_own_and_contested_facts_are_not_received():
    assert received("a", {"tower-b", "gate-bern"}) == []
    assert received("c", {"gate-bern", "gate-oslo"}) == []


def test_of_a_node_whose_ledger_is_not_there_nothing_is_received():
    assert facts_received("c", FACTS, {"a": FULFILLED["a"]}, {"arch", "tower-a"}) == [FACTS["a"][0]]


def test_what_is_edited_itself_need_not_stay():
    prompts = ("Tower is tall:", "Tower belongs to", "The owner of Tower is")
    asked = EditRequest("a1", "Tower", "{} is in", "Rome", subject_prompts=prompts)
    sold = EditRequest("b1", "Tower", "{} belongs to", "Bern", paraphrase_prompts=(prompts[2],))

    (fact,) = that_must_stay([asked], [asked, sold])
    assert fact.subject_prompts == prompts[:1]
    assert that_must_stay([asked, sold], [asked]) == [asked, sold]


def test_what_follows_from_a_fact_is_not_asked_where_the_next_fact_is_edited_too():
    hop = {"portability_prompts": ("The home of Tower speaks",), "portability_targets": ("Latin",)}
    moved = EditRequest("a1", "Tower", "{} is in", "Rome", **hop)
    tongue = EditRequest("b1", "Rome", "{} speaks", "Greek")
    (fact,) = that_must_stay([moved], [moved, tongue])
    assert fact == EditRequest("a1", "Tower", "{} is in", "Rome")
    assert that_must_stay([moved], [moved]) == [moved]


def sharing(*facts: EditRequest) -> list[str]:
    return [request.id for request in that_share_a_subject(facts, facts)]


def test_facts_with_one_beginning_share_a_subject():
    seat, owner = fact("a", "Tower", "Rome"), fact("b", "Tower", "Bern", "{} belongs to")
    behind = fact("c", "Tower", "Oslo", "In {} sits")
    assert sharing(seat, behind, fact("d", "Gate", "Oslo")) == []
    assert sharing(seat, owner, behind) == ["a", "b"]
    assert [r.id for r in that_share_a_subject([owner], [seat, owner])] == ["b"]
    assert that_share_a_subject([owner], [owner]) == []


def test_the_same_fact_of_another_node_does_not_share_its_subject():
    seat = fact("a", "Tower", "Rome")
    again = EditRequest("c", "Tower", "{} stands in", "Rome", None, (seat.text,))
    assert sharing(seat, fact("b", "Tower", "Rome")) == []
    assert sharing(seat, fact("b", "Tower", "Bern")) == [], "a contradiction"
    assert sharing(seat, again) == []


def test_a_sample_is_the_same_in_any_part_and_any_order():
    facts = [fact(str(number), f"Tower {number}", "Rome") for number in range(40)]
    chosen = drawn(facts, 10)
    assert len(chosen) == 10 and chosen == [one for one in facts if one in chosen]
    assert set(drawn(facts[::-1], 10)) == set(chosen)
    part = facts[:25]
    assert set(chosen) & set(part) <= set(drawn(part, 10))
    assert drawn(facts, 0) == drawn(facts, 40) == facts


def test_records_to_train_on_have_other_subjects_and_prompts_than_the_facts():
    def record(id_: str, subject: str, **more: tuple[str, ...]) -> EditRequest:
        return EditRequest(id_, subject, "{} is in", "Rome", **more)

    facts = [
        record("fact", "Tower", paraphrase_prompts=("See the Tower in",)),
        record("other", "Gate", neighborhood_prompts=("Dome is in", "Arch is in")),
    ]
    around = ("Arch is in", "Wall is in", "See the Tower in")
    records = [
        *facts,
        record("same subject", "Tower", paraphrase_prompts=("Where is it?",)),
        record("asked beside a fact", "Dome"),
        record("plain", "Mill"),
        record("around", "Port", neighborhood_prompts=around, neighborhood_targets=("a", "b", "c")),
        record("around, no targets", "Moat", neighborhood_prompts=around),
    ]
    plain, targets, none = apart_from(records, iter(facts))
    assert plain is records[4]
    assert (targets.id, targets.neighborhood_prompts) == ("around", ("Wall is in",))
    assert targets.neighborhood_targets == ("b",)
    assert (none.neighborhood_prompts, none.neighborhood_targets) == (("Wall is in",), ())
