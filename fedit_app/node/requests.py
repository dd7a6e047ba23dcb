"""A node's own requests and what its ledger says of them: fulfilled, open, missed, outdated."""

from __future__ import annotations

from collections.abc import Sequence

from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger


def open_requests(requests: Sequence[EditRequest], ledger: Ledger) -> list[EditRequest]:
    """The requests that no MKV of the ledger fulfils yet, without those that were set aside."""
    done = ledger.fulfilled().keys() | ledger.set_aside
    return [request for request in requests if request.id not in done]


def without_contradictions(
    requests: Sequence[EditRequest], known: Sequence[EditRequest], corrects: bool
) -> list[EditRequest]:
    """The requests without those that ask the same as another one with another target.

    Args:
        requests: some of the known ones.
        known: all of the owner's, in their order.
        corrects: whether a later one counts; else the first.
    """
    ordered = known if corrects else known[::-1]
    counts = {(r.subject, r.prompt): r.target_new for r in ordered}
    return [r for r in requests if counts[r.subject, r.prompt] == r.target_new]


def due(
    slots: Sequence[Sequence[EditRequest]], slot: int, ledger: Ledger, corrects: bool = True
) -> list[EditRequest]:
    """The requests that an owner edits in a slot: the slot's own, after those that were missed.

    Args:
        slots: the owner's requests per slot.
        slot: the time slot.
        ledger: the owner's ledger.
        corrects: see `without_contradictions`.
    """
    now, earlier = slots[slot - 1], before(slots, slot)
    missed = open_requests(earlier, ledger)
    return [*without_contradictions(missed, [*earlier, *now], corrects), *now]


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
