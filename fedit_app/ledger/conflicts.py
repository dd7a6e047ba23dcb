"""Which of the MKVs about one subject hold in a ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedit_app.ledger.entries import LedgerEntry
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV
from fedit_app.mkv.same_key import SameFact, key_cosines, near_keys, same_fact

logger = logging.getLogger(__name__)

Rank = Callable[[LedgerEntry], tuple[object, ...]]
"""Orders MKVs about one subject: the first one holds."""

# Of two own requests neither yields to the other; ties go to the older MKV, then by id.
CONFLICT_POLICIES: dict[str, Rank] = {
    "own-wins": lambda entry: (not entry.requests, entry.mkv.slot, entry.mkv.id),
    "newest": lambda entry: (-entry.mkv.slot, not entry.requests, entry.mkv.id),
    "majority": lambda entry: (-entry.votes, not entry.requests, entry.mkv.slot, entry.mkv.id),
}


@dataclass(frozen=True)
class Conflict:
    """Two MKVs about one subject that want different targets.

    Attributes:
        held: id of the one that holds.
        gave_way: id of the other.
    """

    held: str
    gave_way: str


def settle(
    ledger: Ledger,
    changed: Iterable[str],
    policy: str,
    same: SameFact,
    agreed: Mapping[str, str] | None = None,
) -> list[Conflict]:
    """Decide which of the MKVs about one subject hold, and note it in the ledger.

    An MKV that supersedes another of the same key holds in its place, unless the other fulfils own
    requests. Else the policy decides. The outcome depends on the MKVs, the own requests and the
    votes alone, not on the order of arrival. Two own requests with the same key are both kept, with
    a warning.

    Args:
        ledger: what the node has accepted, with the changed ones.
        changed: ids of MKVs that are new, or whose votes or requests are; others than the ledger's
            are ignored.
        policy: one of `CONFLICT_POLICIES`.
        same: when two MKVs stand for the same fact.
        agreed: id -> id of an MKV that is known to want the same, though it is less alike.

    Returns:
        The conflicts among the changed MKVs and those connected with them by near-equal keys.
    """
    entries = ledger.entries
    pairs = {frozenset(pair) for pair in (agreed or {}).items()}
    conflicts: list[Conflict] = []
    verdicts: dict[str, str] = {}
    for group in _groups([id_ for id_ in changed if id_ in entries], entries, same.same_key):
        found = _verdicts(group, entries, CONFLICT_POLICIES[policy], same.same_key)
        verdicts |= found
        conflicts += [
            Conflict(held=winner, gave_way=id_)
            for id_, winner in found.items()
            if winner
            and frozenset((id_, winner)) not in pairs
            and id_ not in entries[winner].supersedes
            and not same_fact(entries[id_].mkv, entries[winner].mkv, same)
        ]
    ledger.overrule(verdicts)
    return conflicts


def _verdicts(
    group: Sequence[str], entries: Mapping[str, LedgerEntry], rank: Rank, same_key: float
) -> dict[str, str]:
    """Id of every MKV of a group, by rank -> id of the one that overrules it, "" if it holds."""
    mkvs = [entries[id_].mkv for id_ in group]
    close = key_cosines(_lookup_keys(mkvs), mkvs) >= same_key
    place = {id_: number for number, id_ in enumerate(group)}
    older = {
        id_: [o for o in entries[id_].supersedes if o in place and close[place[id_], place[o]]]
        for id_ in group
    }
    superseded = {o for found in older.values() for o in found if not entries[o].requests}

    def order(id_: str) -> tuple[object, ...]:
        """The superseded come last; what supersedes has the rank of the first in its place."""
        ranks = [rank(entries[id_]), *(rank(entries[o]) for o in older[id_] if o in superseded)]
        return (id_ in superseded, min(ranks), id_)

    holding: list[str] = []
    verdicts: dict[str, str] = {}
    for id_ in sorted(group, key=order):
        near = [other for other in holding if close[place[id_], place[other]]]
        stronger = [o for o in near if not (entries[id_].requests and entries[o].requests)]
        if len(stronger) < len(near):
            logger.warning(
                "MKVs %s and %s are of two own requests with the same subject and beginning; "
                "one key cannot hold both",
                id_,
                next(other for other in near if other not in stronger),
            )
        verdicts[id_] = stronger[0] if stronger else ""
        if not stronger:
            holding.append(id_)
    return verdicts


def _groups(
    changed: Sequence[str], entries: Mapping[str, LedgerEntry], same_key: float
) -> list[list[str]]:
    """MKVs connected by near-equal keys, in groups with at least one changed MKV.

    Neighbours of unchanged ones are known from who overrules whom.
    """
    links: dict[str, set[str]] = {id_: set() for id_ in entries}

    def link(one: str, other: str) -> None:
        links[one].add(other)
        links[other].add(one)

    keys = _lookup_keys([entries[id_].mkv for id_ in changed])
    found = near_keys(keys, [entry.mkv for entry in entries.values()], same_key)
    for id_, near in zip(changed, found, strict=True):
        for _, other in near:
            link(id_, other.id)
    for id_, entry in entries.items():
        if entry.overruled_by in entries:
            link(id_, entry.overruled_by)
    groups: list[list[str]] = []
    seen: set[str] = set()
    for start in sorted(changed):
        group = _connected(start, links) - seen
        if group:
            groups.append(sorted(group))
        seen |= group
    return groups


def _connected(start: str, links: Mapping[str, Iterable[str]]) -> set[str]:
    """All that can be reached from a start, the start included."""
    found, waiting = {start}, [start]
    while waiting:
        new = set(links[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


def _lookup_keys(mkvs: Sequence[MKV]) -> np.ndarray:
    return np.array([mkv.lookup_key for mkv in mkvs], np.float32)
