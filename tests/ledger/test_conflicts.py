"""Same subject or not, and what follows from it."""

import itertools

import numpy as np
import pytest

from fedit_app.ledger.conflicts import Conflict, settle
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV, create
from fedit_app.mkv.same_key import SameFact

D_FF, D_MODEL, LAYERS = 6, 4, 2
SAME = SameFact(same_key=0.98)


def mkv(subject: int, target: int, node: str = "n", tilt: float = 0.0, slot: int = 1) -> MKV:
    """An MKV whose key points along axis `subject` and whose v* - h0 along axis `target`."""
    keys = np.zeros((LAYERS, D_FF))
    keys[:, subject] = 1
    keys[:, (subject + 1) % D_FF] = tilt
    delta = np.zeros(D_MODEL)
    delta[target] = 2
    shifts = np.full((LAYERS, D_MODEL), 0.1 + len(node))
    h0 = np.full(D_MODEL, 0.5)
    return create(node, slot, "f", keys, shifts, h0 + delta, h0)


def settled(entries, policy, order=None) -> dict[str, str]:
    """Name -> name of the one that overrules it, of (name, MKV, own request ids, votes)."""
    ledger, names = Ledger("f"), {m.id: name for name, m, *_ in entries}
    for _, m, requests, votes in [entries[i] for i in order or range(len(entries))]:
        ledger.accept([m], 1, {m.id: requests})
        ledger.count_votes({m.id: votes})
        settle(ledger, [m.id], policy, SAME)
    held = {id_: entry.overruled_by for id_, entry in ledger.entries.items()}
    assert [m.id for m in ledger.holding] == sorted(id_ for id_, by in held.items() if not by)
    return {names[id_]: names.get(by, "") for id_, by in held.items()}


CONTESTED = [
    ("own", mkv(0, 0, "me", slot=1), ["r"], 1),
    ("old", mkv(0, 1, "b", slot=1), [], 3),
    ("new", mkv(0, 2, "c", slot=2), [], 2),
    ("aside", mkv(3, 0, "c", slot=2), [], 1),
]


@pytest.mark.parametrize(
    ("policy", "winner"), [("own-wins", "own"), ("newest", "new"), ("majority", "old")]
)
def test_a_policy_decides_whatever_the_order_of_arrival(policy, winner):
    expected = {name: "" if name in (winner, "aside") else winner for name, *_ in CONTESTED}

    for order in itertools.permutations(range(len(CONTESTED))):
        assert settled(CONTESTED, policy, order) == expected, order


def test_a_tie_goes_to_the_own_request_and_then_to_the_older():
    tied = [(name, m, requests, 2) for name, m, requests, _ in CONTESTED]
    assert settled(tied, "majority")["own"] == ""
    others = [(name, m, [], 2) for name, m, _, _ in CONTESTED[1:]]
    assert settled(others, "majority") == {"old": "", "new": "old", "aside": ""}
    assert settled(others, "own-wins") == {"old": "", "new": "old", "aside": ""}


def test_votes_turn_a_conflict_and_dropping_the_winner_turns_it_back():
    ledger = Ledger("f")
    own, other = (m for _, m, *_ in CONTESTED[:2])
    ledger.accept([own, other], 1, {own.id: ["r"]})
    assert settle(ledger, [own.id], "majority", SAME) == [Conflict(own.id, other.id)]
    ledger.count_votes({other.id: 2, "f" * 32: 9})
    assert settle(ledger, [other.id], "majority", SAME) == [Conflict(other.id, own.id)]
    assert [m.id for m in ledger.holding] == [other.id]
    ledger.drop([other.id])
    assert [m.id for m in ledger.holding] == [own.id]


def test_neither_of_two_own_requests_yields(caplog):
    ledger = Ledger("f")
    first, second = mkv(0, 0), mkv(0, 1)
    ledger.accept([first, second], 1, {first.id: ["a"], second.id: ["b"]})

    with caplog.at_level("WARNING", logger="fedit_app"):
        assert settle(ledger, [second.id], "own-wins", SAME) == []
    assert len(ledger) == 2
    assert "one key cannot hold both" in caplog.text


def test_of_one_fact_one_mkv_counts_and_that_is_no_conflict():
    ledger = Ledger("f")
    own, twin = mkv(0, 0, "me"), mkv(0, 0, "b", tilt=0.01)
    ledger.accept([own, twin], 1, {own.id: ["r"]})

    assert settle(ledger, [twin.id], "own-wins", SAME) == []
    assert [m.id for m in ledger.holding] == [own.id]


def test_what_wants_the_same_in_other_words_is_no_conflict():
    ledger = Ledger("f")
    own, other = mkv(0, 0, "me"), mkv(0, 1, "b")
    ledger.accept([own, other], 1, {own.id: ["r"]})

    assert settle(ledger, [other.id], "own-wins", SAME, {other.id: own.id}) == []
    assert [m.id for m in ledger.holding] == [own.id]
    assert settle(ledger, [other.id], "own-wins", SAME) == [Conflict(own.id, other.id)]


def test_what_is_not_near_the_winner_holds_beside_it():
    # Keys in a row: each is near the next one only.
    chain = [mkv(0, target, tilt=tilt) for target, tilt in ((0, 0.0), (1, 0.16), (2, 0.33))]
    ledger = Ledger("f")
    ledger.accept(chain, 1, {chain[0].id: ["r"]})
    settle(ledger, [chain[1].id], "own-wins", SAME)

    assert {m.id for m in ledger.holding} == {chain[0].id, chain[2].id}
