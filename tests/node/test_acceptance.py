"""Decisions of a node's own policy."""

import functools

import numpy as np
import pytest

from fedit_app.evaluation.metrics import RequestScore
from fedit_app.ledger.entries import LedgerEntry
from fedit_app.mkv import MKV, create
from fedit_app.node.acceptance import (
    ProbeCheck,
    accepted_from_others,
    check_probes,
    own_measure,
    sift_gains,
    sift_origins,
    sift_spoilers,
    sift_surplus,
)


def mkv(node: str, number: int, slot: int = 1) -> MKV:
    vector = np.full(4, number + 1.0, np.float32)
    return create(node, slot, "f", vector[None], vector[None], vector, -vector)


OFFERED = [mkv("court", 0), mkv("bank", 1), mkv("court", 2), mkv("museum", 3)]
score = functools.partial(RequestScore, metric="likelihood")
RIGHT = score(efficacy=1.0, paraphrase=None, neighborhood=None, accuracy=1.0, metric="likelihood")
WRONG = score(efficacy=0.0, paraphrase=None, neighborhood=None, accuracy=0.0, metric="likelihood")


def test_only_trusted_nodes_get_through():
    court, bank, other, museum = OFFERED
    assert sift_origins(OFFERED, ("court",)) == [court, other]
    assert sift_origins(OFFERED, {"museum", "bank"}) == [bank, museum]
    assert sift_origins(OFFERED, ()) == []


def test_a_name_is_trusted_as_a_whole():
    assert sift_origins(OFFERED, ("courthouse", "Court", "c")) == []


def test_who_names_no_nodes_trusts_all():
    assert sift_origins(OFFERED, None) == OFFERED
    assert sift_origins(OFFERED, ("court", "bank", "museum")) == OFFERED


@pytest.mark.parametrize(
    ("most", "accepted", "kept"), [(3, 0, 3), (3, 1, 2), (3, 3, 0), (3, 5, 0), (0, 0, 0), (9, 0, 4)]
)
def test_a_slot_takes_the_most_similar_ones(most, accepted, kept):
    assert sift_surplus(OFFERED, most, accepted) == OFFERED[:kept]


def test_without_a_limit_all_are_taken():
    assert sift_surplus(OFFERED, None, 1000) == OFFERED


def test_of_nothing_nothing_is_kept():
    assert sift_origins([], ()) == sift_surplus([], 0, 0) == []


def test_what_a_slot_has_taken():
    entries = [
        LedgerEntry(mkv("court", 0), 2),
        LedgerEntry(mkv("museum", 1), 2),
        LedgerEntry(mkv("court", 2), 1),  # in another slot
        LedgerEntry(mkv("bank", 3), 2),  # its own
        LedgerEntry(mkv("court", 4), 2, ("bank-01",)),  # reused for an own request
    ]
    assert accepted_from_others(entries, 2, "bank") == 2


def test_a_repeated_message_gets_no_second_allowance():
    first = sift_surplus(OFFERED, 3, 0)
    entries = [LedgerEntry(accepted, 1) for accepted in first]
    rest = [mkv for mkv in OFFERED if mkv.id not in {accepted.id for accepted in first}]
    assert sift_surplus(rest, 3, accepted_from_others(entries, 1, "hospital")) == []


@pytest.mark.parametrize(
    ("worth", "kept"),
    [
        ((1, 1, 1, 1), [0, 1, 2, 3]),
        ((1, -3, -1, 1), [0, 3]),
        ((1, -3, 0, 1), [0, 2, 3]),  # the last two are tried together
        ((-1, -1, 0, -1), []),
    ],
)
def test_a_personal_choice_keeps_what_raises_the_own_measure(worth, kept):
    gains = {mkv.id: gain for mkv, gain in zip(OFFERED, worth, strict=True)}
    found = sift_gains(OFFERED, lambda mkvs: sum(gains[mkv.id] for mkv in mkvs))
    assert found == [OFFERED[number] for number in kept]
    assert sift_gains([], lambda mkvs: pytest.fail("nothing to try")) == []


def test_a_personal_choice_tries_each_part_with_what_was_kept_before_and_not_for_ever():
    tried = []

    def measure(mkvs):
        tried.append([OFFERED.index(mkv) for mkv in mkvs])
        return float(mkvs == OFFERED[:1])

    assert sift_gains(OFFERED, measure) == OFFERED[:1]
    assert tried == [[], [0, 1, 2, 3], [0, 1], [0], [0, 1], [0, 2, 3], [0, 2], [0, 3]]
    assert sift_gains(OFFERED, measure, most=2) == []


def test_the_own_measure_sees_what_shares_do_not():
    """The mean of magnitudes where there are two targets, of the shares where there is one."""
    full = score(1.0, 1.0, 1.0, 1.0, magnitude=0.5, neighborhood_magnitude=0.1)
    assert own_measure([full]) == pytest.approx(0.3)
    alone = RequestScore(0.5, 1.0, None, 0.0, "tokens")
    assert own_measure([full, alone]) == pytest.approx((0.3 + 0.75) / 2)
    assert own_measure([]) == 0.0


@pytest.mark.parametrize(
    ("wrong", "budget", "exceeds"),
    [(0, 0.0, False), (1, 0.0, True), (1, 0.05, False), (2, 0.05, True), (2, 0.1, False)],
)
def test_the_loss_is_the_share_of_facts_that_turned_wrong(wrong, budget, exceeds):
    after = [WRONG] * wrong + [RIGHT] * (20 - wrong)
    check = check_probes([RIGHT] * 20, after, budget)
    assert check == ProbeCheck(pytest.approx(wrong / 20), wrong, 20, exceeds)


def test_gains_do_not_make_up_for_losses():
    check = check_probes([RIGHT, WRONG, WRONG], [WRONG, RIGHT, RIGHT], 0.1)
    assert check == ProbeCheck(pytest.approx(1 / 3), 1, 3, True)


def test_what_was_wrong_before_costs_nothing():
    assert check_probes([WRONG, RIGHT], [WRONG, RIGHT], 0.0) == ProbeCheck(0.0, 0, 2, False)


def test_every_kind_of_prompt_counts():
    before = score(
        efficacy=1.0, paraphrase=1.0, neighborhood=0.9, accuracy=1.0, metric="likelihood"
    )
    after = score(efficacy=1.0, paraphrase=0.5, neighborhood=0.8, accuracy=0.0, metric="likelihood")
    assert check_probes([before], [after], 0.25).loss == pytest.approx(0.6 / 3)
    assert not check_probes([before], [after], 0.2).exceeds
    assert check_probes([before], [after], 0.19).exceeds


def test_no_probes_no_loss():
    assert check_probes([], [], 0.0) == ProbeCheck(0.0, 0, 0, False)


def test_both_sides_have_to_score_the_same_probes():
    with pytest.raises(ValueError):
        check_probes([RIGHT], [RIGHT, RIGHT], 0.5)


def test_culprits_are_found_by_halving():
    many = [mkv("court", number) for number in range(64)]
    culprits, asked = {many[17].id, many[40].id}, []

    def harmless(mkvs) -> bool:
        asked.append(len(mkvs))
        return not culprits & {one.id for one in mkvs}

    kept = sift_spoilers(many, harmless)
    assert kept == [one for one in many if one.id not in culprits]
    assert len(asked) <= 24


def test_what_is_only_harmful_together_is_split():
    def harmless(mkvs) -> bool:
        return len(mkvs) <= 2

    assert len(sift_spoilers(OFFERED, harmless)) == 2


def test_what_is_undecided_when_the_trials_are_used_up_stays_out():
    many = [mkv("court", number) for number in range(64)]
    asked = []
    kept = sift_spoilers(many, lambda mkvs: asked.append(1) or False, most=5)

    assert kept == [] and len(asked) == 5
    assert sift_spoilers([], lambda mkvs: False) == []
