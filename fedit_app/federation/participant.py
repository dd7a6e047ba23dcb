"""A node's part of the protocol, without Flower: what it does when it is asked.

Between two messages nothing is kept but the ledger on the node's own disk; a model that this
process has loaded before is used again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedit_app.config import ConfigValue, RunConfig
from fedit_app.data.federation_facts import facts_for
from fedit_app.data.partition import NodeData, is_simulated, own_data, simulated_nodes
from fedit_app.editing.ledger import Ledger
from fedit_app.editing.requests import EditRequest
from fedit_app.editing.workbench import Workbench, workbench_for
from fedit_app.errors import FedEditError
from fedit_app.evaluation.memory import ScoreMemory
from fedit_app.evaluation.metrics import Metrics, aggregate
from fedit_app.federation.paths import ledger_folder, run_folder
from fedit_app.federation.reconcile import Conflict, judge, near_keys
from fedit_app.mkv import MKV

logger = logging.getLogger(__name__)

CENTRAL = "central"
_BASE = "base"


@dataclass(frozen=True)
class EditOutcome:
    """What a node did in an edit stage.

    Attributes:
        new: MKVs that it computed in this slot.
        reused: ids of others' MKVs that fulfil requests of this slot.
        requests: how many requests the slot has.
        conflicts: others' MKVs about an own subject with another target.
    """

    new: list[MKV]
    reused: list[str]
    requests: int
    conflicts: list[Conflict]


@dataclass(frozen=True)
class ReeditOutcome:
    """What a node did with the MKVs that it was served.

    Attributes:
        received_from: origin node -> accepted MKVs.
        rejections: reason -> rejected MKVs.
        conflicts: the rejected ones that contradict an MKV of the ledger.
    """

    received_from: dict[str, int]
    rejections: dict[str, int]
    conflicts: list[Conflict]


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
        folder = run_folder(config, run_id)
        self._data = own_data(config, node_config, folder)
        self.name = self._data.name
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

    def lookup_keys(self, slot: int) -> np.ndarray:
        """(n, d_ff) float32 lookup keys of a slot's requests; empty behind the last slot."""
        requests = self.slots[slot - 1] if slot <= self.config.num_slots else []
        return self.workbench.lookup_keys(requests).float().numpy()

    def hello(self) -> dict[str, Any]:
        """Who this node is and what its MKVs are to be measured on."""
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
        return {
            "node": self.name,
            "simulated": bool(self._peers),
            "requests": requests,
            "components": bench.components,
            "layers": list(bench.settings.layers),
            "d_model": bench.model.d_model,
            "d_ff": bench.model.d_ff,
        }

    def edit(self, slot: int, candidates: Sequence[MKV], central: bool = False) -> EditOutcome:
        """Fulfil the requests of a slot: reuse MKVs where they do, compute the rest.

        A request that the ledger fulfils already is not computed again, so a repeated message
        gets the same answer.

        Args:
            slot: the time slot.
            candidates: others' MKVs with similar lookup keys.
            central: edit everybody's requests into one ledger.
        """
        owner = CENTRAL if central else self.name
        slots = self._everybodys_slots() if central else self.slots
        requests = slots[slot - 1]
        bench, ledger = self.workbench, self.ledger(owner)
        self._repeat(requests, slots[: slot - 1], ledger, slot)
        conflicts = self._reuse(_open(requests, ledger), candidates, ledger, slot)
        todo: dict[tuple[str, str, str], list[EditRequest]] = {}
        for request in _open(requests, ledger):
            todo.setdefault(_fact(request), []).append(request)
        started = time.perf_counter()
        computed = bench.compute([group[0] for group in todo.values()], ledger, owner, slot)
        asked = {
            mkv.id: [request.id for request in group]
            for mkv, group in zip(computed, todo.values(), strict=True)
        }
        ledger.accept(computed, slot, asked)
        fulfilled = ledger.fulfilled()
        used = dict.fromkeys(fulfilled[request.id] for request in requests)
        new = [ledger.entries[id_].mkv for id_ in used if ledger.entries[id_].mkv.node == owner]
        new = [mkv for mkv in new if mkv.slot == slot]
        fresh = {mkv.id for mkv in new}
        logger.info(
            "node %s, slot %d: %d requests, %d optimised in %.1f s, %d reused",
            owner,
            slot,
            len(requests),
            len(computed),
            time.perf_counter() - started,
            len(used) - len(fresh),
        )
        return EditOutcome(
            new=new,
            reused=[id_ for id_ in used if id_ not in fresh],
            requests=len(requests),
            conflicts=[
                Conflict(fulfilled.get(conflict.own, conflict.own), conflict.other)
                for conflict in conflicts
            ],
        )

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

    def _repeat(
        self,
        requests: Sequence[EditRequest],
        earlier: Sequence[Sequence[EditRequest]],
        ledger: Ledger,
        slot: int,
    ) -> None:
        """Let what was computed for an own request in an earlier slot serve for the same fact."""
        fulfilled = ledger.fulfilled()
        before = {_fact(r): fulfilled[r.id] for rs in earlier for r in rs if r.id in fulfilled}
        for request in requests:
            id_ = before.get(_fact(request))
            if id_ is not None and request.id not in fulfilled:
                ledger.accept([ledger.entries[id_].mkv], slot, {id_: [request.id]})

    def _reuse(
        self,
        requests: Sequence[EditRequest],
        candidates: Sequence[MKV],
        ledger: Ledger,
        slot: int,
    ) -> list[Conflict]:
        """Let MKVs that decode a request's target fulfil it; take out what contradicts it.

        Returns:
            Conflicts, their `own` naming the request (its MKV does not exist yet).
        """
        held = [entry.mkv for entry in ledger.entries.values()]
        known = list({mkv.id: mkv for mkv in [*held, *candidates]}.values())
        if not requests or not known:
            return []
        bench, conflicts = self.workbench, []
        keys = bench.lookup_keys(requests).numpy()
        for request, near in zip(
            requests, near_keys(keys, known, self.config.reuse_threshold), strict=True
        ):
            if not near:
                continue
            works = bench.decodes(request, near)
            fits = [mkv for mkv, decoded in zip(near, works, strict=True) if decoded]
            if fits:
                ledger.accept(fits[:1], slot, {fits[0].id: [request.id]})
            for mkv, decoded in zip(near, works, strict=True):
                if decoded:
                    continue
                entry = ledger.entries.get(mkv.id)
                if entry is not None and entry.requests:
                    logger.warning(
                        "node %s: two own requests, one in slot %d, have the same subject and "
                        "beginning; one key cannot hold both",
                        self.name,
                        slot,
                    )
                    continue
                conflicts.append(Conflict(request.id, mkv.id))
                if entry is not None:
                    ledger.drop([mkv.id])
        return conflicts

    def reedit(self, slot: int, offered: Sequence[MKV]) -> ReeditOutcome:
        """Accept MKVs of others, except what the ledger has or contradicts: own requests win.

        Args:
            slot: the time slot.
            offered: MKVs, the most similar first.
        """
        bench, ledger = self.workbench, self.ledger()
        shapes = (len(bench.settings.layers), bench.model.d_ff, bench.model.d_model)
        verdicts = judge(offered, ledger, shapes, self.config.reuse_threshold)
        accepted = [mkv for mkv, verdict in zip(offered, verdicts, strict=True) if not verdict]
        ledger.accept(accepted, slot)
        rejected = [verdict for verdict in verdicts if verdict]
        logger.info(
            "node %s, slot %d: accepted %d of %d MKVs, ledger holds %d",
            self.name,
            slot,
            len(accepted),
            len(offered),
            len(ledger),
        )
        return ReeditOutcome(
            received_from=dict(Counter(mkv.node for mkv in accepted)),
            rejections=dict(Counter(verdict.reason for verdict in rejected)),
            conflicts=[verdict.conflict for verdict in rejected if verdict.conflict],
        )

    def evaluate(
        self, slot: int, deltas: dict[int, torch.Tensor] | None = None, central: bool = False
    ) -> dict[str, Metrics | None]:
        """Metrics of own facts and, in a simulation, of the federation's facts.

        Args:
            slot: facts of the slots up to this one count, with the node's edits; 0: all facts,
                with the unedited model.
            deltas: edit by these instead of a ledger: layer -> (d_model, d_ff).
            central: edit by the central ledger instead of the node's own.
        """
        last = slot or self.config.num_slots
        facts = {
            name: [request for requests in slots[:last] for request in requests]
            for name, slots in self.everybody().items()
        }
        own, everything = facts[self.name], facts_for(self.name, facts)
        bench = self.workbench
        if slot == 0:
            state, deltas = _BASE, {}
        elif deltas is None:
            ledger = self.ledger(CENTRAL if central else "")
            state = " ".join(sorted(ledger.entries))
            deltas = bench.deltas(ledger) if len(ledger) else {}
        else:
            state = _digest(deltas)
        with bench.model.edited(deltas):
            scores = _memory.score(bench.model, state, [*own, *everything])
        return {
            "own": aggregate([scores[request] for request in own]),
            "federation": aggregate([scores[request] for request in everything])
            if self._peers
            else None,
        }

    def train(
        self, slot: int, deltas: dict[int, torch.Tensor]
    ) -> tuple[dict[int, torch.Tensor], int]:
        """Edit the global model of a stock strategy with the requests of a slot.

        Args:
            slot: the time slot, Flower's server round.
            deltas: global change of the weights, layer -> (d_model, d_ff).

        Returns:
            The change with the node's own edits added, and the number of requests.
        """
        bench, requests = self.workbench, self.slots[slot - 1]
        local = Ledger(bench.fingerprint)
        with bench.model.edited(deltas):
            local.accept(bench.compute(requests, local, self.name, slot), slot)
        change = bench.deltas(local)
        return {layer: deltas[layer] + change[layer].cpu() for layer in deltas}, len(requests)


def _open(requests: Sequence[EditRequest], ledger: Ledger) -> list[EditRequest]:
    """The requests that no MKV of the ledger fulfils yet."""
    fulfilled = ledger.fulfilled()
    return [request for request in requests if request.id not in fulfilled]


def _fact(request: EditRequest) -> tuple[str, str, str]:
    return request.subject, request.prompt, request.target_new


_memory = ScoreMemory(keep=_BASE)


def _digest(deltas: Mapping[int, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for layer in sorted(deltas):
        digest.update(deltas[layer].contiguous().numpy().tobytes())
    return digest.hexdigest()
