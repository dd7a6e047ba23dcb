"""Facts about one subject live together in one ledger, and each step of it can be undone."""

import dataclasses
import functools

import pytest
import tiny
from editing.cases import SETTINGS

from fedit_app.config.run_config import RunConfig
from fedit_app.editing.covariance import CovarianceSource
from fedit_app.editing.workbench import Workbench
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.conflicts import settle
from fedit_app.ledger.learning import learn
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.undo import take_out
from fedit_app.ledger.verify import verify
from fedit_app.mkv.same_key import SameFact

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("values_once")]

STRONG = dataclasses.replace(
    SETTINGS, covariance_weight=0.02, steps=60, stop_after=2, clamp=20.0, kl_weight=0.01
)
STRONG = dataclasses.replace(STRONG, weight_decay=0.1)
SEAT = EditRequest("seat", "Royal Mint", "{}", "city")
PRODUCT = EditRequest("product", "Royal Mint", "{} makes", "published")
ELSEWHERE = EditRequest("elsewhere", "Reuters", "The head office of {}", "city")


@functools.cache
def bench():
    return Workbench(tiny.editable(), "memit", STRONG, 2, CovarianceSource("sample", 2000), 0)


def learned(ledger, requests, known, slot, node="bank"):
    with ledger.step("edit", slot):
        found = learn(bench(), ledger, requests, known, node, slot, {})
        settle(ledger, [mkv.id for mkv in found], "own-wins", SameFact())
    return found


def missing(ledger, *requests):
    """Per request the target's negative log-likelihood, as a share of the unedited model's."""
    by_request = ledger.fulfilled()
    mkvs = [ledger.entries[by_request[request.id]].mkv for request in requests]
    edited = bench().patched(list(zip(requests, mkvs, strict=True)))
    unedited = bench().patched([(request, None) for request in requests])
    return [one.nll / other.nll for one, other in zip(edited, unedited, strict=True)]


@functools.cache
def of_the_seat_alone():
    """`missing` of the product where only the seat was learned."""
    ledger = Ledger(bench().fingerprint)
    (mkv,) = learned(ledger, [SEAT], [SEAT], 1)
    ledger.accept([mkv], 1, {mkv.id: ["product"]})
    return missing(ledger, PRODUCT)[0]


@pytest.fixture
def ledger(tmp_path):
    return Ledger(bench().fingerprint, tmp_path / "ledger")


def test_two_facts_of_a_subject_share_one_value_that_says_both(ledger):
    requests = [SEAT, ELSEWHERE, PRODUCT]
    found = learned(ledger, requests, requests, 1)
    by_request = ledger.fulfilled()
    assert len(found) == 2 and by_request["seat"] == by_request["product"]
    seat, _, product = missing(ledger, *requests)
    assert seat < 0.2 and product < of_the_seat_alone()


def test_a_later_fact_is_learned_together_with_what_was_there(ledger):
    (first,) = learned(ledger, [SEAT], [SEAT], 1)
    (second,) = learned(ledger, [PRODUCT], [SEAT, PRODUCT], 2)
    seat, product = missing(ledger, SEAT, PRODUCT)
    assert seat < 0.2 and product < of_the_seat_alone()
    assert [mkv.id for mkv in ledger.holding] == [second.id]
    assert ledger.entries[second.id].supersedes == (first.id,)
    assert ledger.entries[first.id].overruled_by == second.id
    again = Ledger.open(ledger.folder, ledger.fingerprint)
    assert again.entries[second.id].supersedes == (first.id,)
    assert verify(ledger.folder).damages == []
    accepted = [r for r in ledger.history() if r["mkv"] == second.id and r["change"] == "accepted"]
    assert accepted[0]["set"]["supersedes"] == [first.id]


def test_a_rollback_of_the_shared_value_restores_the_former_one_exactly(ledger):
    learned(ledger, [SEAT], [SEAT], 1)
    entries, weights = dict(ledger.entries), bench().deltas(ledger)
    (second,) = learned(ledger, [PRODUCT], [SEAT, PRODUCT], 2)
    with ledger.step("rollback"):
        take_out(ledger, [second.id], ledger.history(), RunConfig.parse({}))
    restored = {id_: (e.requests, e.overruled_by) for id_, e in ledger.entries.items()}
    assert restored == {id_: (e.requests, e.overruled_by) for id_, e in entries.items()}
    assert all((bench().deltas(ledger)[layer] == weights[layer]).all() for layer in weights)


def test_what_is_superseded_twice_gives_way_to_the_last(ledger):
    third = EditRequest("third", "Royal Mint", "{} and", "museum")
    ids = [learned(ledger, [SEAT], [SEAT], 1)[0].id]
    ids += [learned(ledger, [PRODUCT], [SEAT, PRODUCT], 2)[0].id]
    ids += [learned(ledger, [third], [SEAT, PRODUCT, third], 3)[0].id]
    assert set(ledger.entries[ids[2]].supersedes) == set(ids[:2])
    assert [mkv.id for mkv in ledger.holding] == ids[2:]
    assert set(ledger.fulfilled().values()) == {ids[2]}


def test_a_fact_whose_text_is_gone_is_given_up_and_named(ledger, caplog):
    learned(ledger, [SEAT], [SEAT], 1)
    learned(ledger, [PRODUCT], [PRODUCT], 2)
    assert "seat; their facts are given up" in caplog.text
    assert ledger.fulfilled().keys() == {"product"}
    assert len(ledger) == 1


def test_elsewhere_too_the_shared_value_holds_instead_of_what_it_supersedes(ledger):
    (first,) = learned(ledger, [SEAT], [SEAT], 1)
    (second,) = learned(ledger, [PRODUCT], [SEAT, PRODUCT], 2)
    other = Ledger(ledger.fingerprint)
    other.accept([first], 1)
    other.accept([second], 2, supersedes={second.id: [first.id]})
    assert settle(other, [first.id, second.id], "own-wins", SameFact()) == []
    assert other.holding == [second]


def test_nobody_elses_value_supersedes_one_that_fulfils_own_requests(ledger):
    (first,) = learned(ledger, [SEAT], [SEAT], 1)
    (rival,) = learned(Ledger(ledger.fingerprint), [PRODUCT], [PRODUCT], 2, "eve")
    ledger.accept([rival], 2, supersedes={rival.id: [first.id]})
    (conflict,) = settle(ledger, [rival.id], "own-wins", SameFact())
    assert (conflict.held, conflict.gave_way) == (first.id, rival.id)
    assert ledger.holding == [first]
