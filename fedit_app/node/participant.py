"""A node's part of the protocol, without Flower: what it does when it is asked.

Between two messages nothing is kept but the ledger on the node's own disk; a model that this
process has loaded before is used again.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from fedit_app.config.folders import ledger_folder, run_folder
from fedit_app.config.policy import site_policy
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.editing.value_store import ValueStore
from fedit_app.editing.workbench import Workbench, workbench_for
from fedit_app.evaluation.generation import written_metrics
from fedit_app.evaluation.memory import ScoreMemory
from fedit_app.evaluation.metrics import aggregate
from fedit_app.evaluation.neutral import neutral_scores, own_text
from fedit_app.facts.federation_facts import facts_for, facts_received
from fedit_app.facts.partition import NodeData, is_simulated, own_data, simulated_nodes
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.conflicts import Conflict, settle
from fedit_app.ledger.ledger import Ledger, fulfilled_requests
from fedit_app.ledger.origin import write_origin
from fedit_app.ledger.undo import take_withdrawn
from fedit_app.mkv import MKV
from fedit_app.mkv.same_key import SameFact
from fedit_app.node.acceptance import sift_origins
from fedit_app.node.envelope import Envelope, SealedEnvelope, federation_key
from fedit_app.node.identity import identity_of
from fedit_app.node.receiving import Receiver, ReeditOutcome, screened
from fedit_app.node.reuse import Found, fact, missed, open_requests, release_outdated, repeat, reuse
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

CENTRAL = "central"


@dataclass(frozen=True)
class EditOutcome:
    """What a node did in an edit stage.

    Attributes:
        new: MKVs that it computed in this slot.
        reused: ids of MKVs that were there before and fulfil requests of this slot.
        requests: how many requests the slot has.
        conflicts: MKVs about an own subject with another target, and which of the two holds.
        again: own MKVs of earlier slots that the pool has not.
        quarantined: how many candidates failed the screening.
        cached: of how many new MKVs the value v* came from the work-cache.
        warm_started: how many of the new ones were optimised from another MKV's value.
    """

    new: list[MKV]
    reused: list[str]
    again: list[MKV]
    requests: int
    conflicts: list[Conflict]
    quarantined: int = 0
    cached: int = 0
    warm_started: int = 0


@dataclass(frozen=True)
class _Work:
    """How many values v* were computed, how many of them not from zero, and how many looked up."""

    optimised: int
    warm_started: int
    cached: int


class Participant:
    """One node in one run.

    Args:
        config: the run configuration.
        node_config: Flower's node configuration.
        run_id: Flower's run id.
    """

    def __init__(
        self, config: RunConfig, node_config: Mapping[str, ConfigValue], run_id: int
    ) -> None:
        self.config, self._run_id = config, run_id
        self.policy = site_policy(node_config)
        folder = run_folder(config, run_id)
        self._data = own_data(config, node_config, folder)
        self.name = self._data.name
        self._key = federation_key(config, node_config, run_id, self.policy)
        self._identity = identity_of(self.name, node_config, self.policy)
        self._peers: list[NodeData] = []
        if is_simulated(node_config):
            self._peers = simulated_nodes(config, int(node_config["num-partitions"]), folder)

    @functools.cached_property
    def slots(self) -> list[list[EditRequest]]:
        """The node's own requests per slot."""
        return self._data.slots(self.config)

    @property
    def workbench(self) -> Workbench:
        """The model and its tools, loaded once per process."""
        return workbench_for(self.config)

    @functools.cached_property
    def envelope(self) -> Envelope:
        """What turns this node's MKVs into what the server gets, and back."""
        bench = self.workbench
        if self._key is None:
            return Envelope(bench, self._identity)
        return SealedEnvelope(bench, self._identity, self._key, self.config.sketch_width)

    def everybody(self) -> dict[str, list[list[EditRequest]]]:
        """Every node's requests per slot; in a simulation only, elsewhere just the node's own.

        A node whose file is faulty has reported that itself and is left out here.
        """
        found = {self.name: self.slots}
        for peer in self._peers:
            try:
                found[peer.name] = peer.slots(self.config)
            except FedEditError:
                logger.warning("node %s: the data of %s cannot be read", self.name, peer.name)
        return dict(sorted(found.items()))

    def ledger(self, owner: str = "") -> Ledger:
        """The node's ledger, or that of another owner (`CENTRAL`) in a simulation."""
        folder = ledger_folder(self.config, self._run_id, owner or self.name)
        return Ledger.open(folder, self.workbench.fingerprint)

    def _used_ledger(self, owner: str = "") -> Ledger:
        """The same, with a note of what it is used with."""
        ledger = self.ledger(owner)
        write_origin(ledger.folder, owner or self.name, bool(self._peers), self.config)
        return ledger

    def lookup_keys(self, slot: int) -> np.ndarray:
        """(n, d_ff) float32 lookup keys of what is due in a slot; none behind the last slot.

        None either of a node that uploads nothing, or that adds noise to what it uploads: a key
        tells of its request, too.
        """
        shared = self.policy.upload and not self.config.mkv_noise
        shared = shared and slot <= self.config.num_slots
        requests = self._due(slot) if shared else []
        return self.workbench.lookup_keys(requests).float().numpy()

    def _due(self, slot: int) -> list[EditRequest]:
        """A slot's requests, behind those of earlier slots that the node has missed."""
        earlier = sum(self.slots[: slot - 1], [])
        return [*missed(earlier, self.slots[slot - 1], self.ledger()), *self.slots[slot - 1]]

    def hello(self, slot: int) -> dict[str, Any]:
        """Who this node is, what its MKVs are to be measured on, and what its ledger has.

        Args:
            slot: the slot with which the run begins or goes on; what the ledger got in it or
                later will be said again.
        """
        requests = [len(requests) for requests in self.slots]
        left_out = len(self._data.read()) - sum(requests)
        if left_out:
            logger.warning(
                "node %s: %d requests lie behind slot %d and are left out",
                self.name,
                left_out,
                self.config.num_slots,
            )
        bench = self.workbench
        ledger = self.ledger()
        entries, refused = ledger.entries, ledger.refused
        held = {id_: entry for id_, entry in sorted(entries.items()) if entry.slot < slot}
        if not self.policy.upload:
            held = {id_: e for id_, e in held.items() if e.mkv.node != self.name}
        return {
            "node": self.name,
            "simulated": bool(self._peers),
            "requests": requests,
            "components": self.envelope.components,
            "layers": list(bench.settings.layers),
            "d_model": bench.model.d_model,
            "d_ff": bench.model.d_ff,
            "wants": [id_ for id_, entry in held.items() if entry.requests],
            "holds": [id_ for id_, entry in held.items() if not entry.requests] + sorted(refused),
            "withdrawn": sorted(id_ for id_, refusal in refused.items() if refusal.withdrawn),
        }

    @property
    def _same(self) -> SameFact:
        return SameFact(same_key=self.config.same_key_threshold)

    def edit(
        self,
        slot: int,
        candidates: Sequence[MKV],
        central: bool = False,
        missing: Collection[str] = (),
        withdrawn: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> EditOutcome:
        """Fulfil the requests of a slot: reuse MKVs where they do, compute the rest.

        What the node has missed of earlier slots is done as well. A request that the ledger
        fulfils already is not computed again, so a repeated message gets the same answer.

        Args:
            slot: the time slot.
            candidates: MKVs with similar lookup keys.
            central: edit everybody's requests into one ledger.
            missing: ids of own MKVs that the pool has not, to be uploaded again.
            withdrawn: id -> nodes that have withdrawn it, see `take_withdrawn`.
        """
        owner = CENTRAL if central else self.name
        slots = self._everybodys_slots() if central else self.slots
        bench, ledger = self.workbench, self._used_ledger(owner)
        take_withdrawn(ledger, owner, withdrawn, slot, self.config)
        earlier = sum(slots[: slot - 1], [])
        late = missed(earlier, slots[slot - 1], ledger)
        if late:
            logger.info("node %s, slot %d: %d requests of earlier slots", owner, slot, len(late))
        requests = [*late, *slots[slot - 1]]
        trusted = sift_origins(candidates, self.policy.trusted_nodes)
        wanted = [mkv for mkv in trusted if mkv.id not in ledger.refused]
        candidates, faults = screened(bench, self.policy, ledger, wanted)
        # Its own MKVs, too, come back from the pool to a node that has lost its ledger.
        from_pool = {mkv.id for mkv in candidates} - ledger.entries.keys()
        started = time.perf_counter()
        with ledger.step("edit", slot):
            repeat(requests, earlier, ledger, slot)
            todo = open_requests(requests, ledger)
            least = self.config.reuse_threshold
            rivals = self.config.accept_quorum == 1
            found = reuse(bench, todo, candidates, ledger, slot, least, self._same, rivals)
            work = self._optimise(ledger, open_requests(requests, ledger), found, owner, slot)
            if not central:  # there, others' requests are no corrections of one's own
                release_outdated(requests, earlier, ledger)
            fulfilled = ledger.fulfilled()
            done = [request.id for request in requests if request.id in fulfilled]
            used = list(dict.fromkeys(fulfilled[id_] for id_ in done))
            conflicts = settle(ledger, used, self.config.conflict_policy, self._same)
        before = {mkv.id for mkv in candidates}
        before |= {id_ for id_, entry in ledger.entries.items() if entry.slot < slot}
        entries = [entry for id_, entry in sorted(ledger.entries.items()) if id_ not in from_pool]
        new = [entry for entry in entries if (entry.mkv.node, entry.mkv.slot) == (owner, slot)]
        # What an MKV of this slot was exchanged for was not there before.
        settled_here = {e.mkv.id for e in new} | {e.overruled_by for e in new}
        reused = [id_ for id_ in used if id_ not in settled_here]
        missing = missing if self.policy.upload else ()
        again = [ledger.entries[id_].mkv for id_ in missing if id_ in ledger.entries]
        logger.info(
            "node %s, slot %d: %d requests, %d optimised in %.1f s (%d not from zero, %d found in "
            "the work-cache), %d reused",
            owner,
            slot,
            len(requests),
            work.optimised,
            time.perf_counter() - started,
            work.warm_started,
            work.cached,
            len(reused),
        )
        return EditOutcome(
            new=[entry.mkv for entry in new],
            reused=reused,
            again=[mkv for mkv in again if mkv.node == owner and mkv.id not in settled_here],
            requests=len(requests),
            conflicts=[c for c in conflicts if before & {c.held, c.gave_way}],
            quarantined=len(faults),
            cached=work.cached,
            warm_started=sum(entry.warm_started for entry in new),
        )

    def _optimise(
        self, ledger: Ledger, requests: Sequence[EditRequest], found: Found, owner: str, slot: int
    ) -> _Work:
        """Compute an MKV for every fact that nothing fulfils, and accept it; see `edit`."""
        groups: dict[tuple[str, str, str], list[EditRequest]] = {}
        for request in requests:
            groups.setdefault(fact(request), []).append(request)
        first = [group[0] for group in groups.values()]
        starts = [found.starts.get(request.id) for request in first]
        rest, store = ledger.without(found.rivals), self._value_store()
        computed = self.workbench.compute(first, rest, owner, slot, starts, store)
        asked = {
            mkv.id: [request.id for request in group]
            for mkv, group in zip(computed, groups.values(), strict=True)
        }
        # A request under another id for a fact that was withdrawn wants it again.
        ledger.allow([mkv.id for mkv in computed if mkv.id in ledger.refused])
        ledger.accept(computed, slot, asked)
        begun = [mkv.id for mkv, start in zip(computed, starts, strict=True) if start is not None]
        ledger.note_warm_starts(begun)
        return _Work(len(computed), len(begun), store.found if store else 0)

    def _everybodys_slots(self) -> list[list[EditRequest]]:
        """Per slot the requests of all nodes, their ids with the node's name before them."""
        named = [
            [
                [dataclasses.replace(request, id=f"{name}/{request.id}") for request in requests]
                for requests in slots
            ]
            for name, slots in self.everybody().items()
        ]
        return [sum(requests, []) for requests in zip(*named, strict=True)]

    def reedit(
        self, slot: int, offered: Sequence[MKV], votes: Mapping[str, int] | None = None
    ) -> ReeditOutcome:
        """Accept MKVs of others as far as the node's policy does; see `Receiver.receive`.

        Args:
            slot: the time slot.
            offered: MKVs, the most similar first.
            votes: id -> how many organisations want it.
        """
        own_requests = sum(self.slots, [])
        receiver = Receiver(self.name, self.workbench, self.config, self.policy, own_requests)
        return receiver.receive(self._used_ledger(), slot, offered, votes or {})

    def evaluate(
        self, slot: int, deltas: dict[int, torch.Tensor] | None = None, central: bool = False
    ) -> dict[str, dict[str, Any] | None]:
        """Metrics of own facts and, in a simulation, of those received and the federation's.

        Args:
            slot: facts of the slots up to this one count, with the node's edits; 0: all facts,
                with the unedited model.
            deltas: edit by these instead of a ledger: layer -> (d_model, d_ff).
            central: edit by the central ledger instead of the node's own.

        Returns:
            `own`, `received` and `federation`, see `aggregate`; `neutral`, see `neutral_scores`,
            after the last slot with metrics = full. None is what is not known here.
        """
        last = slot or self.config.num_slots
        facts = {
            name: [request for requests in slots[:last] for request in requests]
            for name, slots in self.everybody().items()
        }
        scopes = {"own": facts[self.name], "received": [], "federation": []}
        if self._peers:
            scopes["federation"] = facts_for(self.name, facts)
        bench = self.workbench
        if slot == 0:
            deltas = {}
        elif deltas is None:
            ledger = self.ledger(CENTRAL if central else "")
            deltas = bench.deltas(ledger) if len(ledger) else {}
            if self._peers and not central:
                scopes["received"] = self._received(facts, ledger)
        full = self.config.metrics == "full" and slot in (0, self.config.num_slots)
        with bench.model.edited(deltas):
            everything = [request for requests in scopes.values() for request in requests]
            scores = _memory.score(bench.model, everything, self._work_cache("scores"))
            written = written_metrics(bench.model, scopes) if full else {}
        measured = {
            scope: aggregate([scores[request] for request in requests], written.get(scope))
            for scope, requests in scopes.items()
        }
        found = {scope: metrics and metrics.model_dump() for scope, metrics in measured.items()}
        neutral = None
        if full and slot:
            neutral = neutral_scores(bench.model, deltas, own_text(bench.model)).model_dump()
        return {**found, "neutral": neutral}

    def _received(
        self, facts: Mapping[str, Sequence[EditRequest]], ledger: Ledger
    ) -> list[EditRequest]:
        """Facts of others that the node has from them; in a simulation their ledgers say which."""
        fulfilled = {
            name: fulfilled_requests(ledger_folder(self.config, self._run_id, name))
            for name in facts
        }
        return facts_received(self.name, facts, fulfilled, {mkv.id for mkv in ledger.holding})

    def train(
        self, slot: int, deltas: dict[int, torch.Tensor]
    ) -> tuple[dict[int, torch.Tensor], int, int]:
        """Edit the global model of a stock strategy with the requests of a slot.

        Args:
            slot: the time slot, Flower's server round.
            deltas: global change of the weights, layer -> (d_model, d_ff).

        Returns:
            The change with the node's own edits added, the number of requests, and of how many the
            value v* came from the work-cache.

        Raises:
            FedEditError: the run is to be sealed.
        """
        if self._key is not None:
            raise FedEditError(
                f"strategy {self.config.strategy}: sends the change of the weights to the server, "
                "which cannot be sealed; choose sealed = off"
            )
        bench, requests = self.workbench, self.slots[slot - 1]
        local, store = Ledger(bench.fingerprint), self._value_store()
        with bench.model.edited(deltas):
            computed = bench.compute(requests, local, self.name, slot, store=store)
        local.accept(computed, slot)
        change = bench.deltas(local)
        changed = {layer: deltas[layer] + change[layer].cpu() for layer in deltas}
        return changed, len(requests), store.found if store else 0

    def _value_store(self) -> ValueStore | None:
        folder = self._work_cache("values")
        return None if folder is None else ValueStore(folder)

    def _work_cache(self, part: str) -> Path | None:
        """A folder of the work-cache; None without one."""
        root = self.config.work_cache
        return Path(root).expanduser() / part if root else None


_memory = ScoreMemory()
