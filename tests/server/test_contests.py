"""Which keys are contested, and when their rounds are over."""

import numpy as np
import pytest

from fedit_app.protocol.schema import ConflictIds
from fedit_app.server.contests import Contest, Told, contests, is_settled, of_one_key

A, B, C, D, E = (letter * 32 for letter in "abcde")
VALUES = {"bank": np.ones(4), "court": np.zeros(4)}
ROUNDS = 10


def pair(held: str, gave_way: str) -> ConflictIds:
    return ConflictIds(held=held, gave_way=gave_way)


def contest(**given) -> Contest:
    return Contest((A, B), ["bank", "court"], **given)


def told(bank: bool, court: bool, values=VALUES, lead: float = 1.0) -> dict[str, Told]:
    """What both answer; the lead is the sum of theirs."""
    holds = {"bank": bank, "court": court}
    return {name: Told(holds[name], lead / 2, values[name]) for name in holds}


def say(one: Contest, bank: bool, court: bool) -> None:
    one.close_round(told(bank, court), ROUNDS)


def lead(one: Contest, *sums: float) -> None:
    for found in sums:
        one.close_round(told(False, True, lead=found), ROUNDS)


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
    for said in [(False, True), (True, False)]:
        say(one, *said)
        assert one.open and not one.settled
    say(one, True, True)
    assert one.settled and one.open and one.asked == ["bank"]
    assert one.rounds == 2, "the last round was only a look"
    key, values = one.key()
    assert key.settled and key.holders == ["bank", "court"] and len(values) == 2


def test_the_values_of_a_settled_key_are_those_that_made_it():
    one, last = contest(), {"bank": np.full(4, 9.0), "court": np.full(4, 9.0)}
    say(one, False, True)
    one.close_round(told(True, True, last), ROUNDS)
    assert all((one.sent[name] == VALUES[name]).all() for name in VALUES)


def test_a_key_without_one_of_its_holders_stays_contested():
    """An MKV in the place of the missing one's would not say its facts."""
    one, answers = contest(), told(True, True)
    del answers["court"]
    one.close_round(answers, ROUNDS)
    assert not one.open


def test_facts_that_never_lead_together_are_given_up_after_five_values():
    """As two targets for the same words never do."""
    one = contest()
    lead(one, -9.3, -2.8, -1.6, -1.4)
    assert one.open
    lead(one, -1.3)
    assert not one.open and not one.settled
    assert one.holders == ["bank", "court"], "the log names them"


@pytest.mark.parametrize(
    "sums",
    [
        (-5.4, 0.2, -1.0, -1.0, -1.0, -1.0),
        (-16.1, -10.6, -7.8, -6.8, -4.8, -3.6, -1.9, -0.3),
        (-14.2, -6.2, -4.6, -6.9, -1.7, -3.7),
    ],
    ids=["has led once", "on its way", "on its way, with a swing"],
)
def test_facts_that_led_together_or_will_in_time_are_not_given_up(sums):
    one = contest()
    lead(one, *sums)
    assert one.open


def test_of_three_holders_the_two_that_are_furthest_apart_count():
    one = Contest((A, B, C), ["bank", "court", "museum"])
    for _ in range(5):
        leads = {"bank": 3.0, "court": 1.0, "museum": -1.5}
        answers = {name: Told(found > 0, found, np.ones(4)) for name, found in leads.items()}
        one.close_round(answers, ROUNDS)
    assert not one.open


def test_if_its_maker_fails_another_holder_makes_it():
    one = contest(settled=True)
    assert one.asked == ["bank"]
    one.close_round({}, ROUNDS)
    assert one.asked == ["court"] and one.open
    one.close_round({}, ROUNDS)
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
