"""What a node does with the MKVs of others that it is served."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedit_app.config import RunConfig
from fedit_app.data.jsonl import read_requests
from fedit_app.editing.entries import LedgerEntry
from fedit_app.editing.ledger import Ledger
from fedit_app.editing.requests import EditRequest
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.metrics import aggregate
from fedit_app.evaluation.scores import RequestScore, score_requests
from fedit_app.federation.policy import (
    OVER_LIMIT,
    UNTRUSTED,
    accepted_from_others,
    check_probes,
    sift_origins,
    sift_surplus,
)
from fedit_app.federation.reconcile import Conflict, settle
from fedit_app.federation.reuse import saying_own_targets
from fedit_app.federation.site import Policy
from fedit_app.mkv import MKV, SameFact, same_fact

logger = logging.getLogger(__name__)

SHAPE = "shape"
ROLLED_BACK = "rolled back"
PROBES = "probes"


@dataclass(frozen=True)
class ReeditOutcome:
    """What a node did with the MKVs that it was served.

    Attributes:
        received_from: origin node -> accepted MKVs.
        rejections: reason -> rejected MKVs: known (the ledger had it), duplicate (the same fact as
            another one), conflict (another one about the same subject holds), shape; and what the
            node's policy says: untrusted node, site limit, or probes (the whole re-edit was rolled
            back); rolled back (this very MKV was, by hand).
        conflicts: of a served MKV with one of the ledger, and which of the two holds.
    """

    received_from: dict[str, int]
    rejections: dict[str, int]
    conflicts: list[Conflict]


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
        probes = self._probe_scores(ledger)
        ids = {mkv.id for mkv in offered}
        try:
            with ledger.step("re-edit", slot):
                refused, agreed = self._take(offered, ledger, slot)
                ledger.count_votes(votes)
                changed = [*sorted(ids), *votes]
                policy = self._config.conflict_policy
                conflicts = settle(ledger, changed, policy, self._same, agreed)
                after = self._probe_scores(ledger)
                ledger.note_probes(aggregate(probes), aggregate(after))
                self._require_budget(probes, after, slot)
        except _ProbesSpoilt:
            return ReeditOutcome({}, {PROBES: len(offered)}, [])
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
        )

    def _take(
        self, offered: Sequence[MKV], ledger: Ledger, slot: int
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Put served MKVs into the ledger, as far as they fit and the node's policy takes them.

        Returns:
            Id -> reason, of those that stay out; id -> id of an own one that wants the same.
        """
        bench = self._bench
        shapes = (len(bench.settings.layers), bench.model.d_ff, bench.model.d_model)
        fitting = [mkv for mkv in offered if (*mkv.keys.shape, mkv.shifts.shape[1]) == shapes]
        trusted = sift_origins(fitting, self._policy.trusted_nodes)
        unwanted = {mkv.id for mkv in trusted if mkv.id in ledger.refused}
        trusted = [mkv for mkv in trusted if mkv.id not in unwanted]
        new = [mkv for mkv in trusted if mkv.id not in ledger.entries]
        taken = accepted_from_others(ledger.entries.values(), slot, self._name)
        kept = {m.id for m in sift_surplus(new, self._policy.most_accepted_per_slot, taken)}
        refused = {mkv.id: SHAPE for mkv in offered}
        refused |= {mkv.id: UNTRUSTED for mkv in fitting}
        refused |= {mkv.id: OVER_LIMIT for mkv in trusted}
        refused |= dict.fromkeys(unwanted, ROLLED_BACK)
        rest = [mkv for mkv in trusted if mkv.id in kept or mkv.id in ledger.entries]
        agreed = saying_own_targets(bench, self._requests, rest, ledger, self._same)
        ledger.accept(rest, slot)
        for mkv in rest:
            del refused[mkv.id]
            own = agreed.get(mkv.id)
            if own and same_fact(mkv, ledger.entries[own].mkv, self._same):
                ledger.hand_over(own, mkv.id)
        return refused, agreed

    def _probe_scores(self, ledger: Ledger) -> list[RequestScore]:
        """What the model edited by a ledger makes of the node's probes; none without probes."""
        if not self._policy.probes:
            return []
        with self._bench.edited(ledger) as model:
            return score_requests(model, read_requests(Path(self._policy.probes)))

    def _require_budget(
        self, before: Sequence[RequestScore], after: Sequence[RequestScore], slot: int
    ) -> None:
        check = check_probes(before, after, self._policy.probe_budget)
        if check.roll_back:
            logger.warning(
                "node %s, slot %d: the re-edit is rolled back: it spoils %d of %d probes, a loss "
                "of %.3f, the budget is %.3f",
                self._name,
                slot,
                check.spoilt,
                check.count,
                check.loss,
                self._policy.probe_budget,
            )
            raise _ProbesSpoilt


def _verdict(entry: LedgerEntry, slot: int, gave_way: Collection[str]) -> str:
    """Why an MKV of the ledger is not in use, or was not accepted in this slot; "" if it is."""
    if entry.slot < slot:
        return "known"
    if entry.overruled_by:
        return "conflict" if entry.mkv.id in gave_way else "duplicate"
    return ""


class _ProbesSpoilt(Exception):
    """A re-edit costs more than the node's policy allows."""
