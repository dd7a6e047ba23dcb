"""Which MKVs are about the same subject, and which of them hold at a node.

Up to the subject's last token a causal model has read only the subject and what stands before it,
so equal facts have equal keys at the first edited layer on every node. One key cannot hold two
values: of two MKVs with the same key, either both want the same, or one of them has to give way.
`python -m benchmarks.lookup` prints the similarities behind the thresholds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedit_app.ledger.entries import LedgerEntry
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV
from fedit_app.pool import SameFact, same_fact

logger = logging.getLogger(__name__)

Rank = Callable[[LedgerEntry], tuple]
"""Orders MKVs about one subject: the one that comes first holds."""

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


def near_keys(
    keys: np.ndarray, known: Sequence[MKV], threshold: float
) -> list[list[tuple[float, MKV]]]:
    """For every key the MKVs whose lookup key is similar, with the cosine, nearest first.

    Args:
        keys: (n, d_ff).
        known: MKVs to look among.
        threshold: least cosine. Cosines are rounded to 4 digits, ties ordered by id.
    """
    if not known or not len(keys):
        return [[] for _ in keys]
    cosines = _unit(keys) @ _unit(np.stack([mkv.lookup_key for mkv in known])).T
    result = []
    for row in cosines.round(4):
        found = [(float(row[i]), known[i]) for i in np.flatnonzero(row >= threshold)]
        result.append(sorted(found, key=lambda pair: (-pair[0], pair[1].id)))
    return result


def settle(
    ledger: Ledger,
    changed: Iterable[str],
    policy: str,
    same: SameFact,
    agreed: Mapping[str, str] | None = None,
) -> list[Conflict]:
    """Decide which of the MKVs about one subject hold, and note it in the ledger.

    The outcome depends on the MKVs, the own requests and the votes alone, not on the order in
    which they came. Two own requests with the same key are both kept, with a warning.

    Args:
        ledger: what the node has accepted, with the changed ones.
        changed: ids of MKVs that are new, or whose votes or requests are.
        policy: one of `CONFLICT_POLICIES`.
        same: when two MKVs stand for the same fact.
        agreed: id -> id of an MKV that is known to want the same, though it is less alike.

    Returns:
        The conflicts among the changed MKVs and what hangs together with them by near-equal keys.
    """
    entries = ledger.entries
    changed = [id_ for id_ in changed if id_ in entries]
    mkvs = [entry.mkv for entry in entries.values()]
    rank = CONFLICT_POLICIES[policy]
    conflicts: list[Conflict] = []
    verdicts: dict[str, str] = {}
    for group in _groups(changed, entries, mkvs, same.same_key):
        keys = _lookup_keys([entries[id_].mkv for id_ in group])
        close = (_unit(keys) @ _unit(keys).T).round(4) >= same.same_key
        place = {id_: number for number, id_ in enumerate(group)}
        holding: list[str] = []
        for id_ in sorted(group, key=lambda id_: rank(entries[id_])):
            near = [other for other in holding if close[place[id_], place[other]]]
            stronger = [
                other for other in near if not (entries[id_].requests and entries[other].requests)
            ]
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
                continue
            pair = {id_, stronger[0]}
            alike = any({one, other} == pair for one, other in (agreed or {}).items())
            if not alike and not same_fact(entries[id_].mkv, entries[stronger[0]].mkv, same):
                conflicts.append(Conflict(held=stronger[0], gave_way=id_))
    ledger.overrule(verdicts)
    return conflicts


def _groups(
    changed: Sequence[str], entries: Mapping[str, LedgerEntry], mkvs: Sequence[MKV], key: float
) -> list[list[str]]:
    """MKVs that hang together by near-equal keys, as far as a changed one is among them.

    Neighbours of unchanged ones are known from who overrules whom.
    """
    links: dict[str, set[str]] = {id_: set() for id_ in entries}
    found = near_keys(_lookup_keys([entries[id_].mkv for id_ in changed]), mkvs, key)
    for id_, near in zip(changed, found, strict=True):
        for _, other in near:
            links[id_].add(other.id)
            links[other.id].add(id_)
    for id_, entry in entries.items():
        if entry.overruled_by in entries:
            links[id_].add(entry.overruled_by)
            links[entry.overruled_by].add(id_)
    groups, seen = [], set()
    for start in sorted(changed):
        group, waiting = [], [start]
        while waiting:
            id_ = waiting.pop()
            if id_ not in seen:
                seen.add(id_)
                group.append(id_)
                waiting += links[id_]
        if group:
            groups.append(sorted(group))
    return groups


def _lookup_keys(mkvs: Sequence[MKV]) -> np.ndarray:
    return np.array([mkv.lookup_key for mkv in mkvs], np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
