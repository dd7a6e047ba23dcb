"""Upkeep: own facts that the edited model no longer says are written anew.

An MKV is written on top of the ledger of its day. What is accepted later moves the states that its
value met, and a fact may no longer be what the model answers. The node has its text: it learns on
the model of today what it takes to say the fact, and writes that on top of all others. The new MKV
has the value of the old one, which says what is meant, and supersedes it everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.scores import TargetScore, score_targets
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV

logger = logging.getLogger(__name__)

_LEAST = 8
"""How many MKVs may be written anew in any slot, however few requests it has."""

Facts = Mapping[str, Sequence[EditRequest]]
"""Id of an MKV -> the requests that it fulfils."""


def uphold(
    bench: Workbench,
    ledger: Ledger,
    known: Iterable[EditRequest],
    node: str,
    slot: int,
    requests: int,
) -> list[MKV]:
    """Write own MKVs anew whose facts the edited model does not say.

    Those that it nearly says come first, and at most as many as the slot has requests (eight, if it
    has fewer): upkeep costs no more than the edits. What is still not said afterwards stays as it
    was; if the model would say no more own facts than before, so does everything.

    Args:
        bench: the model and its tools.
        ledger: where the MKVs go, inside a step of it.
        known: all own requests whose texts are there.
        node: the node whose MKVs they are.
        slot: the time slot.
        requests: how many requests the slot has.

    Returns:
        The new MKVs.
    """
    facts = _facts(ledger, known, node)
    before = _said(bench, ledger, facts)
    lost = sorted(
        (id_ for id_ in facts if not _decoded(before[id_])), key=lambda i: _nll(before[i])
    )
    lost = lost[: max(requests, _LEAST)]
    if not lost:
        return []
    old = [ledger.entries[id_].mkv for id_ in lost]
    made = bench.renew([facts[id_] for id_ in lost], old, ledger.without(lost), node, slot)
    renewed = dict(zip(lost, made, strict=True))
    after = _said(bench, *_exchanged(ledger, facts, renewed, slot))
    won = {id_: mkv for id_, mkv in renewed.items() if _decoded(after[mkv.id])}
    if 0 < len(won) < len(lost):
        after = _said(bench, *_exchanged(ledger, facts, won, slot))
    now, then = (sum(map(_decoded, scores.values())) for scores in (after, before))
    told = now if won and now > then else then
    logger.info(
        "node %s, slot %d: the model says %d of %d own values, %d before %d were written anew",
        node,
        slot,
        told,
        len(facts),
        then,
        len(won) if told > then else 0,
    )
    if told == then:
        return []
    _replace(ledger, won, slot)
    return list(won.values())


def _replace(ledger: Ledger, new: Mapping[str, MKV], slot: int) -> None:
    """Let new MKVs supersede old ones; those of this very slot, which nobody has, are dropped."""
    old = {id_: ledger.entries[id_] for id_ in new}
    fresh = {id_ for id_, entry in old.items() if entry.slot == entry.mkv.slot == slot}
    asked = {new[id_].id: entry.requests for id_, entry in old.items()}
    older = {
        new[id_].id: entry.supersedes if id_ in fresh else (id_,) for id_, entry in old.items()
    }
    ledger.release({request for ids in asked.values() for request in ids})
    ledger.accept(new.values(), slot, asked, older)
    ledger.note_warm_starts(new[id_].id for id_ in sorted(fresh) if old[id_].warm_started)
    ledger.drop(fresh)


def is_renewed(ledger: Ledger, id_: str) -> bool:
    """Whether an MKV of a ledger was written anew: it has the value of one that it supersedes."""
    entry = ledger.entries[id_]
    older = [ledger.entries[old].mkv for old in entry.supersedes if old in ledger.entries]
    return any(np.array_equal(entry.mkv.v_star, old.v_star) for old in older)


def _exchanged(
    ledger: Ledger, facts: Facts, new: Mapping[str, MKV], slot: int
) -> tuple[Ledger, Facts]:
    """A ledger in memory, and its facts, with new MKVs in the place of old ones."""
    found = ledger.without(new)
    found.accept(new.values(), slot)
    return found, {new[id_].id if id_ in new else id_: asked for id_, asked in facts.items()}


def _facts(ledger: Ledger, known: Iterable[EditRequest], node: str) -> Facts:
    """Those of the own MKVs that count.

    One that was composed with others is not among them: it says facts whose texts are not here.
    """
    texts = {request.id: request for request in known}
    entries = ledger.entries
    return {
        id_: [texts[request] for request in entry.requests]
        for id_, entry in sorted(entries.items())
        if entry.requests
        and not entry.overruled_by
        and entry.mkv.node == node
        and all(old in entries and entries[old].mkv.node == node for old in entry.supersedes)
        and all(request in texts for request in entry.requests)
    }


def _said(bench: Workbench, ledger: Ledger, facts: Facts) -> dict[str, list[TargetScore]]:
    """Id of each MKV -> the scores of its facts on the model that a ledger makes."""
    pairs = list(dict.fromkeys(r.asked_new for asked in facts.values() for r in asked))
    with bench.edited(ledger) as model:
        scores = dict(zip(pairs, score_targets(model, pairs), strict=True))
    return {id_: [scores[request.asked_new] for request in asked] for id_, asked in facts.items()}


def _decoded(scores: Sequence[TargetScore]) -> bool:
    return all(score.decoded for score in scores)


def _nll(scores: Sequence[TargetScore]) -> float:
    return max(score.nll for score in scores)
