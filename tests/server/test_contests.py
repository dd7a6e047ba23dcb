"""Which keys are contested, and when their rounds are over."""

import numpy as np
import pytest

from fedit_app.protocol.schema import ConflictIds
from fedit_app.server.contests import Contest, contests, is_settled, of_one_key

A, B, C, D, E = (letter * 32 for letter in "abcde")
VALUES = {"bank": np.ones(4), "court": np.zeros(4)}


def pair(held: str, gave_way: str) -> ConflictIds:
    return ConflictIds(held=held, gave_way=gave_way)


def contest(**given) -> Contest:
    return Contest((A, B), ["bank", "court"], **given)


def say(one: Contest, bank: str, court: str) -> None:
    one.close_round({"bank": bank, "court": court}, VALUES)


def test_a_key_has_all_mkvs_and_holders_that_are_connected():
    reports = {
        "bank": [pair(A, B), pair(D, E)],
        "court": [pair(B, A), pair(B, C)],
        "museum": [pair(C, B)],
    }
    (found,) = contests(reports)
    assert (found.ids, found.holders) == ((A, B, C), ["bank", "court", "museum"])


def test_a_key_that_one_node_alone_contests_is_none():
    """The other one's facts are said by both values: it has taken this one."""
    assert contests({"bank": [pair(A, B)], "court": []}) == []


def test_a_key_is_settled_when_it_holds_everywhere():
    one = contest()
    for said in [("not yet", "holds"), ("holds", "not yet")]:
        say(one, *said)
        assert one.open and not one.settled
    say(one, "holds", "holds")
    assert one.settled and one.open and one.asked == ["bank"]
    assert one.rounds == 2, "the last round was only a look"
    key, values = one.key()
    assert key.settled and key.holders == ["bank", "court"] and len(values) == 2


def test_the_values_of_a_settled_key_are_those_that_made_it():
    one, last = contest(), {"bank": np.full(4, 9.0), "court": np.full(4, 9.0)}
    say(one, "not yet", "holds")
    one.close_round({"bank": "holds", "court": "holds"}, last)
    assert all((one.sent[name] == VALUES[name]).all() for name in VALUES)


@pytest.mark.parametrize("said", [{"bank": "holds"}, {"bank": "holds", "court": "declined"}])
def test_a_key_without_one_of_its_holders_stays_contested(said):
    """An MKV in the place of the missing one's would not say its facts."""
    one = contest()
    one.close_round(said, {"bank": VALUES["bank"]})
    assert not one.open


def test_if_its_maker_fails_another_holder_makes_it():
    one = contest(settled=True)
    assert one.asked == ["bank"]
    one.close_round({}, {})
    assert one.asked == ["court"] and one.open
    one.close_round({}, {})
    assert not one.open


def test_a_conflict_counts_unless_its_key_was_composed():
    settled = [contest(made="m")]
    assert is_settled(pair(B, A), settled)
    assert not is_settled(pair(A, C), settled)


def test_a_node_cannot_join_keys_that_are_not_one():
    """All holders would decline what one of them has joined with something else."""
    keys = {A: np.eye(4)[0], B: np.array([0.999, 0.0447, 0, 0]), C: np.eye(4)[1]}
    told = [pair(A, B), pair(B, C), pair(A, D)]
    assert of_one_key(told, keys, least=0.98) == [pair(A, B)]


def test_a_flood_of_pairs_takes_no_longer_than_reading_them():
    ids = [f"{number:032x}" for number in range(30_000)]
    flood = [pair(*two) for two in zip(ids, ids[1:], strict=False)]
    reports = {"bank": [pair(ids[0], ids[1])], "eve": flood}
    assert contests(reports) == [], "a key of more than can hold it"
    apart = [pair(*two) for two in zip(ids[::2], ids[1::2], strict=True)]
    (found,) = contests({"bank": [pair(ids[0], ids[1])], "eve": apart})
    assert found.ids == (ids[0], ids[1]) and found.holders == ["bank", "eve"]
