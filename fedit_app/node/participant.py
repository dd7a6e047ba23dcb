"""A node's part of the protocol, without Flower: one method per message.

Between two messages a node keeps its ledger on its own disk, and nothing else; a process that has
loaded the model before uses it again.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from fedit_app.config.folders import ledger_folder, run_folder, scores_file
from fedit_app.config.limits import site_limits
from fedit_app.config.node_config import is_simulated
from fedit_app.config.policy import site_policy
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.editing.value_store import ValueStore
from fedit_app.editing.workbench import Workbench, workbench_for
from fedit_app.evaluation.fit import that_fit, warn_of_long_targets
from fedit_app.facts.federation_facts import facts_for, facts_received, that_must_stay
from fedit_app.facts.partition import NodeData, own_data, simulated_nodes
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.index import fulfilled_requests
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.origin import write_origin
from fedit_app.ledger.undo import take_withdrawn
from fedit_app.mkv import MKV, Form
from fedit_app.models.embedding import embed
from fedit_app.node.compose_stage import ComposeOutcome, ComposeStage, Contested
from fedit_app.node.edit_stage import EditOutcome, EditStage
from fedit_app.node.envelope import Envelope, SealedEnvelope, federation_key
from fedit_app.node.identity import identity_of
from fedit_app.node.measuring import measure, measure_neutral
from fedit_app.node.reedit_stage import ReeditOutcome, ReeditStage
from fedit_app.node.requests import due
from fedit_app.protocol.schema import EvaluateAnswer, HelloAnswer
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

CENTRAL = "central"


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a node did in a round of a stock strategy.

    Attributes:
        changed: layer -> change of the weights (d_model, d_ff) with the node's own edits.
        requests: how many requests the slot has.
        cached: of how many the value v* came from the work-cache.
        key_sums: layer -> K K^T (d_ff, d_ff) of the slot's keys; empty if it was not asked for.
        prior: layer -> lambda C (d_ff, d_ff), likewise.
    """

    changed: dict[int, torch.Tensor]
    requests: int
    cached: int
    key_sums: dict[int, torch.Tensor]
    prior: dict[int, torch.Tensor]


class Participant:
    """One node in one run.

    Args:
        config: the run configuration.
        node_config: Flower's node configuration.
        run_id: Flower's run id.

    Attributes:
        head: hash of the last record of the ledger's journal after the latest stage that may have
            changed it; "" before the first one.
    """

    def __init__(
        self, config: RunConfig, node_config: Mapping[str, ConfigValue], run_id: int
    ) -> None:
        self.config, self._run_id, self.head = config, run_id, ""
        self.policy = site_policy(node_config)
        limits = site_limits(node_config)
        if limits is not None:
            limits.check(config, own_model=bool(node_config.get("model")))
        folder = run_folder(config, run_id)
        self._data = own_data(config, node_config, folder, embed)
        self.name = self._data.name
        self._key = federation_key(config, node_config, run_id, self.policy)
        self._identity = identity_of(self.name, node_config, self.policy)
        edited = node_config.get("ledger")
        self._edited = Path(str(edited)) if edited else None
        self._peers: list[NodeData] = []
        if is_simulated(node_config):
            count = int(node_config["num-partitions"])
            self._peers = simulated_nodes(config, count, folder, embed)

    @functools.cached_property
    def slots(self) -> list[list[EditRequest]]:
        """The node's own requests per slot, without those that are skipped."""
        return self._that_fit(self._data)

    def _that_fit(self, data: NodeData) -> list[list[EditRequest]]:
        """The requests of a node per slot that the model can take.

        Raises:
            FedEditError: the file cannot be read; or a request in it is invalid or cannot be taken,
                and is not skipped.
        """
        slots = data.slots(self.config)
        every, bench = [request for slot in slots for request in slot], self.workbench
        skip_bad = self.config.on_bad_request == "skip"
        kept = set(that_fit(bench.model, every, bench.templates, skip_bad))
        return [[request for request in slot if request in kept] for slot in slots]

    @property
    def workbench(self) -> Workbench:
        """The model and its tools, loaded once per process."""
        return workbench_for(self.config)

    @functools.cached_property
    def envelope(self) -> Envelope:
        """Turns this node's MKVs into the form that the server gets, and back."""
        bench, width = self.workbench, self.config.sketch_width
        model, layers = bench.model, len(bench.settings.layers)
        form = Form(layers, model.d_ff, model.d_model, width, bench.kinds)
        if self._key is None:
            return Envelope(bench.components, bench.precision, self._identity, form)
        return SealedEnvelope(bench.components, bench.precision, self._identity, form, self._key)

    def everybody(self) -> dict[str, list[list[EditRequest]]]:
        """Every node's requests per slot in a simulation, elsewhere the node's own.

        A node whose requests are refused reports that itself and is left out here.
        """
        found = {self.name: self.slots}
        for peer in self._peers:
            try:
                found[peer.name] = self._that_fit(peer)
            except FedEditError:
                logger.warning("node %s: the data of %s is left out", self.name, peer.name)
        return dict(sorted(found.items()))

    def ledger(self, owner: str = "") -> Ledger:
        """The node's ledger, or that of another owner (`CENTRAL`) in a simulation."""
        folder = ledger_folder(self.config, self._run_id, owner or self.name)
        return Ledger.open(folder, self.workbench.fingerprint, self._identity.key)

    def _used_ledger(self, owner: str = "") -> Ledger:
        """The same, with a record of the settings with which it is used."""
        folder = ledger_folder(self.config, self._run_id, owner or self.name)
        ledger = self.ledger(owner)
        write_origin(folder, owner or self.name, bool(self._peers), self.config)
        return ledger

    def lookup_keys(self, slot: int) -> np.ndarray:
        """(n, d_ff) float32 lookup keys of what is due in a slot; none after the last slot.

        A node that uploads nothing hands over none: a key tells of its request, too.
        """
        requests: list[EditRequest] = []
        if self.policy.upload and slot <= self.config.num_slots:
            requests = due(self.slots, slot, self.ledger())
        return self.workbench.lookup_keys(requests).float().numpy()

    def hello(self, slot: int) -> HelloAnswer:
        """Who this node is, what its MKVs depend on, and what its ledger holds, by the nodes' ids.

        Args:
            slot: the slot with which the run starts or resumes; MKVs that the ledger accepted in
                it or later are left out.
        """
        requests = [len(requests) for requests in self.slots]
        left_out = len(self._data.read()) - sum(map(len, self._data.slots(self.config)))
        if left_out:
            logger.warning(
                "node %s: %d requests are after slot %d and are left out",
                self.name,
                left_out,
                self.config.num_slots,
            )
        bench = self.workbench
        warn_of_long_targets(bench.model, sum(self.slots, []))
        ledger = self.ledger()
        entries, refused = ledger.entries, ledger.refused
        held = {id_: entry for id_, entry in sorted(entries.items()) if entry.slot < slot}
        if not self.policy.upload:
            held = {id_: e for id_, e in held.items() if e.mkv.node != self.name}
        return HelloAnswer(
            node=self.name,
            simulated=bool(self._peers),
            requests=requests,
            components=self.envelope.components,
            layers=list(bench.settings.layers),
            d_model=bench.model.d_model,
            d_ff=bench.model.d_ff,
            kinds=bench.kinds,
            wants=[id_ for id_, entry in held.items() if entry.requests],
            holds=[id_ for id_, entry in held.items() if not entry.requests] + sorted(refused),
            withdrawn=sorted(id_ for id_, refusal in refused.items() if refusal.withdrawn),
        )

    def edit(
        self,
        slot: int,
        candidates: Sequence[MKV],
        central: bool = False,
        missing: Collection[str] = (),
        withdrawn: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> EditOutcome:
        """Edit stage: fulfil the requests of a slot, see `EditStage.run`.

        Args:
            slot: the time slot.
            candidates: MKVs with similar lookup keys.
            central: edit everybody's requests into one ledger.
            missing: ids of own MKVs that the pool lacks, to be uploaded again.
            withdrawn: id -> nodes that have withdrawn it, see `take_withdrawn`.
        """
        owner = CENTRAL if central else self.name
        slots = self._everybodys_slots() if central else self.slots
        ledger = self._used_ledger(owner)
        take_withdrawn(ledger, owner, withdrawn, slot, self.config)
        store = self._value_store()
        # In the central ledger, requests of different nodes are no corrections of each other.
        stage = EditStage(
            owner,
            self.workbench,
            self.config,
            self.policy,
            slots,
            not central,
            store,
            None if central else self._edited,
        )
        outcome = stage.run(ledger, slot, candidates, missing if self.policy.upload else ())
        self.head = "" if central else ledger.head
        return outcome

    def without(self, ids: Collection[str]) -> list[str]:
        """Those of some MKVs that the node's ledger does not have."""
        return sorted(set(ids) - self.ledger().entries.keys()) if ids else []

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
        self,
        slot: int,
        offered: Sequence[MKV],
        votes: Mapping[str, int] | None = None,
        supersedes: Mapping[str, Sequence[str]] | None = None,
    ) -> ReeditOutcome:
        """Re-edit stage: accept MKVs of others, see `ReeditStage.run`.

        Args:
            slot: the time slot.
            offered: MKVs, the most similar first.
            votes: id -> how many organisations want it.
            supersedes: id of an offered MKV -> ids of those in whose place it holds.
        """
        edited = sum(self.slots[:slot], [])
        stage = ReeditStage(
            *(self.name, self.workbench, self.config, self.policy),
            *(self._own_requests, edited),
        )
        ledger = self._used_ledger()
        outcome = stage.run(ledger, slot, offered, votes or {}, supersedes or {})
        self.head = ledger.head
        return outcome

    def compose(self, slot: int, keys: Sequence[Contested]) -> ComposeOutcome:
        """A round of composition, see `ComposeStage.run`.

        Args:
            slot: the time slot.
            keys: the contested keys of which the node is a holder.
        """
        if not self.policy.upload:
            keys = [dataclasses.replace(key, ids=()) for key in keys]
        stage = ComposeStage(self.name, self.workbench, self.config, self._own_requests)
        ledger = self._used_ledger()
        outcome = stage.run(ledger, slot, keys)
        self.head = ledger.head
        return outcome

    @property
    def _own_requests(self) -> list[EditRequest]:
        return [request for requests in self.slots for request in requests]

    def value_place(self, slot: int, round_: int, ids: Sequence[str], node: str) -> list[object]:
        """Where a value belongs that a node returns in a round: it opens nowhere else."""
        return [self._run_id, slot, round_, sorted(ids), node]

    def evaluate(
        self, slot: int, deltas: dict[int, torch.Tensor] | None = None, central: bool = False
    ) -> EvaluateAnswer:
        """Metrics of own facts and, in a simulation, of those received and the federation's.

        Args:
            slot: facts of the slots up to this one count, with the node's edits; 0: all facts,
                with the unedited model.
            deltas: edit by these instead of a ledger: layer -> (d_model, d_ff).
            central: edit by the central ledger instead of the node's own.

        Returns:
            The metrics; `neutral` is measured after the last slot with metrics = full.
        """
        last, everybody = slot or self.config.num_slots, self.everybody()
        facts = {
            name: [request for requests in slots[:last] for request in requests]
            for name, slots in everybody.items()
        }
        scopes: dict[str, list[EditRequest]] = {
            "own": facts[self.name],
            "received": [],
            "federation": facts_for(self.name, facts) if self._peers else [],
        }
        bench = self.workbench
        if slot == 0:
            deltas = {}
        elif deltas is None:
            ledger = self.ledger(CENTRAL if central else "")
            deltas = bench.deltas(ledger) if len(ledger) else {}
            if self._peers and not central:
                scopes["received"] = self._received(facts, ledger)
        metrics = self.config.metrics if slot in (0, self.config.num_slots) else "basic"
        edited = [r for slots in everybody.values() for requests in slots for r in requests]
        scopes = {scope: that_must_stay(asked, edited) for scope, asked in scopes.items()}
        known = [request for requests in facts.values() for request in requests]
        cache = self._work_cache("scores")
        by_fact = None
        if self._peers and slot == self.config.num_slots:
            by_fact = scores_file(run_folder(self.config, self._run_id), self.name)
        most = self.config.evaluate_sample
        measured = measure(bench.model, deltas, scopes, known, metrics, cache, by_fact, most)
        full = metrics == "full" and slot > 0
        neutral = measure_neutral(bench.model, deltas) if full else None
        return EvaluateAnswer(node=self.name, **measured, neutral=neutral)

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
        self,
        slot: int,
        deltas: dict[int, torch.Tensor],
        key_sums: bool = False,
        prior: bool = False,
    ) -> Trained:
        """Edit the global model of a stock strategy with the requests of a slot.

        Args:
            slot: the time slot, Flower's server round.
            deltas: global change of the weights, layer -> (d_model, d_ff).
            key_sums: whether K K^T of the new keys is wanted, too.
            prior: whether what the solve weighs changes by, lambda C, is wanted, too.

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
        change, solver = bench.deltas(local), bench.solver
        pairs = bench.pairs(local)
        return Trained(
            changed={layer: deltas[layer] + change[layer].cpu() for layer in deltas},
            requests=len(requests),
            cached=store.found if store else 0,
            key_sums={
                layer: solver.key_sum(layer, pairs.layer(i).keys).cpu()
                for i, layer in enumerate(solver.layers if key_sums else ())
            },
            prior={layer: solver.prior(layer).cpu() for layer in (deltas if prior else ())},
        )

    def _value_store(self) -> ValueStore | None:
        folder = self._work_cache("values")
        return None if folder is None else ValueStore(folder)

    def _work_cache(self, part: str) -> Path | None:
        """A folder of the work-cache; None without one."""
        root = self.config.work_cache
        return Path(root).expanduser() / part if root else None
