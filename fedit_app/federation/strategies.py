"""FedEdit's strategies, and the one table from a strategy's name to what makes it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Result, Strategy

from fedit_app.config import RunConfig
from fedit_app.errors import FedEditError
from fedit_app.federation.grid import Member, Reply, RunGrid, scopes
from fedit_app.federation.protocol import (
    EDIT,
    EVALUATE,
    REEDIT,
    arrays_record,
    pack,
    unpack_arrays,
    unpack_mkvs,
)
from fedit_app.mkv import MKV, MKVPool, Ranked, SelectionConfig, select

logger = logging.getLogger(__name__)

_MOST_CANDIDATES = 4


class FedEdit(Strategy):
    """FedEdit's two stages (arXiv 2502.15677): edit and upload, re-edit with others' MKVs.

    Subclass it and override `select` to serve other MKVs.

    Args:
        config: the run configuration.
        pool: the MKV pool.
        fingerprint: the one that all MKVs of this run have.
    """

    central = False
    exchange = True

    def __init__(self, config: RunConfig, pool: MKVPool, fingerprint: str) -> None:
        self.config, self.pool, self.fingerprint = config, pool, fingerprint
        self._served: dict[str, set[str]] = {}
        self.selection = SelectionConfig(
            config.selection,
            config.signature,
            config.centred,
            config.similarity_threshold,
            config.top_k,
        )

    def summary(self) -> None:
        """Log how MKVs are selected."""
        logger.info(
            "strategy %s: %d slots, selection %s on %s%s",
            self.config.strategy,
            self.config.num_slots,
            self.config.selection,
            "centred " if self.config.centred else "",
            self.config.signature,
        )

    def select(self, node: str, own: Sequence[MKV]) -> list[Ranked]:
        """Which MKVs of the pool a node is served, the most similar first.

        Args:
            node: the node.
            own: MKVs that fulfil its requests of this slot.
        """
        signatures = np.array([mkv.signature(self.selection.signature) for mkv in own])
        return select(
            signatures,
            lambda: self.pool.blocks(self.selection.signature, self.fingerprint),
            self.selection,
            exclude_ids=self._served.setdefault(node, set()) | {mkv.id for mkv in own},
            exclude_nodes={node},
        )

    def start(self, grid: RunGrid, **_: object) -> Result:
        """Run all slots.

        Args:
            grid: the members of the run. What else stock strategies are given is not needed.

        Raises:
            FedEditError: no node answered the edit stage of a slot.
        """
        self.summary()
        for slot in range(1, self.config.num_slots + 1):
            replies = self._ask(grid, slot, "edit", EDIT, self._edit_messages(grid, slot))
            if not replies:
                raise FedEditError(f"slot {slot}: no node answered; see the reasons above")
            own = self._collect(grid, slot, replies)
            if self.exchange:
                offers = self._reedit_messages(grid, slot, own)
                replies = self._ask(grid, slot, "reedit", REEDIT, offers)
                self._note_reedit(grid, slot, replies)
            if grid.evaluated(slot):
                evaluate(grid, slot, self.central)
            grid.record.close_slot(slot)
        return Result()

    def _ask(
        self, grid: RunGrid, slot: int, stage: str, kind: str, contents: dict[str, RecordDict]
    ) -> dict[str, Reply]:
        ids = {name: grid.members[name].node_id for name in contents}
        return grid.ask(
            slot,
            stage,
            kind,
            {ids[name]: content for name, content in contents.items()},
            {node_id: name for name, node_id in ids.items()},
        )

    def _edit_messages(self, grid: RunGrid, slot: int) -> dict[str, RecordDict]:
        """Per node the slot, and MKVs of others whose lookup keys equal those of its requests."""
        names = sorted(grid.members)[:1] if self.central else sorted(grid.members)
        info = {"slot": slot, "central": self.central, "upload": self.exchange}
        return {name: pack(info, self._candidates(grid.members[name])) for name in names}

    def _candidates(self, member: Member) -> list[MKV]:
        if not self.exchange or not len(member.lookup):
            return []
        matches = self.pool.nearest(
            member.lookup,
            "key",
            self.fingerprint,
            self.config.reuse_threshold,
            _MOST_CANDIDATES,
            exclude_nodes=(member.name,),
        )
        served = self._served.get(member.name, set())
        ids = dict.fromkeys(match.id for row in matches for match in row)
        return self.pool.fetch([id_ for id_ in ids if id_ not in served])

    def _collect(self, grid: RunGrid, slot: int, replies: dict[str, Reply]) -> dict[str, list[MKV]]:
        """Put the nodes' new MKVs into the pool.

        Returns:
            Name -> MKVs that fulfil the node's requests of this slot, reused ones included.
        """
        own = {}
        for name, reply in replies.items():
            try:
                new = unpack_mkvs(reply.content, self.fingerprint)
                self._check_origin(name, slot, new)
                reused = self.pool.fetch(reply.info["reused"]) if self.exchange else []
            except FedEditError as error:
                grid.record.failed(name, slot, "edit", str(error))
                continue
            self.pool.append(new)
            own[name] = [*new, *reused]
            grid.record.count(
                slot,
                name,
                requests=reply.info["requests"],
                optimised=reply.info["optimised"],
                reused=len(reply.info["reused"]),
                uploaded=len(new),
            )
            self._note_conflicts(grid, slot, reply)
        return own

    def _check_origin(self, name: str, slot: int, mkvs: Sequence[MKV]) -> None:
        for mkv in mkvs:
            if mkv.node != name or mkv.slot > slot:
                raise FedEditError(
                    f"uploaded MKV {mkv.id} says it is of node {mkv.node!r}, slot {mkv.slot}"
                )

    def _reedit_messages(
        self, grid: RunGrid, slot: int, own: dict[str, list[MKV]]
    ) -> dict[str, RecordDict]:
        messages = {}
        for name, mkvs in own.items():
            ranked = self.select(name, mkvs)
            self._served[name] |= {entry.id for entry in ranked}
            grid.record.count(slot, name, offered=len(ranked))
            messages[name] = pack({"slot": slot}, self.pool.fetch([entry.id for entry in ranked]))
        return messages

    def _note_reedit(self, grid: RunGrid, slot: int, replies: dict[str, Reply]) -> None:
        for name, reply in replies.items():
            grid.record.received(slot, name, reply.info["received_from"], reply.info["rejections"])
            self._note_conflicts(grid, slot, reply)
        for name, member in grid.members.items():
            member.lookup = lookup_of(replies[name]) if name in replies else member.lookup[:0]

    def _note_conflicts(self, grid: RunGrid, slot: int, reply: Reply) -> None:
        for conflict in reply.info["conflicts"]:
            grid.record.conflict(slot, reply.node, conflict["own"], conflict["other"])

    def configure_train(self, *_: object) -> Iterable[Message]:
        """Not used: `start` sends messages of its own kinds."""
        return []

    def aggregate_train(self, *_: object) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Not used: nothing is averaged."""
        return None, None

    def configure_evaluate(self, *_: object) -> Iterable[Message]:
        """Not used, see `configure_train`."""
        return []

    def aggregate_evaluate(self, *_: object) -> MetricRecord | None:
        """Not used, see `aggregate_train`."""
        return None


class Local(FedEdit):
    """No exchange: every node keeps to its own edits."""

    exchange = False


class Central(FedEdit):
    """The upper bound: one ledger with everybody's requests, kept by one virtual node.

    Possible in a simulation only, where one node can read all data.
    """

    exchange = False
    central = True


def evaluate(grid: RunGrid, slot: int, central: bool = False) -> None:
    """Ask every member for its metrics and record them.

    Args:
        grid: the members of the run.
        slot: the slot; 0 asks for the unedited model.
        central: evaluate the central ledger.
    """
    content = pack({"slot": slot, "central": central})
    names = {member.node_id: name for name, member in sorted(grid.members.items())}
    stage = "evaluate" if slot else "before"
    replies = grid.ask(slot, stage, EVALUATE, dict.fromkeys(names, content), names)
    for name, reply in replies.items():
        grid.record.measured(slot, name, scopes(reply.info))


def lookup_of(reply: Reply) -> np.ndarray:
    """(n, d_ff) lookup keys that came with an answer; none if there are none."""
    if "keys" not in reply.content.array_records:
        return np.zeros((0, 0), np.float32)
    return unpack_arrays(reply.content, "keys")["lookup"]


Factory = Callable[[RunConfig, MKVPool, str], Strategy]

# To add a strategy, name here what makes it from run config, pool and fingerprint.
STRATEGIES: dict[str, Factory] = {
    "fedit": FedEdit,
    "local": Local,
    "central": Central,
    "fedavg": lambda config, pool, fingerprint: stock_strategy("FedAvg"),
}


def strategy_named(name: str) -> Factory:
    """What makes the strategy of a run config.

    Args:
        name: a key of `STRATEGIES`, or the class name of a Flower strategy that needs no further
            arguments.

    Raises:
        FedEditError: there is none of that name, or it needs arguments.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    stock_strategy(name)
    return lambda config, pool, fingerprint: stock_strategy(name)


def stock_strategy(name: str) -> Strategy:
    """A strategy of Flower's by its class name, for however many nodes there are.

    Raises:
        FedEditError: Flower has none of that name, or it needs arguments.
    """
    found = getattr(flower, name, None)
    known = inspect.isclass(found) and issubclass(found, Strategy) and not inspect.isabstract(found)
    if not known:
        raise FedEditError(
            f"run config: strategy = {name!r} must be one of {', '.join(STRATEGIES)}, or the class "
            "name of a Flower strategy, such as FedMedian"
        )
    parameters = inspect.signature(found).parameters.values()
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    if needed:
        raise FedEditError(
            f"run config: strategy = {name!r} needs arguments ({', '.join(needed)}); add a factory "
            "to STRATEGIES in fedit_app/federation/strategies.py"
        )
    return found(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)


def no_change(layers: Sequence[int], d_model: int, d_ff: int) -> ArrayRecord:
    """The global model that stock strategies start from: no change to any edited layer."""
    return arrays_record(
        {f"layer-{layer}": np.zeros((d_model, d_ff), np.float32) for layer in layers}
    )
