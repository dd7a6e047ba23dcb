"""What is taken out of a ledger leaves it as if it had never been there."""

import numpy as np
import pytest

from fedit_app.config.run_config import RunConfig
from fedit_app.ledger.conflicts import settle
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.undo import take_out, take_withdrawn
from fedit_app.mkv import create
from fedit_app.mkv.same_key import SameFact

CONFIG = RunConfig()
AXES = np.eye(6)


def mkv(node, subject, target, slot=1, tilt=0.0):
    """A subject is a direction of the key, a target one of the value."""
    key, value = AXES[subject] + tilt * AXES[5], AXES[target]
    return create(node, slot, "f", key[None], value[None], 2 * value, 0 * value)


@pytest.fixture
def ledger(tmp_path):
    return Ledger.open(tmp_path / "ledger", "f")


def settled(ledger, *ids):
    settle(ledger, ids, CONFIG.conflict_policy, SameFact(same_key=CONFIG.same_key_threshold))


def undo(ledger, *mkvs, **options):
    history = ledger.history()
    with ledger.step("undo"):
        take_out(ledger, [mkv.id for mkv in mkvs], history, CONFIG, **options)


def same(ledger, never):
    """Weights to the bit, and what every entry says."""
    for found in (ledger, Ledger.open(ledger.folder, "f")):
        pairs = zip(found.holding, never.holding, strict=True)
        assert all(one.id == other.id for one, other in pairs), "the id is the vectors' hash"
        assert [e.row for _, e in sorted(found.entries.items())] == [
            e.row for _, e in sorted(never.entries.items())
        ]


def test_a_request_goes_back_to_who_fulfilled_it_before(ledger):
    mine, theirs = mkv("bank", 0, 1), mkv("court", 0, 1, tilt=0.01)
    rival = mkv("court", 0, 2, tilt=-0.01)
    never = Ledger("f")
    for found in (ledger, never):
        found.accept([mine], 1, {mine.id: ["fact-1"]})
    with ledger.step("re-edit", 1):
        ledger.accept([theirs, rival], 1)
        ledger.hand_over(mine.id, theirs.id)
        settled(ledger, theirs.id)
    assert [m.id for m in ledger.holding] == [theirs.id]
    never.accept([rival], 1)
    settled(never, rival.id)
    assert [m.id for m in never.holding] == [mine.id]

    undo(ledger, theirs)
    same(ledger, never)
    assert ledger.fulfilled() == {"fact-1": mine.id}


def test_what_was_overruled_is_settled_anew(ledger):
    first, second, third = (mkv("court", 0, t, t, tilt=0.001 * t) for t in (1, 2, 3))
    ledger.accept([first, second, third], 1)
    settled(ledger, first.id)
    assert [m.id for m in ledger.holding] == [first.id]
    never = Ledger("f")
    never.accept([second, third], 1)
    settled(never, second.id)

    undo(ledger, first)
    assert [m.id for m in ledger.holding] == [second.id]
    same(ledger, never)


def test_what_was_replaced_fulfils_its_requests_again_and_what_that_had_replaced_does_not(ledger):
    first, second, third = (mkv("bank", 0, t, t, tilt=0.001 * t) for t in (1, 2, 3))
    for new, old in ((first, None), (second, first), (third, second)):
        with ledger.step("edit"):
            ledger.release(ledger.fulfilled())
            older = {new.id: [old.id]} if old else {}
            ledger.accept([new], new.slot, {new.id: [f"fact-{new.slot}"]}, older)
            settled(ledger, new.id)
    replaced = {first.id: ["fact-1"], second.id: ["fact-2"]}

    undo(ledger, third, replaced=replaced, refusal="rolled back", author="bank")
    assert ledger.fulfilled() == {"fact-2": second.id}
    assert [m.id for m in ledger.holding] == [second.id]
    undo(ledger, second, replaced=replaced)
    assert ledger.fulfilled() == {"fact-1": first.id}
    assert [m.id for m in ledger.holding] == [first.id]


def test_own_ones_are_withdrawn_with_their_requests(ledger):
    mine, theirs = mkv("bank", 0, 1), mkv("court", 1, 1)
    ledger.accept([mine, theirs], 1, {mine.id: ["fact-1"], theirs.id: ["fact-2"]})
    undo(ledger, mine, theirs, refusal="rolled back", author="bank")
    assert ledger.entries == {}
    assert ledger.set_aside == {"fact-1"}
    assert {id_: (r.withdrawn, r.reason) for id_, r in ledger.refused.items()} == {
        mine.id: (True, "withdrawn"),
        theirs.id: (False, "rolled back"),
    }


def test_only_its_author_can_have_an_mkv_taken_out(ledger, log):
    mine, courts, schools = (mkv(node, i, 1) for i, node in enumerate(("bank", "court", "school")))
    ledger.accept([mine, courts, schools], 1)
    told = {mine.id: ["bank"], courts.id: ["school", "court"], schools.id: ["court"], "0": ["x"]}
    take_withdrawn(ledger, "bank", told, 3, CONFIG)

    assert set(Ledger.open(ledger.folder, "f").entries) == {mine.id, schools.id}
    last = ledger.history()[-1]
    assert (last["change"], last["mkv"], last["slot"]) == ("dropped", courts.id, 3)
    assert last["reason"] == "withdrawn by court"
    assert ledger.refused == {}, "its author may change its mind"
    assert f"MKV {schools.id} of node 'school' is not taken out" in log.text
