"""Edit stage: what a node does to fulfil its own requests of a slot."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedit_app.config.policy import Policy
from fedit_app.config.run_config import RunConfig
from fedit_app.editing.value_store import ValueStore
from fedit_app.editing.workbench import Workbench
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.conflicts import Conflict, settle
from fedit_app.ledger.learning import learn, repeat
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.upkeep import is_renewed, uphold
from fedit_app.mkv import MKV
from fedit_app.mkv.same_key import SameFact
from fedit_app.node.adoption import adopt
from fedit_app.node.arrivals import admit
from fedit_app.node.requests import (
    before,
    due,
    open_requests,
    release_outdated,
    without_contradictions,
)
from fedit_app.node.reuse import ReuseRule, reuse

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EditOutcome:
    """What a node did in an edit stage.

    Attributes:
        new: MKVs that it computed in this slot.
        reused: ids of MKVs that were there before and fulfil requests of this slot.
        again: own MKVs of earlier slots that the pool lacks.
        requests: how many requests the slot has.
        conflicts: MKVs about an own subject with another target, and which of the two holds.
        quarantined: how many candidates failed the screening.
        cached: of how many new MKVs the value v* came from the work-cache, or from an edited model.
        warm_started: how many of the new ones were optimised from another MKV's value.
        supersedes: id of a new one -> ids of own ones in whose place it holds.
        renewed: how many of the new ones were written anew for facts of before.
    """

    new: list[MKV]
    reused: list[str]
    again: list[MKV]
    requests: int
    conflicts: list[Conflict]
    quarantined: int = 0
    cached: int = 0
    warm_started: int = 0
    supersedes: dict[str, list[str]] = field(default_factory=dict)
    renewed: int = 0


class EditStage:
    """The edit stage of one ledger.

    Args:
        owner: whose ledger it is: the node's, or everybody's.
        bench: the model and its tools.
        config: the run configuration.
        policy: the node's own.
        slots: the owner's requests per slot.
        corrects: whether a later request with another target is a correction of an earlier one,
            as it is among requests of one node.
        store: where values are looked up and kept; None without a work-cache.
        edited: folder of an edited model whose MKVs are used as they are; None without one.
    """

    def __init__(
        self,
        owner: str,
        bench: Workbench,
        config: RunConfig,
        policy: Policy,
        slots: Sequence[Sequence[EditRequest]],
        corrects: bool = True,
        store: ValueStore | None = None,
        edited: Path | None = None,
    ) -> None:
        self._owner, self._bench, self._config, self._policy = owner, bench, config, policy
        self._slots, self._corrects, self._store = slots, corrects, store
        self._edited = edited

    def run(
        self, ledger: Ledger, slot: int, candidates: Sequence[MKV], missing: Collection[str]
    ) -> EditOutcome:
        """Fulfil the requests of a slot: reuse MKVs where they do, compute the rest.

        Requests that were missed in earlier slots are done as well. A request that the ledger
        fulfils already is not computed again, so a repeated message gets the same answer.

        Args:
            ledger: the owner's, as it is on the disk.
            slot: the time slot.
            candidates: MKVs with similar lookup keys.
            missing: ids of own MKVs that the pool lacks.
        """
        started = time.perf_counter()
        earlier, requests = (
            before(self._slots, slot),
            due(self._slots, slot, ledger, self._corrects),
        )
        late = len(requests) - len(self._slots[slot - 1])
        if late:
            logger.info("node %s, slot %d: %d requests of earlier slots", self._owner, slot, late)
        arrivals = admit(candidates, self._bench, self._policy, ledger)
        known = {mkv.id for mkv in arrivals.candidates}
        done_before = any(self._is_of(entry.mkv, slot) for entry in ledger.entries.values())
        # The pool also returns the node's own MKVs to a node that has lost its ledger.
        from_pool = known - ledger.entries.keys()
        with ledger.step("edit", slot):
            repeat(requests, earlier, ledger, slot)
            adopted: list[MKV] = []
            if self._edited is not None:
                open_ = open_requests(requests, ledger)
                same_key = self._bench.same_key
                adopted = adopt(self._edited, ledger, open_, same_key, self._owner, slot)
            unfulfilled = open_requests(requests, ledger)
            rule = ReuseRule.of(self._config)
            found = reuse(self._bench, unfulfilled, arrivals.candidates, ledger, slot, rule)
            own = [*earlier, *requests]
            left = open_requests(requests, ledger)
            wanted = without_contradictions(left, own, self._corrects)
            if len(wanted) < len(left):
                logger.warning(
                    "node %s, slot %d: %d requests are left out: another one asks the same with "
                    "another target",
                    self._owner,
                    slot,
                    len(left) - len(wanted),
                )
            computed = learn(
                self._bench,
                ledger,
                wanted,
                own,
                self._owner,
                slot,
                found.starts,
                found.rivals,
                self._store,
            )
            begun = sum(ledger.entries[mkv.id].warm_started for mkv in computed)
            if self._corrects:
                release_outdated(requests, earlier, ledger)
            renewed: list[MKV] = []
            if self._config.upkeep and not done_before:
                renewed = uphold(self._bench, ledger, own, self._owner, slot, len(requests))
            used = _fulfilling(requests, ledger)
            same = SameFact(same_key=self._config.same_key_threshold)
            settled = [*used, *(mkv.id for mkv in renewed)]
            conflicts = settle(ledger, settled, self._config.conflict_policy, same)
        known |= {id_ for id_, entry in ledger.entries.items() if entry.slot < slot}
        new = [
            entry
            for id_, entry in sorted(ledger.entries.items())
            if id_ not in from_pool and self._is_of(entry.mkv, slot)
        ]
        # What overrules an MKV of this slot has come after it.
        settled_here = {e.mkv.id for e in new} | {e.overruled_by for e in new}
        held = [ledger.entries[id_].mkv for id_ in missing if id_ in ledger.entries]
        outcome = EditOutcome(
            new=[entry.mkv for entry in new],
            reused=[id_ for id_ in used if id_ not in settled_here],
            again=[m for m in held if m.node == self._owner and m.id not in settled_here],
            requests=len(requests),
            conflicts=[c for c in conflicts if known & {c.held, c.gave_way}],
            quarantined=arrivals.quarantined,
            cached=len(adopted) + (self._store.found if self._store else 0),
            warm_started=sum(entry.warm_started for entry in new),
            supersedes=_superseded_here(ledger, [entry.mkv.id for entry in new], self._owner),
            renewed=sum(is_renewed(ledger, entry.mkv.id) for entry in new),
        )
        logger.info(
            "node %s, slot %d: %d requests, %d optimised in %.1f s (%d not from zero, %d known "
            "before), %d reused",
            self._owner,
            slot,
            outcome.requests,
            len(computed),
            time.perf_counter() - started,
            begun,
            outcome.cached,
            len(outcome.reused),
        )
        return outcome

    def _is_of(self, mkv: MKV, slot: int) -> bool:
        """Whether the owner has made an MKV in a slot."""
        return (mkv.node, mkv.slot) == (self._owner, slot)


def _superseded_here(ledger: Ledger, ids: Sequence[str], owner: str) -> dict[str, list[str]]:
    """Id -> the owner's own MKVs in whose place it holds, of those that supersede any."""
    entries = ledger.entries
    found = {
        id_: [old for old in entries[id_].supersedes if _author(ledger, old) == owner]
        for id_ in ids
    }
    return {id_: old for id_, old in found.items() if old}


def _author(ledger: Ledger, id_: str) -> str:
    return ledger.entries[id_].mkv.node if id_ in ledger.entries else ""


def _fulfilling(requests: Sequence[EditRequest], ledger: Ledger) -> list[str]:
    """Ids of the MKVs that fulfil requests, each once, in the order of the requests."""
    fulfilled = ledger.fulfilled()
    return list(dict.fromkeys(fulfilled[r.id] for r in requests if r.id in fulfilled))
