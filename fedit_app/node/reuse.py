"""Compute each fact once: what a node takes from the MKVs that are there, before it optimises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.scores import score_targets
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV
from fedit_app.mkv.same_key import SameFact, near_keys

_MOST_TRIED = 8


@dataclass(frozen=True)
class Found:
    """What trying MKVs on requests has shown.

    Attributes:
        starts: request id -> MKV from whose value its own is best optimised.
        rivals: ids of MKVs with the key of a request that want another target.
    """

    starts: dict[str, MKV] = field(default_factory=dict)
    rivals: set[str] = field(default_factory=set)


def fact(request: EditRequest) -> tuple[str, str, str]:
    """What makes two requests of one node the same."""
    return request.subject, request.prompt, request.target_new


def open_requests(requests: Sequence[EditRequest], ledger: Ledger) -> list[EditRequest]:
    """The requests that no MKV of the ledger fulfils yet, without those that were set aside."""
    done = ledger.fulfilled().keys() | ledger.set_aside
    return [request for request in requests if request.id not in done]


def missed(
    earlier: Sequence[EditRequest], requests: Sequence[EditRequest], ledger: Ledger
) -> list[EditRequest]:
    """Requests of earlier slots that nothing fulfils, without those that a later one corrects.

    Args:
        earlier: those of the slots before, in their order.
        requests: those of the slot.
        ledger: the node's ledger.
    """
    latest = {(r.subject, r.prompt): r.target_new for r in [*earlier, *requests]}
    return [
        request
        for request in open_requests(earlier, ledger)
        if latest[request.subject, request.prompt] == request.target_new
    ]


def repeat(
    requests: Sequence[EditRequest], earlier: Sequence[EditRequest], ledger: Ledger, slot: int
) -> None:
    """Let what fulfils an own request of an earlier slot serve for the same fact.

    Args:
        requests: those of the slot.
        earlier: those of the slots before.
        ledger: the node's ledger.
        slot: the time slot.
    """
    fulfilled = ledger.fulfilled()
    before = {fact(r): fulfilled[r.id] for r in earlier if r.id in fulfilled}
    for request in requests:
        id_ = before.get(fact(request))
        if id_ is not None and request.id not in fulfilled:
            ledger.accept([ledger.entries[id_].mkv], slot, {id_: [request.id]})


def release_outdated(
    requests: Sequence[EditRequest], earlier: Sequence[EditRequest], ledger: Ledger
) -> None:
    """Give up own requests of earlier slots that ask the same with another target.

    Args:
        requests: those of the slot.
        earlier: those of the slots before.
        ledger: the node's ledger.
    """
    asked = {(request.subject, request.prompt): request.target_new for request in requests}
    ledger.release(
        request.id
        for request in earlier
        if asked.get((request.subject, request.prompt), request.target_new) != request.target_new
    )


def reuse(
    bench: Workbench,
    requests: Sequence[EditRequest],
    candidates: Sequence[MKV],
    ledger: Ledger,
    slot: int,
    least_cosine: float,
    same: SameFact,
    take_rivals: bool = True,
) -> Found:
    """Let MKVs fulfil requests whose target they say in every context, the nearest first.

    One with another key (a paraphrase of the request) has to do so in the edited model, too.
    Candidates with the very key of a request that say something else enter the ledger, so that it
    can be settled which of the two holds; not where a quorum decides what others' facts are worth.

    Args:
        bench: the model and its tools.
        requests: n requests that nothing fulfils.
        candidates: MKVs of the pool with similar lookup keys; those of the ledger are tried too.
        ledger: the node's ledger.
        slot: the time slot.
        least_cosine: of lookup keys, from which an MKV may fulfil a request; 0: none may.
        same: when two keys count as one.
        take_rivals: whether candidates that say something else may enter the ledger.
    """
    found = Found()
    held = [entry.mkv for entry in ledger.entries.values()]
    known = list({mkv.id: mkv for mkv in [*held, *candidates]}.values())
    if not requests or not known:
        return found
    keys = bench.lookup_keys(requests).numpy()
    least = least_cosine or math.inf
    near = [row[:_MOST_TRIED] for row in near_keys(keys, known, min(least, same.same_key))]
    pairs = [
        (request, mkv)
        for request, row in zip(requests, near, strict=True)
        for mkv in [None, *(mkv for _, mkv in row)]
        if row
    ]
    said = {
        (request.id, mkv.id if mkv else ""): outcome
        for (request, mkv), outcome in zip(pairs, bench.patched(pairs), strict=True)
    }
    rephrased: dict[str, tuple[EditRequest, MKV]] = {}
    for request, row in zip(requests, near, strict=True):
        fits = [
            (cosine, mkv)
            for cosine, mkv in row
            if cosine >= least and said[request.id, mkv.id].decoded
        ]
        if fits:
            cosine, mkv = fits[0]
            ledger.accept([mkv], slot, {mkv.id: [request.id]})
            if cosine < same.same_key:
                rephrased[request.id] = request, mkv
        elif row:
            _, best = min(row, key=lambda pair: (said[request.id, pair[1].id].nll, pair[1].id))
            if least_cosine and said[request.id, best.id].nll < said[request.id, ""].nll:
                found.starts[request.id] = best
            rivals = [mkv for cosine, mkv in row if cosine >= same.same_key]
            rivals = [mkv for mkv in rivals if not _is_own(mkv, ledger)]
            rivals = [mkv for mkv in rivals if take_rivals or mkv.id in ledger.entries]
            ledger.accept(rivals, slot)
            found.rivals.update(mkv.id for mkv in rivals)
    for id_ in _without_effect(bench, [request for request, _ in rephrased.values()], ledger):
        found.starts[id_] = rephrased[id_][1]
        ledger.release([id_])
    return found


def _without_effect(bench: Workbench, requests: Sequence[EditRequest], ledger: Ledger) -> list[str]:
    """Ids of those requests whose target the model edited by the ledger does not say.

    An MKV has the key of the words in which it was asked for; in other words about the same fact
    it may say the target when it is patched in, and yet not be called forth.
    """
    if not requests:
        return []
    with bench.edited(ledger) as model:
        scores = score_targets(model, [(r.text, r.target_new) for r in requests])
    return [r.id for r, score in zip(requests, scores, strict=True) if not score.decoded]


def saying_own_targets(
    bench: Workbench,
    requests: Sequence[EditRequest],
    offered: Sequence[MKV],
    ledger: Ledger,
    same: SameFact,
) -> dict[str, str]:
    """Which offered MKVs want what an own one with the same key wants.

    Args:
        bench: the model and its tools.
        requests: all of the node's own that are known; one that the ledger fulfils may have left
            the node's file, and then nothing can be said.
        offered: MKVs of the ledger's fingerprint and shapes.
        ledger: the node's ledger.
        same: when two keys count as one.

    Returns:
        Id of an offered MKV -> id of the own one, of those that say, patched in, the targets of all
        requests that the own one fulfils.
    """
    by_id = {request.id: request for request in requests}
    own = [
        entry.mkv
        for entry in ledger.entries.values()
        if entry.requests and by_id.keys() >= set(entry.requests)
    ]
    keys = np.array([mkv.lookup_key for mkv in offered])
    trials = [
        (mkv, twin, by_id[request])
        for mkv, near in zip(offered, near_keys(keys, own, same.same_key), strict=True)
        for _, twin in [pair for pair in near if pair[1].id != mkv.id][:1]
        for request in ledger.entries[twin.id].requests
    ]
    said = bench.patched([(request, mkv) for mkv, _, request in trials])
    silent = {mkv.id for (mkv, *_), one in zip(trials, said, strict=True) if not one.decoded}
    return {mkv.id: twin.id for mkv, twin, _ in trials if mkv.id not in silent}


def _is_own(mkv: MKV, ledger: Ledger) -> bool:
    return mkv.id in ledger.entries and bool(ledger.entries[mkv.id].requests)
