"""How many organisations vouch for an MKV, and so to whom it may be served.

The pool folds MKVs that are alike into one fact, but likeness proves nothing: whoever knows a fact
can make an MKV that is folded with an honest one and says something else as well. So a vote is a
receipt for this very MKV. It is that of the node that computed it, or of one that has tried it on
a request of its own and found that it says the target. Names are those of registered keys; each
counts once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fedit_app.pool import MKVPool
from fedit_app.server.grid import Member

_MOST_TRIED = 8


def receipts(pool: MKVPool, members: Collection[Member], ids: Collection[str]) -> dict[str, int]:
    """Id -> how many organisations vouch for it, for MKVs of the pool.

    Args:
        pool: the pool; who has uploaded an MKV counts, also from an earlier run.
        members: those that take part; what each `wants` it has tried, or computed.
        ids: ids of MKVs.
    """
    nodes = {id_: set(names) for id_, names in pool.uploaders(ids).items()}
    for member in members:
        for id_ in member.wants & nodes.keys():
            nodes[id_].add(member.name)
    return {id_: len(names) for id_, names in nodes.items()}


def within_quorum(
    pool: MKVPool, members: Mapping[str, Member], ranked: Mapping[str, Sequence[str]], quorum: int
) -> dict[str, list[str]]:
    """What each node may be served of the facts that are ranked for it.

    Of a fact that it has an MKV of itself, the others' MKVs, so that it can try them. Of another
    one the MKV for which most organisations vouch, if they are enough.

    Args:
        pool: the pool.
        members: those that take part, by name.
        ranked: node -> ids of canonical MKVs, the best first.
        quorum: how many organisations have to vouch.
    """
    if quorum == 1:
        return {name: list(ids) for name, ids in ranked.items()}
    facts = pool.facts(sorted(set().union(*ranked.values())))
    of_fact, authors = pool.of_facts(set(facts.values())), pool.authors(set(facts.values()))
    found = receipts(pool, members.values(), [id_ for ids in of_fact.values() for id_ in ids])
    served: dict[str, list[str]] = {}
    for name, ids in ranked.items():
        served[name] = []
        for fact in dict.fromkeys(facts[id_] for id_ in ids):
            most = sorted(of_fact[fact], key=lambda id_: (-found[id_], id_ != fact, id_))
            chosen = [id_ for id_ in most[:1] if found[id_] >= quorum]
            if name in authors[fact]:
                chosen = most[:_MOST_TRIED]
            served[name] += [id_ for id_ in chosen if id_ not in members[name].known]
    return served
