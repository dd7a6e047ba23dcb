"""A node's own requests and what its ledger says of them: fulfilled, open, missed, outdated."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger

logger = logging.getLogger(__name__)


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


def without_contradictions(
    requests: Sequence[EditRequest], known: Sequence[EditRequest], corrects: bool
) -> list[EditRequest]:
    """The requests without those that ask the same as another one with another target.

    Args:
        requests: those that nothing fulfils.
        known: all of the owner's, in their order.
        corrects: whether a later one counts; else the first.
    """
    ordered = known if corrects else known[::-1]
    counts = {(r.subject, r.prompt): r.target_new for r in ordered}
    kept = [r for r in requests if counts[r.subject, r.prompt] == r.target_new]
    if len(kept) < len(requests):
        logger.warning(
            "%d requests are left out: another one asks the same with another target",
            len(requests) - len(kept),
        )
    return kept


def due(slots: Sequence[Sequence[EditRequest]], slot: int, ledger: Ledger) -> list[EditRequest]:
    """The requests that a node edits in a slot: the slot's own, after those that were missed.

    Args:
        slots: the node's requests per slot.
        slot: the time slot.
        ledger: the node's ledger.
    """
    now = slots[slot - 1]
    return [*missed(before(slots, slot), now, ledger), *now]


def before(slots: Sequence[Sequence[EditRequest]], slot: int) -> list[EditRequest]:
    """The requests of all slots before one, in their order."""
    return [request for requests in slots[: slot - 1] for request in requests]


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
