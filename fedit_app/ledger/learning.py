"""Learning requests on top of a ledger: those of one key together, also with what it held before.

A key has one value. A request whose key the ledger holds for own requests already is learned from
that value on, together with their texts; the new MKV supersedes the old one, which stays in the
ledger and holds again when the new one is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from fedit_app.editing.value_store import ValueStore
from fedit_app.editing.workbench import Workbench
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV
from fedit_app.mkv.same_key import near_keys

logger = logging.getLogger(__name__)


def repeat(
    requests: Iterable[EditRequest], known: Iterable[EditRequest], ledger: Ledger, slot: int
) -> None:
    """Let the MKV that fulfils a known request fulfil the same fact again.

    Args:
        requests: new ones.
        known: requests whose texts are there.
        ledger: where both are fulfilled, inside a step of it.
        slot: the time slot.
    """
    fulfilled = ledger.fulfilled()
    of_fact = {r.fact: fulfilled[r.id] for r in known if r.id in fulfilled}
    for request in requests:
        id_ = of_fact.get(request.fact)
        if id_ is not None and request.id not in fulfilled:
            ledger.accept([ledger.entries[id_].mkv], slot, {id_: [request.id]})


def learn(
    bench: Workbench,
    ledger: Ledger,
    requests: Sequence[EditRequest],
    known: Iterable[EditRequest],
    node: str,
    slot: int,
    starts: Mapping[str, MKV],
    rivals: Iterable[str] = (),
    store: ValueStore | None = None,
) -> list[MKV]:
    """Compute an MKV for every key of requests that nothing fulfils, and accept it.

    Args:
        bench: the model and its tools.
        ledger: where the MKVs go, inside a step of it.
        requests: of which no two ask the same with another target. An id that the ledger fulfils
            already is one whose fact is corrected.
        known: all own requests whose texts are there; what the ledger fulfils for others is lost
            from a key that is learned again.
        node: the node that computes.
        slot: the time slot.
        starts: request id -> an MKV from whose value its own is optimised, where the ledger holds
            none of its key.
        rivals: ids of MKVs of the ledger that are not to shape the new ones.
        store: where values are looked up and kept.

    Returns:
        The new MKVs, each once.
    """
    before = _held_before(bench, ledger, requests)
    again = _learned_again(ledger, requests, known, before)
    by_fact: dict[tuple[str, str, str], list[EditRequest]] = {}
    for request in [*requests, *again]:
        by_fact.setdefault(request.fact, []).append(request)
    first = [same[0] for same in by_fact.values()]
    kept = {request.id for request in again}
    still_right = {
        id_ for id_, entry in ledger.entries.items() if kept.intersection(entry.requests)
    }
    begin = [
        next(
            (ledger.entries[id_].mkv for id_ in before.get(r.id, ()) if id_ in still_right),
            starts.get(r.id),
        )
        for r in first
    ]
    replaced = {id_ for ids in before.values() for id_ in ids}
    rest = ledger.without(replaced.union(rivals))
    computed = bench.compute(first, rest, node, slot, begin, store)
    asked: dict[str, list[str]] = {}
    supersedes: dict[str, list[str]] = {}
    for mkv, same in zip(computed, by_fact.values(), strict=True):
        asked.setdefault(mkv.id, []).extend(request.id for request in same)
        old = [id_ for request in same for id_ in before.get(request.id, ())]
        supersedes.setdefault(mkv.id, []).extend(
            id_ for id_ in old if ledger.entries[id_].mkv.node == node
        )
    found = list({mkv.id: mkv for mkv in computed}.values())
    ledger.release({id_ for old in replaced for id_ in ledger.entries[old].requests})
    # A request under another id for a fact that was withdrawn wants it again.
    ledger.allow([mkv.id for mkv in found if mkv.id in ledger.refused])
    ledger.accept(found, slot, asked, supersedes)
    begun = {mkv.id for mkv, start in zip(computed, begin, strict=True) if start is not None}
    ledger.note_warm_starts(sorted(begun))
    return found


def _held_before(
    bench: Workbench, ledger: Ledger, requests: Sequence[EditRequest]
) -> dict[str, list[str]]:
    """Request id -> ids of the MKVs that fulfil own requests with its key, the nearest first."""
    own = [entry.mkv for entry in ledger.entries.values() if entry.requests]
    rows = near_keys(bench.lookup_keys(requests).numpy(), own, bench.same_key)
    return {
        request.id: [mkv.id for _, mkv in row]
        for request, row in zip(requests, rows, strict=True)
        if row
    }


def _learned_again(
    ledger: Ledger,
    requests: Sequence[EditRequest],
    known: Iterable[EditRequest],
    before: Mapping[str, Sequence[str]],
) -> list[EditRequest]:
    """Requests that MKVs of the same keys fulfil, without those that a new one corrects."""
    targets = {(r.subject, r.prompt): r.target_new for r in requests}
    texts = {request.id: request for request in known}
    fulfilled = dict.fromkeys(
        id_ for ids in before.values() for old in ids for id_ in ledger.entries[old].requests
    )
    gone = [id_ for id_ in fulfilled if id_ not in texts]
    if gone:
        logger.warning(
            "%d requests whose key is learned again have left the data, among them %s; their facts "
            "are given up",
            len(gone),
            gone[0],
        )
    kept = [texts[id_] for id_ in fulfilled if id_ in texts]
    asked = {request.id for request in requests}
    return [
        r
        for r in kept
        if r.id not in asked and targets.get((r.subject, r.prompt), r.target_new) == r.target_new
    ]
