"""Contested keys of a slot: who holds facts of which, and how their rounds of composition go.

The server only counts and passes on: the values are combined by the holders themselves, and in a
sealed run it cannot read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedit_app.protocol.schema import MOST_HOLDERS, ConflictIds, ContestedKey, Said

_DEVIATIONS = 6


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
    """

    ids: tuple[str, ...]
    holders: list[str]
    sent: dict[str, np.ndarray] = field(default_factory=dict)
    settled: bool = False
    made: str = ""
    rounds: int = 0

    @property
    def open(self) -> bool:
        """Whether another round can settle it, or make its MKV."""
        return not self.made and bool(self.holders)

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

    def close_round(self, said: Mapping[str, Said], values: Mapping[str, np.ndarray]) -> None:
        """Note what the holders made of the round.

        If one is missing or has declined, the key stays contested: an MKV in the place of its own
        would not say its facts.

        Args:
            said: node -> what it says of the value with which the round began.
            values: node -> the value that it returned.
        """
        if self.settled:  # no MKV came of it: the next holder is to make it
            self.holders = self.holders[1:]
            return
        if any(said.get(name, "declined") == "declined" for name in self.holders):
            self.holders = []
            return
        self.settled = all(said[name] == "holds" for name in self.holders)
        if not self.settled:
            self.sent = {name: values[name] for name in self.holders}
            self.rounds += 1


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
