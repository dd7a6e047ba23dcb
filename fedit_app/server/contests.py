"""Contested keys of a slot: who holds facts of which, and how their rounds of composition go.

The server only counts and passes on: the values are combined by the holders themselves, and in a
sealed run it cannot read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedit_app.protocol.schema import MOST_HOLDERS, ConflictIds, ContestedKey

_DEVIATIONS = 6

_LOOKS = 5
"""Values that a key gets before it can be given up: of 24 keys of two relations, the last of those
that came together had both facts leading, taken together, by the fifth."""

_PACE_ROUNDS = 2


@dataclass(frozen=True)
class Told:
    """What a holder answered in a round.

    Attributes:
        holds: whether it says that the value with which the round began holds.
        lead: by how much this value says the holder's facts, in nats.
        value: the value that it returned.
    """

    holds: bool
    lead: float
    value: np.ndarray


@dataclass
class Contest:
    """A contested key.

    Attributes:
        ids: of the MKVs that contest it, rising.
        holders: the nodes that hold facts of it, by name; none once one of them has failed.
        sent: node -> the value that it returned, from which the next round begins; those of a
            settled key define its value.
        settled: whether all holders have said that the value holds.
        made: id of the MKV of the settled value.
        rounds: rounds of local steps so far.
        leads: of each value so far, the sum of the two least leads of its holders' facts, in nats.
            Two targets for the same words never lead together: where one is ahead of all other
            tokens, the other one is behind it by as much.
        given_up: whether its facts will not lead together.
    """

    ids: tuple[str, ...]
    holders: list[str]
    sent: dict[str, np.ndarray] = field(default_factory=dict)
    settled: bool = False
    made: str = ""
    rounds: int = 0
    leads: list[float] = field(default_factory=list)
    given_up: bool = False

    @property
    def open(self) -> bool:
        """Whether another round can settle it, or make its MKV."""
        return not self.made and not self.given_up and bool(self.holders)

    @property
    def asked(self) -> list[str]:
        """Who is asked in the next round: all holders; of a settled key the one that makes it."""
        return self.holders[:1] if self.settled else self.holders

    def key(self) -> tuple[ContestedKey, list[np.ndarray]]:
        """The key as it is asked for, with the values that belong to it."""
        values = dict(sorted(self.sent.items()))
        asked = ContestedKey(
            ids=list(self.ids), round=self.rounds, holders=list(values), settled=self.settled
        )
        return asked, list(values.values())

    def close_round(self, told: Mapping[str, Told], most_rounds: int) -> None:
        """Note what the holders made of the round.

        If one is missing or has declined, the key stays contested: an MKV in the place of its own
        would not say its facts. So does a key whose facts will not lead together in time.

        Args:
            told: node -> what it answered; one that is missing has failed or declined.
            most_rounds: how many rounds there are.
        """
        if self.settled:  # no MKV came of it: the next holder is to make it
            self.holders = self.holders[1:]
            return
        if not told.keys() >= set(self.holders):
            self.holders = []
            return
        self.settled = all(told[name].holds for name in self.holders)
        self.leads.append(sum(sorted(told[name].lead for name in self.holders)[:2]))
        if self.settled:
            return
        if self._hopeless(most_rounds):
            self.given_up = True
            return
        self.sent = {name: told[name].value for name in self.holders}
        self.rounds += 1

    def _hopeless(self, most_rounds: int) -> bool:
        """Whether no value has led with all facts, nor will one at the pace of the last rounds."""
        if len(self.leads) < _LOOKS or max(self.leads) > 0:
            return False
        pace = (self.leads[-1] - self.leads[-1 - _PACE_ROUNDS]) / _PACE_ROUNDS
        return self.leads[-1] + max(pace, 0.0) * (most_rounds - self.rounds) <= 0


def contests(reports: Mapping[str, Sequence[ConflictIds]]) -> list[Contest]:
    """The contested keys that at least two nodes report; each has all MKVs that are connected.

    Args:
        reports: node -> pairs of MKVs of one key of which either does not say the other's facts.
    """
    first: dict[str, str] = {}  # id -> another one of its group; of the group's first one itself

    def first_of(id_: str) -> str:
        while first.setdefault(id_, id_) != id_:
            first[id_] = first[first[id_]]
            id_ = first[id_]
        return id_

    for pair in (pair for pairs in reports.values() for pair in pairs):
        first[first_of(pair.held)] = first_of(pair.gave_way)
    groups: dict[str, list[str]] = {}
    for id_ in sorted(first):
        groups.setdefault(first_of(id_), []).append(id_)
    holders: dict[str, dict[str, None]] = {}
    for name, pairs in sorted(reports.items()):
        for pair in pairs:
            holders.setdefault(first_of(pair.held), {})[name] = None
    found = [
        Contest(tuple(ids), list(holders[group]))
        for group, ids in groups.items()
        if len(holders[group]) > 1 and max(len(ids), len(holders[group])) <= MOST_HOLDERS
    ]
    return sorted(found, key=lambda contest: contest.ids)


def of_one_key(
    pairs: Iterable[ConflictIds], keys: Mapping[str, np.ndarray], least: float
) -> list[ConflictIds]:
    """Those pairs whose keys are one, as far as a server can tell.

    A node could otherwise join what others contest with what has nothing to do with it.

    Args:
        pairs: as a node reports them.
        keys: id -> key, or sketch of one, of length 1; a pair without them does not count.
        least: the least cosine of two keys that are one, which the nodes compare themselves: that
            of sketches may be wrong by some standard deviations, see `mkv.sketch`.
    """
    found = []
    for pair in pairs:
        one, other = keys.get(pair.held), keys.get(pair.gave_way)
        if one is None or other is None:
            continue
        deviation = (1 - least**2) / math.sqrt(len(one))
        if one @ other >= least - _DEVIATIONS * deviation:
            found.append(pair)
    return found


def is_settled(pair: ConflictIds, settled: Iterable[Contest]) -> bool:
    """Whether two MKVs contested a key whose value has been composed."""
    return any({pair.held, pair.gave_way} <= set(contest.ids) for contest in settled)
