"""FedEdit's strategies, and the one table from a strategy's name to what makes it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Result, Strategy

from fedit_app.config.run_config import RunConfig
from fedit_app.mkv import Record
from fedit_app.pool import MKVPool, Ranked, SelectionConfig
from fedit_app.pool.withdraw import withdraw, withdrawn
from fedit_app.protocol.messages import (
    EDIT,
    EVALUATE,
    REEDIT,
    arrays_record,
    pack,
    unpack_info,
    unpack_mkvs,
)
from fedit_app.server.greeting import lookup_of
from fedit_app.server.grid import Member, RunGrid
from fedit_app.support.errors import FedEditError

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
        self.selection = SelectionConfig(
            config.selection,
            config.signature,
            config.centred,
            config.similarity_threshold,
            config.top_k,
        )
        self._grid: RunGrid | None = None
        self._own: dict[str, list[Record]] = {}
        self._offered: dict[str, list[str]] = {}
        self._asked: dict[str, list[str]] = {}

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

    def select(self, own: Mapping[str, Sequence[Record]]) -> dict[str, list[Ranked]]:
        """Which MKVs of the pool every node is served, the most similar first.

        Args:
            own: node -> MKVs that fulfil its requests of this slot.
        """
        kind = self.selection.signature
        signatures = {
            name: np.array([mkv.signature(kind) for mkv in mkvs]) for name, mkvs in own.items()
        }
        known = {name: self._grid.members[name].known for name in own}
        return self.pool.select(signatures, self.fingerprint, self.selection, known)

    def start(
        self, grid: RunGrid, initial_arrays: ArrayRecord, first_slot: int = 1, **_: object
    ) -> Result:
        """Run all slots: edit, re-edit, evaluate.

        Args:
            grid: the members of the run.
            initial_arrays: not sent; FedEdit's nodes keep their own ledgers.
            first_slot: the slot to begin with, when an earlier run is resumed.

        Raises:
            FedEditError: no node answered the edit stage of a slot.
        """
        self._grid = grid
        self.summary()
        for slot in range(first_slot, self.config.num_slots + 1):
            if slot > first_slot and grid.newcomers(slot):
                grid.send_and_receive(evaluation_messages(grid, 0))
            none = ConfigRecord()
            edits = self.configure_train(slot, initial_arrays, none, grid)
            self.aggregate_train(slot, grid.send_and_receive(edits))
            if self.exchange:
                reedits = self.configure_reedit(slot, grid)
                self.aggregate_reedit(slot, grid.send_and_receive(reedits))
            evaluations = self.configure_evaluate(slot, initial_arrays, none, grid)
            self.aggregate_evaluate(slot, grid.send_and_receive(evaluations))
        return Result()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: RunGrid
    ) -> list[Message]:
        """Edit stage: the slot, and MKVs of others whose lookup keys equal those of its requests.

        Args:
            server_round: the slot.
            arrays: not sent.
            config: not sent.
            grid: the members of the run.
        """
        members = [grid.members[name] for name in sorted(grid.members)]
        members = members[: 1 if self.central else None]
        info = {"slot": server_round, "central": self.central, "upload": self.exchange}
        info["withdrawn"] = self._withdrawn(members) if self.exchange else {}
        found = self._candidates(members) if self.exchange else {}
        self._asked = {m.name: self._missing(m) if self.exchange else [] for m in members}
        return [
            member.message(
                EDIT,
                pack(
                    {**info, "missing": self._asked[member.name]},
                    self.pool.fetch(found.get(member.name, [])),
                ),
            )
            for member in members
        ]

    def _withdrawn(self, members: Sequence[Member]) -> dict[str, list[str]]:
        """Id -> nodes, of all MKVs that their authors have withdrawn, now or in earlier runs."""
        for member in members:
            if member.withdrawn:
                withdraw(self.pool, member.name, member.withdrawn)
                member.withdrawn = set()
        found = withdrawn(self.pool)
        for member in members:
            gone = {id_ for id_, nodes in found.items() if member.name not in nodes}
            member.wants -= gone
            member.holds -= gone
        return found

    def _missing(self, member: Member) -> list[str]:
        """Ids of MKVs that a node wants and the pool has not, such as those of another run."""
        missing = sorted(member.wants - self.pool.facts(member.wants).keys())
        return missing[: self.config.max_uploads_per_slot]

    def _candidates(self, members: Sequence[Member]) -> dict[str, list[str]]:
        """Node -> ids of MKVs about the subjects of its requests, which it does not have yet."""
        if not self.config.reuse_threshold:
            return {}
        matches = self.pool.nearest(
            {member.name: member.lookup for member in members},
            "key",
            self.fingerprint,
            min(self.config.reuse_threshold, self.config.same_key_threshold),
            _MOST_CANDIDATES,
            {member.name: member.known for member in members},
        )
        return {
            node: list(dict.fromkeys(match.id for row in rows for match in row))
            for node, rows in matches.items()
        }

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Put the nodes' new MKVs into the pool; nothing is averaged.

        Args:
            server_round: the slot.
            replies: the nodes' answers.
        """
        self._own, arrived = {}, {}
        for message in replies:
            name, info = self._grid.name_of(message), unpack_info(message.content)
            try:
                arrived[name] = unpack_mkvs(
                    message.content, self.fingerprint, self.config.mkv_precision
                )
                again = set(info["again"])
                _check_again(again, self._asked[name])
                new = [mkv for mkv in arrived[name] if mkv.id not in again]
                _check_amount(len(new), self.config.max_uploads_per_slot)
                _check_origin(name, server_round, arrived[name], again)
                self.pool.check(arrived[name])
                reused = self._reused(name, info["reused"])
            except FedEditError as error:
                self._grid.failed(name, server_round, "edit", str(error))
                arrived.pop(name, None)
                continue
            member = self._grid.members[name]
            member.wants |= {*info["reused"], *(mkv.id for mkv in arrived[name])}
            member.holds |= {id_ for conflict in info["conflicts"] for id_ in conflict.values()}
            self._own[name] = [*new, *self.pool.fetch(reused)]
            counts = {"reused": len(info["reused"]), "uploaded": len(arrived[name])}
            self._grid.record.count(server_round, name, **counts)
        # In one step, so that which MKV stands for a fact does not depend on who answered first.
        self.pool.append([mkv for name in sorted(arrived) for mkv in arrived[name]])
        return None, None

    def _reused(self, name: str, ids: Sequence[str]) -> list[str]:
        """Those of the MKVs that a node says it reuses that the pool holds.

        It may have others in its ledger from a run with another pool.
        """
        if not self.exchange:
            return []
        pooled = self.pool.facts(ids)
        invented = set(ids) - pooled.keys() - self._grid.members[name].known
        if invented:
            raise FedEditError(f"reuse of MKV {min(invented)}, which it has never been sent")
        return [id_ for id_ in ids if id_ in pooled]

    def configure_reedit(self, server_round: int, grid: RunGrid) -> list[Message]:
        """Re-edit stage: for every node that has edited, the MKVs of others that `select` ranks.

        Args:
            server_round: the slot.
            grid: the members of the run.
        """
        ranked = self.select(self._own)
        self._offered = {name: [one.id for one in ranked[name]] for name in sorted(self._own)}
        votes, messages = self._votes(grid), []
        self._offered = {
            name: [id_ for id_ in ids if votes.get(id_, 1) >= self.config.accept_quorum]
            for name, ids in self._offered.items()
        }
        ids = sorted({id_ for offered in self._offered.values() for id_ in offered})
        mkvs = {mkv.id: mkv for mkv in self.pool.fetch(ids)}
        for name, offered in self._offered.items():
            grid.record.count(server_round, name, offered=len(offered))
            has = grid.members[name].known.union(offered)
            info = {
                "slot": server_round,
                "votes": {i: votes[i] for i in sorted(has & votes.keys())},
            }
            content = pack(info, [mkvs[id_] for id_ in offered])
            messages.append(grid.members[name].message(REEDIT, content))
        return messages

    def _votes(self, grid: RunGrid) -> dict[str, int]:
        """How many nodes want an MKV, for all that more than one does and a member may have.

        A node wants what it has uploaded, or reuses, for requests of its own.
        """
        if self.config.conflict_policy != "majority" and self.config.accept_quorum == 1:
            return {}
        members = grid.members.values()
        ids = set().union(*self._offered.values(), *(member.known for member in members))
        facts = self.pool.facts(sorted(ids))
        wanted = {
            fact: set(nodes) for fact, nodes in self.pool.authors(set(facts.values())).items()
        }
        for member in members:
            for id_ in member.wants & facts.keys():
                wanted[facts[id_]].add(member.name)
        counts = {id_: len(wanted[fact]) for id_, fact in facts.items()}
        return {id_: count for id_, count in counts.items() if count > 1}

    def aggregate_reedit(self, server_round: int, replies: Iterable[Message]) -> None:
        """Note what the nodes accepted, and keep their lookup keys of the next slot.

        Args:
            server_round: the slot.
            replies: the nodes' answers.
        """
        for member in self._grid.members.values():
            member.lookup = member.lookup[:0]
        for message in replies:
            name, info = self._grid.name_of(message), unpack_info(message.content)
            member = self._grid.members[name]
            try:
                member.lookup = lookup_of(message.content, member.lookup.shape[1])
            except FedEditError as error:
                self._grid.failed(name, server_round, "reedit", str(error))
            member.holds |= set(self._offered[name])
            found = (info["received_from"], info["rejections"])
            self._grid.record.received(server_round, name, *found)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: RunGrid
    ) -> list[Message]:
        """Ask every node for the metrics of its own model.

        Args:
            server_round: the slot.
            arrays: not sent.
            config: not sent.
            grid: the members of the run.
        """
        return evaluation_messages(grid, server_round, self.central)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing to add: the grid has recorded every node's metrics."""
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


def evaluation_messages(grid: RunGrid, slot: int, central: bool = False) -> list[Message]:
    """Messages that ask every member for its metrics.

    Args:
        grid: the members of the run.
        slot: the slot; 0 asks those for the unedited model that have not said it yet.
        central: evaluate the central ledger.
    """
    content = pack({"slot": slot, "central": central})
    names = sorted(grid.members) if slot else grid.record.unmeasured(sorted(grid.members))
    return [grid.members[name].message(EVALUATE, content) for name in names]


def _check_amount(count: int, most: int) -> None:
    """Raises FedEditError for an upload of more MKVs than a node may make in a slot."""
    if count > most:
        raise FedEditError(
            f"uploaded {count} MKVs, the run takes {most} from a node in a slot, so it takes none "
            "of them; lower requests-per-slot, or raise max-uploads-per-slot"
        )


def _check_again(again: Collection[str], asked: Collection[str]) -> None:
    """Raises FedEditError for MKVs of earlier slots that a node was not asked for."""
    unasked = set(again).difference(asked)
    if unasked:
        raise FedEditError(f"uploaded MKV {min(unasked)} again, which it was not asked for")


def _check_origin(name: str, slot: int, mkvs: Sequence[Record], again: Collection[str]) -> None:
    """Raises FedEditError for an upload that is not a node's own, or of a slot to come."""
    for mkv in mkvs:
        if mkv.node != name or (mkv.slot > slot and mkv.id not in again):
            raise FedEditError(
                f"uploaded MKV {mkv.id} says it is of node {mkv.node!r}, slot {mkv.slot}"
            )


Factory = Callable[[RunConfig, MKVPool, str], Strategy]


def stock_strategy(name: str) -> Factory:
    """What makes a strategy of Flower's, for however many nodes there are.

    Args:
        name: its class name.

    Raises:
        FedEditError: Flower has none of that name, or it needs arguments.
    """
    found = getattr(flower, name, None)
    if not inspect.isclass(found) or not issubclass(found, Strategy) or inspect.isabstract(found):
        raise FedEditError(
            f"run config: strategy = {name!r} must be one of {', '.join(STRATEGIES)}, or the class "
            "name of a Flower strategy, such as FedMedian"
        )
    needed = [
        parameter.name
        for parameter in inspect.signature(found).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    if needed:
        raise FedEditError(
            f"run config: strategy = {name!r} needs arguments ({', '.join(needed)}); add a factory "
            "to STRATEGIES in fedit_app/server/strategies.py"
        )
    wanted = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
    at_least = {name: 1 for name in wanted if name in inspect.signature(found).parameters}
    return lambda config, pool, fingerprint: found(**at_least)


# To add a strategy, name here what makes it from run config, pool and fingerprint.
STRATEGIES: dict[str, Factory] = {
    "fedit": FedEdit,
    "local": Local,
    "central": Central,
    "fedavg": stock_strategy("FedAvg"),
}


def strategy_named(name: str) -> Factory:
    """What makes the strategy of a run config.

    Args:
        name: a key of `STRATEGIES`, or the class name of a Flower strategy that needs no further
            arguments.

    Raises:
        FedEditError: there is none of that name, or it needs arguments.
    """
    return STRATEGIES.get(name) or stock_strategy(name)


def keeps_its_state(name: str) -> bool:
    """Whether a run of a strategy can be resumed: what it knows lies on disk, not in memory."""
    factory = strategy_named(name)
    return inspect.isclass(factory) and issubclass(factory, FedEdit)


def no_change(layers: Sequence[int], d_model: int, d_ff: int) -> ArrayRecord:
    """The global model that stock strategies start from: no change to any edited layer."""
    return arrays_record(
        {f"layer-{layer}": np.zeros((d_model, d_ff), np.float32) for layer in layers}
    )
