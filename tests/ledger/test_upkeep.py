"""Own facts that the edited model no longer says are written anew, and others never."""

import dataclasses

import numpy as np
import pytest
from ledger.test_learning import ELSEWHERE, SEAT, bench, learned

from fedit_app.config.run_config import RunConfig
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.scores import score_targets
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.conflicts import settle
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.undo import take_out
from fedit_app.ledger.upkeep import is_renewed, uphold
from fedit_app.mkv import create
from fedit_app.mkv.same_key import SameFact

pytestmark = pytest.mark.usefixtures("values_once")

FACTS = [SEAT, ELSEWHERE]
CONFIG = RunConfig.parse({})


def says(ledger, request=SEAT):
    with bench().edited(ledger) as model:
        return score_targets(model, [request.asked_new])[0].decoded


def against(mkv, node="museum"):
    """What someone else's MKV of a near key would do to an MKV."""
    noise = np.random.default_rng(0).standard_normal(mkv.keys.shape)
    near = (mkv.keys + 0.5 * noise * np.abs(mkv.keys).mean()).astype(np.float32)
    return create(node, 2, mkv.fingerprint, near, np.float32(-1.4) * mkv.shifts, mkv.v_star, mkv.h0)


@pytest.fixture
def ledger(tmp_path):
    """A ledger with two facts, both said."""
    found = Ledger.open(tmp_path / "ledger", bench().fingerprint)
    learned(found, FACTS, FACTS, 1)
    assert says(found) and says(found, ELSEWHERE)
    return found


@pytest.fixture
def spoilt(ledger):
    """The same, and an MKV of another node with which neither is said."""
    ledger.accept([against(ledger.entries[ledger.fulfilled()["seat"]].mkv)], 2)
    assert not says(ledger) and not says(ledger, ELSEWHERE)
    return ledger


def upheld(ledger, known=FACTS, node="bank", requests=1):
    with ledger.step("edit", 3):
        made = uphold(bench(), ledger, known, node, 3, requests)
        settle(ledger, [mkv.id for mkv in made], "own-wins", SameFact())
    return made


def test_a_fact_that_is_lost_is_said_again_by_the_same_value(spoilt):
    old = spoilt.fulfilled()["seat"]
    made = {mkv.id: mkv for mkv in upheld(spoilt, requests=2)}
    assert says(spoilt) and says(spoilt, ELSEWHERE) and len(made) == 2
    new = made[spoilt.fulfilled()["seat"]]
    assert spoilt.entries[new.id].supersedes == (old,)
    assert spoilt.entries[old].overruled_by == new.id
    assert np.array_equal(new.v_star, spoilt.entries[old].mkv.v_star)
    assert not np.array_equal(new.shifts, spoilt.entries[old].mkv.shifts)
    assert is_renewed(spoilt, new.id) and not is_renewed(spoilt, old)
    assert not bench().screen.faults([new]), "others accept it"


def test_taking_it_out_brings_the_old_one_back(spoilt):
    before = bench().deltas(spoilt)
    old = spoilt.fulfilled()["seat"]
    made = upheld(spoilt, requests=2)
    with spoilt.step("rollback", 4):
        take_out(spoilt, [mkv.id for mkv in made], spoilt.history(), CONFIG)
    assert made and spoilt.fulfilled()["seat"] == old
    assert not spoilt.entries[old].overruled_by
    after = bench().deltas(spoilt)
    assert all(np.array_equal(before[layer], after[layer]) for layer in before)


def test_what_is_of_this_slot_is_replaced_without_a_trace(spoilt):
    old = {id_: spoilt.entries[id_] for id_ in spoilt.fulfilled().values()}
    for id_, entry in old.items():
        mkv = dataclasses.replace(entry.mkv, slot=3)
        spoilt.entries[id_] = dataclasses.replace(entry, mkv=mkv, slot=3, warm_started=True)
    made = upheld(spoilt, requests=2)
    assert len(made) == 2 and not old.keys() & spoilt.entries.keys()
    assert all(not spoilt.entries[mkv.id].supersedes for mkv in made)
    assert all(spoilt.entries[mkv.id].warm_started for mkv in made)
    assert set(spoilt.fulfilled().values()) == {mkv.id for mkv in made}


def test_facts_that_are_said_are_left_alone(ledger):
    before = dict(ledger.entries)
    assert upheld(ledger) == []
    assert ledger.entries == before


def test_what_does_not_help_changes_nothing(spoilt, monkeypatch):
    before = dict(spoilt.entries)
    monkeypatch.setattr(Workbench, "renew", lambda self, groups, mkvs, *_: list(mkvs))
    assert upheld(spoilt) == []
    assert spoilt.entries == before


def test_facts_of_others_and_without_a_text_are_left_alone(spoilt):
    seat = spoilt.fulfilled()["seat"]
    upheld(spoilt, known=[ELSEWHERE])
    assert spoilt.fulfilled()["seat"] == seat
    assert upheld(spoilt, node="museum") == []


def test_what_was_composed_with_others_is_left_alone(spoilt):
    id_ = spoilt.fulfilled()["seat"]
    theirs = against(spoilt.entries[id_].mkv, "court")
    composed = dataclasses.replace(spoilt.entries[id_], supersedes=(theirs.id,))
    spoilt.accept([theirs], 2)
    spoilt.entries[id_] = composed
    assert upheld(spoilt, known=[SEAT]) == []


def test_no_more_are_written_anew_than_the_slot_has_requests(spoilt, monkeypatch):
    facts = [EditRequest(f"f{n}", "Royal Mint", "{}", "city") for n in range(12)]
    mkv = spoilt.entries[spoilt.fulfilled()["seat"]].mkv
    others = []
    for number, fact in enumerate(facts):
        keys = mkv.keys * np.float32(1 + 1e-3 * (number + 1))
        others.append(create("bank", 1, mkv.fingerprint, keys, mkv.shifts, mkv.v_star, mkv.h0))
        spoilt.accept(others[-1:], 1, {others[-1].id: [fact.id]})
    spoilt.accept([against(one) for one in others], 2)
    asked = []

    def renew(self, groups, mkvs, *_):
        asked.append(len(groups))
        return list(mkvs)

    monkeypatch.setattr(Workbench, "renew", renew)
    assert not says(spoilt)
    upheld(spoilt, [*FACTS, *facts], requests=1)
    upheld(spoilt, [*FACTS, *facts], requests=10)
    assert asked == [8, 10]
