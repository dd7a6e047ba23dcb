"""A quorum of q is not passed by fewer than q organisations, whatever they make and say."""

import numpy as np
import pytest

from fedit_app.mkv import MKV, create
from fedit_app.mkv.same_key import SameFact, same_fact
from fedit_app.pool import MKVPool
from fedit_app.server.grid import Member
from fedit_app.server.quorum import receipts, within_quorum

D_FF, D_MODEL, FINGERPRINT = 64, 32, "f" * 32
TRIES = 100


def member(name: str, *wants: MKV) -> Member:
    return Member(name, 1, np.zeros((0, D_FF)), wants={mkv.id for mkv in wants})


def mkv(node: str, rng, like: MKV | None = None, share: float = 0.0, slot: int = 1) -> MKV:
    """An honest MKV, or one that is folded with another one and says something else as well."""
    key, shifts, delta = (rng.standard_normal(n) for n in (D_FF, D_MODEL, D_MODEL))
    if like is not None:
        key = like.lookup_key
        shifts = mixed(like.shifts[0], shifts, share)
        delta = mixed(like.delta, delta, share)
    return create(node, slot, FINGERPRINT, key[None], shifts[None], delta, np.zeros(D_MODEL))


def mixed(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """A vector of cosine `share` with the first one."""
    one = one / np.linalg.norm(one)
    other = other - (other @ one) * one
    return share * one + np.sqrt(1 - share**2) * other / np.linalg.norm(other)


@pytest.mark.integration
@pytest.mark.parametrize("quorum", [2, 3])
def test_members_that_are_too_few_pass_no_quorum_together(tmp_path, quorum, record_property):
    """They fold their MKVs with an honest one, first or second, and say that they hold for all."""
    rng, eves = np.random.default_rng(0), ["eve", "mallory"][: quorum - 1]
    served = folded = 0
    for number in range(TRIES):
        pool = MKVPool(str(tmp_path / str(number)))
        honest = mkv("bank", rng)
        false = [mkv(eve, rng, honest, 0.65 + 0.3 * rng.random()) for eve in eves for _ in "12"]
        before = number % 2
        for batch in ([*false], [honest]) if before else ([honest, *false],):
            pool.append(batch)
        # Each of them says of every one of these MKVs that it has tried it.
        members = [member(eve, honest, *false) for eve in eves]
        members += [member("bank", honest), member("museum")]
        by_name = {one.name: one for one in members}
        facts = pool.facts([one.id for one in (honest, *false)])
        folded += facts[honest.id] in {facts[one.id] for one in false}
        ranked = {"museum": sorted(set(facts.values()))}
        found = within_quorum(pool, by_name, ranked, quorum)["museum"]
        served += len({one.id for one in false} & set(found))
    record_property("served", served)
    record_property("tries", TRIES)
    assert folded > TRIES // 2, "the attack is one that likeness does not tell"
    assert served == 0


def test_an_mkv_is_served_to_others_once_enough_have_tried_it(tmp_path):
    rng, pool = np.random.default_rng(1), MKVPool(str(tmp_path))
    bank = mkv("bank", rng)
    court = mkv("court", rng, bank, 0.95)
    assert same_fact(bank, court, SameFact())
    pool.append([bank, court])
    members = {m.name: m for m in (member("bank", bank), member("court", court), member("museum"))}
    (fact,) = set(pool.facts([bank.id, court.id]).values())
    ranked = {name: [fact] for name in members}
    first = within_quorum(pool, members, ranked, 2)
    assert first == {"bank": [court.id], "court": [bank.id], "museum": []}, "its authors try it"
    members["court"].wants.add(bank.id)
    assert receipts(pool, members.values(), [bank.id, court.id]) == {bank.id: 2, court.id: 1}
    assert within_quorum(pool, members, ranked, 2)["museum"] == [bank.id]
    assert within_quorum(pool, members, ranked, 3)["museum"] == []
    assert within_quorum(pool, members, ranked, 1)["museum"] == [fact]


def test_a_false_one_that_came_first_does_not_hold_back_the_honest(tmp_path):
    """The pool serves the first of a fact; under a quorum the one that most have found to hold."""
    rng, pool = np.random.default_rng(2), MKVPool(str(tmp_path))
    bank = mkv("bank", rng, slot=2)
    court, false = mkv("court", rng, bank, 0.97, slot=2), mkv("eve", rng, bank, 0.8)
    pool.append([false])
    pool.append([bank, court])
    assert set(pool.facts([bank.id, court.id]).values()) == {false.id}
    tried = [member("bank", bank), member("court", court, bank), member("eve", false)]
    members = {one.name: one for one in [*tried, member("museum")]}
    assert within_quorum(pool, members, {"museum": [false.id]}, 2) == {"museum": [bank.id]}
