"""What a node does with the MKVs of others that it is served."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedit_app.config.policy import Policy
from fedit_app.config.run_config import RunConfig
from fedit_app.editing.screening import Fault
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
    OVER_LIMIT,
    UNTRUSTED,
    accepted_from_others,
    check_probes,
    sift_origins,
    sift_spoilers,
    sift_surplus,
)
from fedit_app.node.quarantine import quarantine
from fedit_app.node.reuse import saying_own_targets

logger = logging.getLogger(__name__)

ROLLED_BACK = "rolled back"
PROBES = "probes"


def screened(
    bench: Workbench, policy: Policy, ledger: Ledger, offered: Sequence[MKV]
) -> tuple[list[MKV], dict[str, Fault]]:
    """Look at MKVs of others before anything is done with them.

    Args:
        bench: the model and its tools.
        policy: the node's own.
        ledger: the node's; what it holds is let through, what fails is listed in its folder.
        offered: MKVs of the workbench's fingerprint.

    Returns:
        Those that pass, in their order; id -> why it does not, of the others.
    """
    new = [mkv for mkv in offered if mkv.id not in ledger.entries]
    faults = bench.screen.faults(new, policy.screening) if new else {}
    quarantine(ledger.folder, new, faults)
    return [mkv for mkv in offered if mkv.id not in faults], faults


@dataclass(frozen=True)
class ReeditOutcome:
    """What a node did with the MKVs that it was served.

    Attributes:
        received_from: origin node -> accepted MKVs.
        rejections: reason -> rejected MKVs: known (the ledger had it), duplicate (the same fact as
            another one), conflict (another one about the same subject holds), rolled back (this
            very MKV was, by hand); what the screening found (`editing.screening`: shape, key
            norm, ...); and what the node's policy says: untrusted node, site limit, or probes (it
            would spoil too many).
        conflicts: of a served MKV with one of the ledger, and which of the two holds.
        quarantined: how many failed the screening.
    """

    received_from: dict[str, int]
    rejections: dict[str, int]
    conflicts: list[Conflict]
    quarantined: int = 0


class Receiver:
    """A node's re-edit stage.

    Args:
        name: the node's name.
        bench: the model and its tools.
        config: the run configuration.
        policy: the node's own.
        requests: the node's own, of all slots.
    """

    def __init__(
        self,
        name: str,
        bench: Workbench,
        config: RunConfig,
        policy: Policy,
        requests: Sequence[EditRequest],
    ) -> None:
        self._name, self._bench, self._config = name, bench, config
        self._policy, self._requests = policy, requests
        self._same = SameFact(same_key=config.same_key_threshold)

    def receive(
        self, ledger: Ledger, slot: int, offered: Sequence[MKV], votes: Mapping[str, int]
    ) -> ReeditOutcome:
        """Accept MKVs of others, and settle which of those about one subject hold.

        Of the same fact a node keeps one MKV: the one that the pool serves to everybody, if it
        says the targets of the node's own requests.

        Args:
            ledger: the node's, as it is on the disk.
            slot: the time slot.
            offered: MKVs, the most similar first.
            votes: id -> how many organisations want it.
        """
        before = {id_: entry.overruled_by for id_, entry in ledger.entries.items()}
        ids = {mkv.id for mkv in offered}
        probes = self._probe_scores(ledger)
        candidates, refused, quarantined = self._sift(offered, ledger, slot)
        agreed = saying_own_targets(self._bench, self._requests, candidates, ledger, self._same)

        def take(mkvs: Sequence[MKV], into: Ledger) -> list[Conflict]:
            return self._take(mkvs, into, slot, votes, agreed)

        taken = self._harmless(candidates, ledger, slot, take, probes)
        refused |= {mkv.id: PROBES for mkv in candidates if mkv not in (taken or ())}
        if taken is None:
            return ReeditOutcome({}, dict(Counter(refused.values())), [], quarantined)
        with ledger.step("re-edit", slot):
            conflicts = take(taken, ledger)
            measured = aggregate(probes), aggregate(self._probe_scores(ledger))
            ledger.note_probes(*(metrics and metrics.model_dump() for metrics in measured))
        gave_way = {conflict.gave_way for conflict in conflicts}
        verdicts = [
            (mkv, refused.get(mkv.id) or _verdict(ledger.entries[mkv.id], slot, gave_way))
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
            conflicts=[
                c
                for c in conflicts
                if {c.held, c.gave_way} & ids or before.get(c.gave_way) != c.held
            ],
            quarantined=quarantined,
        )

    def _sift(
        self, offered: Sequence[MKV], ledger: Ledger, slot: int
    ) -> tuple[list[MKV], dict[str, str], int]:
        """What may enter the ledger, as far as the MKVs alone tell.

        Returns:
            Candidates, with those that the ledger has already; id -> reason, of those that stay
            out; how many of these failed the screening.
        """
        trusted = sift_origins(offered, self._policy.trusted_nodes)
        unwanted = {mkv.id for mkv in trusted if mkv.id in ledger.refused}
        wanted = [mkv for mkv in trusted if mkv.id not in unwanted]
        sound, faults = screened(self._bench, self._policy, ledger, wanted)
        new = [mkv for mkv in sound if mkv.id not in ledger.entries]
        taken = accepted_from_others(ledger.entries.values(), slot, self._name)
        kept = {m.id for m in sift_surplus(new, self._policy.most_accepted_per_slot, taken)}
        candidates = [mkv for mkv in sound if mkv.id in kept or mkv.id in ledger.entries]
        refused = {mkv.id: UNTRUSTED for mkv in offered}
        refused |= {mkv.id: OVER_LIMIT for mkv in trusted}
        refused |= dict.fromkeys(unwanted, ROLLED_BACK)
        refused |= {id_: fault.reason for id_, fault in faults.items()}
        stay_out = refused.keys() - {mkv.id for mkv in candidates}
        return candidates, {id_: refused[id_] for id_ in stay_out}, len(faults)

    def _take(
        self,
        mkvs: Sequence[MKV],
        ledger: Ledger,
        slot: int,
        votes: Mapping[str, int],
        agreed: Mapping[str, str],
    ) -> list[Conflict]:
        """Put MKVs into a ledger and settle which of those about one subject hold."""
        ledger.accept(mkvs, slot)
        for mkv in mkvs:
            own = agreed.get(mkv.id)
            if own and same_fact(mkv, ledger.entries[own].mkv, self._same):
                ledger.hand_over(own, mkv.id)
        ledger.count_votes(votes)
        changed = [*sorted(mkv.id for mkv in mkvs), *votes]
        said = {mkv.id: agreed[mkv.id] for mkv in mkvs if mkv.id in agreed}
        return settle(ledger, changed, self._config.conflict_policy, self._same, said)

    def _harmless(
        self,
        candidates: Sequence[MKV],
        ledger: Ledger,
        slot: int,
        take: Callable[[Sequence[MKV], Ledger], object],
        before: Sequence[RequestScore],
    ) -> list[MKV] | None:
        """The candidates that the node's probes stand; all of them if it has no probes.

        Returns:
            None if not even the votes can be taken without spoiling too much.
        """
        if not self._policy.probes:
            return list(candidates)

        def harmless(mkvs: Sequence[MKV]) -> bool:
            trial = ledger.without(())
            take(mkvs, trial)
            after = self._probe_scores(trial)
            return not check_probes(before, after, self._policy.probe_budget).exceeds

        known = [mkv for mkv in candidates if mkv.id in ledger.entries]
        new = [mkv for mkv in candidates if mkv.id not in ledger.entries]
        kept = sift_spoilers(new, lambda mkvs: harmless([*known, *mkvs]))
        if len(kept) < len(new):
            logger.warning(
                "node %s, slot %d: %d of %d new MKVs are left out, they would spoil more than "
                "%.3f of the probes",
                self._name,
                slot,
                len(new) - len(kept),
                len(new),
                self._policy.probe_budget,
            )
        if not kept and not harmless(known):
            return None
        return [*known, *kept]

    def _probe_scores(self, ledger: Ledger) -> list[RequestScore]:
        """What the model edited by a ledger makes of the node's probes; none without probes."""
        if not self._policy.probes:
            return []
        with self._bench.edited(ledger) as model:
            return score_requests(model, read_requests(Path(self._policy.probes)))


def _verdict(entry: LedgerEntry, slot: int, gave_way: Collection[str]) -> str:
    """Why an MKV of the ledger is not in use, or was not accepted in this slot; "" if it is."""
    if entry.slot < slot:
        return "known"
    if entry.overruled_by:
        return "conflict" if entry.mkv.id in gave_way else "duplicate"
    return ""
