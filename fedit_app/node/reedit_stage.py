"""Re-edit stage: what a node does with the MKVs of others that it is served."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from fedit_app.config.policy import Policy
from fedit_app.config.run_config import RunConfig
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.metrics import RequestScore, aggregate
from fedit_app.evaluation.scores import score_requests
from fedit_app.facts.jsonl import read_requests
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.conflicts import Conflict, settle
from fedit_app.ledger.entries import LedgerEntry
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV
from fedit_app.mkv.same_key import SameFact, same_fact
from fedit_app.node.acceptance import (
    accepted_from_others,
    check_probes,
    own_measure,
    sift_gains,
    sift_spoilers,
    sift_surplus,
)
from fedit_app.node.arrivals import Arrivals, admit
from fedit_app.node.reuse import saying_own_targets

logger = logging.getLogger(__name__)

OVER_LIMIT = "site limit"
PROBES = "probes"
OWN_MEASURE = "own measure"
PERSONAL = "personal"
"""The selection policy by which the node chooses itself."""


@dataclass(frozen=True)
class ReeditOutcome:
    """What a node did with the MKVs that it was served.

    Attributes:
        received_from: origin node -> accepted MKVs.
        rejections: reason -> rejected MKVs: known (the ledger had it), duplicate (the same fact as
            another one), conflict (another one about the same subject holds), rolled back (this
            very MKV was, by hand); what the screening found (`editing.screening`: shape, key
            norm, ...); what the node's policy says: untrusted node, site limit, or probes (it
            would spoil too many); and own measure (it does not raise it, with `personal`).
        conflicts: of a served MKV with one of the ledger, and which of the two holds.
        quarantined: how many failed the screening.
        contested: conflicts, new or old, of an MKV that fulfils own requests with one of another
            node: their values can be composed.
        agreed: ids of served MKVs that say the targets of own requests with their key.
    """

    received_from: dict[str, int]
    rejections: dict[str, int]
    conflicts: list[Conflict]
    quarantined: int = 0
    contested: list[Conflict] = field(default_factory=list)
    agreed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Told:
    """What is known about the MKVs of a message besides their vectors.

    Attributes:
        slot: the time slot.
        votes: id -> how many organisations want it.
        agreed: id of a served MKV -> id of an own one that wants the same.
        supersedes: id of a served MKV -> ids of those in whose place it holds.
    """

    slot: int
    votes: Mapping[str, int]
    agreed: Mapping[str, str]
    supersedes: Mapping[str, Sequence[str]]


class ReeditStage:
    """A node's re-edit stage.

    Args:
        name: the node's name.
        bench: the model and its tools.
        config: the run configuration.
        policy: the node's own.
        requests: the node's own, of all slots.
        edited: those of the slots so far.
    """

    def __init__(
        self,
        name: str,
        bench: Workbench,
        config: RunConfig,
        policy: Policy,
        requests: Sequence[EditRequest],
        edited: Sequence[EditRequest] = (),
    ) -> None:
        self._name, self._bench, self._policy = name, bench, policy
        self._config, self._requests, self._edited = config, requests, edited
        self._same = SameFact(same_key=config.same_key_threshold)

    def run(
        self,
        ledger: Ledger,
        slot: int,
        offered: Sequence[MKV],
        votes: Mapping[str, int],
        supersedes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> ReeditOutcome:
        """Accept MKVs of others, and settle which of those about one subject hold.

        Of the same fact a node keeps one MKV: the one that the pool serves to everybody, if it
        says the targets of the node's own requests. What others compose for a key takes the place
        of the node's own MKV under the same condition.

        Args:
            ledger: the node's, as it is on the disk.
            slot: the time slot.
            offered: MKVs, the most similar first.
            votes: id -> how many organisations want it.
            supersedes: id of an offered MKV -> ids of those in whose place it holds.
        """
        before = {id_: entry.overruled_by for id_, entry in ledger.entries.items()}
        probes = self._probe_scores(ledger)
        arrivals = admit(offered, self._bench, self._policy, ledger)
        self._limit(arrivals, ledger, slot)
        told = _Told(slot, votes, self._agreed(arrivals, ledger), supersedes)
        if not self._leave_out_spoilers(arrivals, ledger, told, probes):
            rejections = dict(Counter(arrivals.rejected.values()))
            return ReeditOutcome({}, rejections, [], arrivals.quarantined)
        if self._config.selection == PERSONAL and self._edited:
            self._choose(arrivals, ledger, told)
        with ledger.step("re-edit", slot) as step:
            conflicts = self._take(arrivals.candidates, ledger, told)
            old, new = aggregate(probes), aggregate(self._probe_scores(ledger))
            if old is not None and new is not None:
                step.probes = {"before": old.model_dump(), "after": new.model_dump()}
        ids = {mkv.id for mkv in offered}
        news = [
            conflict
            for conflict in conflicts
            if {conflict.held, conflict.gave_way} & ids
            or before.get(conflict.gave_way) != conflict.held
        ]
        outcome = self._outcome(offered, arrivals, ledger, slot, conflicts, news)
        kept = {mkv.id for mkv in arrivals.candidates}
        return replace(outcome, agreed=sorted(told.agreed.keys() & kept))

    def _limit(self, arrivals: Arrivals, ledger: Ledger, slot: int) -> None:
        """Leave out what exceeds the number of MKVs that the node accepts per slot."""
        accepted = accepted_from_others(ledger.entries.values(), slot, self._name)
        new, most = arrivals.new_to(ledger), self._policy.most_accepted_per_slot
        kept = sift_surplus(new, most, accepted)
        arrivals.keep([*arrivals.held_by(ledger), *kept], OVER_LIMIT)

    def _agreed(self, arrivals: Arrivals, ledger: Ledger) -> dict[str, str]:
        """Candidates with the key of an own MKV that say the targets of its requests."""
        same_key = self._same.same_key
        return saying_own_targets(
            self._bench, self._requests, arrivals.candidates, ledger, same_key
        )

    def _leave_out_spoilers(
        self, arrivals: Arrivals, ledger: Ledger, told: _Told, before: Sequence[RequestScore]
    ) -> bool:
        """Leave out new MKVs that would spoil too many of the node's probes, if it has any.

        Returns:
            False if not even the votes can be taken without spoiling too many.
        """
        if not self._policy.probes:
            return True
        known, new = arrivals.held_by(ledger), arrivals.new_to(ledger)

        def harmless(mkvs: Sequence[MKV]) -> bool:
            trial = ledger.without(())
            self._take([*known, *mkvs], trial, told)
            after = self._probe_scores(trial)
            return not check_probes(before, after, self._policy.probe_budget).exceeds

        kept = sift_spoilers(new, harmless)
        if len(kept) < len(new):
            logger.warning(
                "node %s, slot %d: %d of %d new MKVs are left out, they would spoil more than "
                "%.3f of the probes",
                self._name,
                told.slot,
                len(new) - len(kept),
                len(new),
                self._policy.probe_budget,
            )
        fits = bool(kept) or harmless([])
        arrivals.keep([*known, *kept] if fits else [], PROBES)
        return fits

    def _choose(self, arrivals: Arrivals, ledger: Ledger, told: _Told) -> None:
        """Leave out new MKVs that do not raise the node's own measure."""
        known, new = arrivals.held_by(ledger), arrivals.new_to(ledger)

        def measure(mkvs: Sequence[MKV]) -> float:
            trial = ledger.without(())
            self._take([*known, *mkvs], trial, told)
            with self._bench.edited(trial) as model:
                return own_measure(score_requests(model, self._edited))

        arrivals.keep([*known, *sift_gains(new, measure)], OWN_MEASURE)

    def _probe_scores(self, ledger: Ledger) -> list[RequestScore]:
        """Scores of the node's probes on the model edited by a ledger; none without probes."""
        if not self._policy.probes:
            return []
        with self._bench.edited(ledger) as model:
            return score_requests(model, read_requests(Path(self._policy.probes)))

    def _take(self, mkvs: Sequence[MKV], ledger: Ledger, told: _Told) -> list[Conflict]:
        """Put MKVs into a ledger and settle which of those about one subject hold."""
        ledger.accept(mkvs, told.slot, supersedes=told.supersedes)
        agreed = {mkv.id: told.agreed[mkv.id] for mkv in mkvs if mkv.id in told.agreed}
        for id_, own in agreed.items():
            if ledger.entries[own].requests:
                ledger.hand_over(own, id_)
        ledger.count_votes(told.votes)
        changed = [*sorted(mkv.id for mkv in mkvs), *told.votes]
        return settle(ledger, changed, self._config.conflict_policy, self._same, agreed)

    def _outcome(
        self,
        offered: Sequence[MKV],
        arrivals: Arrivals,
        ledger: Ledger,
        slot: int,
        conflicts: Sequence[Conflict],
        news: list[Conflict],
    ) -> ReeditOutcome:
        gave_way = {conflict.gave_way for conflict in conflicts}
        contested = self._contested(ledger)
        verdicts = [
            (mkv, arrivals.rejected.get(mkv.id) or _verdict(ledger.entries[mkv.id], slot, gave_way))
            for mkv in offered
        ]
        accepted = [mkv for mkv, verdict in verdicts if not verdict]
        logger.info(
            "node %s, slot %d: accepted %d of %d MKVs, ledger holds %d",
            self._name,
            slot,
            len(accepted),
            len(offered),
            len(ledger),
        )
        return ReeditOutcome(
            received_from=dict(Counter(mkv.node for mkv in accepted)),
            rejections=dict(Counter(verdict for _, verdict in verdicts if verdict)),
            conflicts=[conflict for conflict in news if conflict not in contested],
            quarantined=arrivals.quarantined,
            contested=contested,
        )

    def _contested(self, ledger: Ledger) -> list[Conflict]:
        """Conflicts of own facts with those of others; none if their values are not composed."""
        if not self._config.compose_rounds or not self._policy.upload:
            return []
        entries = ledger.entries
        found = []
        for id_, entry in sorted(entries.items()):
            winner = entries.get(entry.overruled_by)
            if winner is None or bool(winner.requests) == bool(entry.requests):
                continue
            other = entry if winner.requests else winner
            superseded = id_ in winner.supersedes or same_fact(entry.mkv, winner.mkv, self._same)
            if other.mkv.node != self._name and not superseded:
                found.append(Conflict(held=winner.mkv.id, gave_way=id_))
        return found


def _verdict(entry: LedgerEntry, slot: int, gave_way: Collection[str]) -> str:
    """Why an MKV of the ledger is not in use, or was not accepted in this slot; "" if it is."""
    if entry.slot < slot:
        return "known"
    if entry.overruled_by:
        return "conflict" if entry.mkv.id in gave_way else "duplicate"
    return ""
