"""FedEdit's own strategies: the two stages of every slot, and what needs no exchange."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedit_app.config.run_config import RunConfig
from fedit_app.mkv import Form, Record
from fedit_app.pool import MKVPool, Ranked, SelectionConfig
from fedit_app.pool.superseded import supersede, superseded_by
from fedit_app.pool.withdraw import confirm, told_of, withdraw, withdrawn
from fedit_app.protocol.messages import (
    EDIT,
    EVALUATE,
    REEDIT,
    unpack_lookup,
    unpack_mkvs,
)
from fedit_app.protocol.schema import (
    ConflictIds,
    EditAnswer,
    EditAsk,
    EvaluateAsk,
    ReeditAnswer,
    ReeditAsk,
)
from fedit_app.server.composition import Composition
from fedit_app.server.contests import Contest, contests, is_settled, of_one_key
from fedit_app.server.grid import Member, RunGrid
from fedit_app.server.quorum import receipts, within_quorum
from fedit_app.server.slot import Slot
from fedit_app.server.uploads import check_again, check_amount, check_origin, form_of, within
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

    Attributes:
        first_slot: the slot to start with; greater than 1 when an earlier run is resumed.
        kinds: of how many kinds of contexts the run's MKVs have a pair.
        slot: the slot that is under way.
        form: what the run's MKVs look like.
    """

    central = False
    exchange = True

    def __init__(self, config: RunConfig, pool: MKVPool, fingerprint: str) -> None:
        self.config, self.pool, self.fingerprint = config, pool, fingerprint
        self.selection = SelectionConfig(
            # Of all that it is served a node then chooses itself.
            "all" if config.selection == "personal" else config.selection,
            config.signature,
            config.centred,
            config.similarity_threshold,
            config.top_k,
        )
        self.first_slot = self.kinds = 1
        self.slot: Slot
        self.form: Form
        self._tried: set[frozenset[str]] = set()

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
        known = {name: self.slot.grid.members[name].known for name in own}
        return self.pool.select(signatures, self.fingerprint, self.selection, known)

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *_: Any, **__: Any) -> Result:
        """Run all slots: edit, re-edit, compose, evaluate.

        Args:
            grid: the members of the run, a `RunGrid`.
            initial_arrays: not sent, as FedEdit's nodes keep their own ledgers; they tell the form
                of the run's MKVs.

        Raises:
            FedEditError: no node answered the edit stage of a slot.
        """
        run, none = _run_grid(grid), ConfigRecord()
        self.form = form_of(initial_arrays, self.config.sketch_width, self.kinds)
        self.summary()
        for slot in range(self.first_slot, self.config.num_slots + 1):
            if slot > self.first_slot and run.newcomers(slot):
                run.send_and_receive(evaluation_messages(run, 0))
            edits = self.configure_train(slot, initial_arrays, none, run)
            self.aggregate_train(slot, run.send_and_receive(edits))
            if self.exchange:
                reedits = self.configure_reedit(self.slot)
                self.aggregate_reedit(self.slot, run.send_and_receive(reedits))
                self.compose(self.slot)
            self._note_conflicts(self.slot)
            evaluations = self.configure_evaluate(slot, initial_arrays, none, run)
            self.aggregate_evaluate(slot, run.send_and_receive(evaluations))
        return Result()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Edit stage: the slot, and MKVs of others whose lookup keys equal those of its requests.

        Args:
            server_round: the slot.
            arrays: not sent.
            config: not sent.
            grid: the members of the run, a `RunGrid`.
        """
        run = _run_grid(grid)
        members = [run.members[name] for name in sorted(run.members)]
        members = members[: 1 if self.central else None]
        self.slot = Slot(server_round, run)
        withdrawn: dict[str, list[str]] = {}
        candidates: dict[str, list[str]] = {}
        if self.exchange:
            withdrawn, candidates = self._withdrawn(members), self._candidates(members)
            self.slot.missing = {member.name: self._missing(member) for member in members}
        messages = []
        for member in members:
            told = told_of(withdrawn, member.known)
            self.slot.told[member.name] = set(told)
            asked = EditAsk(
                slot=server_round,
                central=self.central,
                upload=self.exchange,
                missing=self.slot.missing.get(member.name, []),
                withdrawn=told,
            )
            mkvs = self.pool.fetch(candidates.get(member.name, []))
            messages.append(member.message(EDIT, asked.packed(mkvs)))
        return messages

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
        arrived: dict[str, list[Record]] = {}
        for message in replies:
            name = self.slot.grid.name_of(message)
            try:
                arrived[name] = self._take(self.slot, name, message.content)
            except FedEditError as error:
                self.slot.grid.failed(name, server_round, "edit", str(error))
        # In one step, so that which MKV stands for a fact does not depend on who answered first.
        self.pool.append([mkv for name in sorted(arrived) for mkv in arrived[name]])
        return None, None

    def _take(self, slot: Slot, name: str, content: RecordDict) -> list[Record]:
        """Check a node's part of a slot, and note it in the slot and of the member.

        Returns:
            The MKVs that it has uploaded.

        Raises:
            FedEditError: it may not have sent what it sent; none of it counts.
        """
        answer = EditAnswer.read(content)
        again = set(answer.again)
        check_again(again, slot.missing.get(name, ()))
        mkvs = unpack_mkvs(content, self.fingerprint, self.config.mkv_precision, self.form)
        new = [mkv for mkv in mkvs if mkv.id not in again]
        check_amount(len(new), self.config.max_uploads_per_slot)
        check_origin(name, slot.number, mkvs, again)
        self.pool.check(mkvs)
        self._check_superseded(name, answer.supersedes, mkvs)
        member = slot.grid.members[name]
        reused = self._reused(member, answer.reused)
        member.wants |= {*answer.reused, *(mkv.id for mkv in mkvs)}
        member.holds |= {id_ for pair in answer.conflicts for id_ in (pair.held, pair.gave_way)}
        slot.own[name] = [*new, *self.pool.fetch(reused)]
        slot.note_conflicts(name, answer.conflicts)
        supersede(self.pool, answer.supersedes)
        confirm(self.pool, name, slot.told[name].intersection(answer.gone))
        counts = {"reused": len(answer.reused), "uploaded": len(mkvs)}
        slot.grid.record.count(slot.number, name, **counts)
        return mkvs

    def _reused(self, member: Member, ids: Sequence[str]) -> list[str]:
        """Those of the MKVs that a node says it reuses that the pool holds.

        It may have others in its ledger from a run with another pool.
        """
        if not self.exchange:
            return []
        pooled = self.pool.facts(ids)
        invented = set(ids) - pooled.keys() - member.known
        if invented:
            raise FedEditError(f"reuse of MKV {min(invented)}, which it has never been sent")
        return [id_ for id_ in ids if id_ in pooled]

    def configure_reedit(self, slot: Slot) -> list[Message]:
        """Re-edit stage: for every node that has edited, the MKVs of others that `select` ranks.

        Args:
            slot: with the MKVs of the edit stage; what is offered is noted there.
        """
        ranked = self.select(slot.own)
        ids = {name: [one.id for one in ranked[name]] for name in sorted(slot.own)}
        votes, quorum = self._votes(slot.grid, ids), self.config.accept_quorum
        slot.offered = within_quorum(self.pool, slot.grid.members, ids, quorum)
        fetched = self.pool.fetch(sorted(set().union(*slot.offered.values())))
        mkvs, messages = {mkv.id: mkv for mkv in fetched}, []
        older = superseded_by(self.pool, mkvs)
        for name, offered in slot.offered.items():
            slot.grid.record.count(slot.number, name, offered=len(offered))
            member = slot.grid.members[name]
            told = sorted(member.known.union(offered) & votes.keys())
            asked = ReeditAsk(
                slot=slot.number,
                votes={id_: votes[id_] for id_ in told},
                supersedes={id_: older[id_] for id_ in offered if id_ in older},
            )
            messages.append(member.message(REEDIT, asked.packed([mkvs[id_] for id_ in offered])))
        return messages

    def _votes(self, grid: RunGrid, ranked: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """How many nodes want an MKV, for all that more than one does and a member may have.

        A node wants what it has uploaded, or reuses, for requests of its own.
        """
        if self.config.conflict_policy != "majority":
            return {}
        members = grid.members.values()
        ids = set().union(*ranked.values(), *(member.known for member in members))
        facts = self.pool.facts(sorted(ids))
        wanted = {
            fact: set(nodes) for fact, nodes in self.pool.authors(set(facts.values())).items()
        }
        for member in members:
            for id_ in member.wants & facts.keys():
                wanted[facts[id_]].add(member.name)
        counts = {id_: len(wanted[fact]) for id_, fact in facts.items()}
        return {id_: count for id_, count in counts.items() if count > 1}

    def aggregate_reedit(self, slot: Slot, replies: Iterable[Message]) -> None:
        """Note what the nodes accepted, and keep their lookup keys of the next slot.

        Args:
            slot: with what was offered.
            replies: the nodes' answers.
        """
        for member in slot.grid.members.values():
            member.lookup = member.lookup[:0]
        for message in replies:
            name, answer = slot.grid.name_of(message), ReeditAnswer.read(message.content)
            member = slot.grid.members[name]
            try:
                lookup = unpack_lookup(message.content, member.lookup.shape[1])
                member.lookup = within(lookup, self.config.max_uploads_per_slot, name)
            except FedEditError as error:
                slot.grid.failed(name, slot.number, "reedit", str(error))
            member.holds |= set(slot.offered[name])
            member.wants |= set(slot.offered[name]).intersection(answer.agreed)
            found = (answer.received_from, answer.rejections)
            slot.grid.record.received(slot.number, name, *found)
            slot.note_conflicts(name, [*answer.conflicts, *answer.contested])
            slot.contested[name] = self._composable(answer.contested)

    def _composable(self, pairs: Sequence[ConflictIds]) -> list[ConflictIds]:
        keys = self.pool.keys({id_ for pair in pairs for id_ in (pair.held, pair.gave_way)})
        return of_one_key(pairs, keys, self.config.same_key_threshold)

    def compose(self, slot: Slot) -> None:
        """Let the holders of each contested key learn one value for it, see `Composition`.

        Args:
            slot: with what the nodes contest.
        """
        slot.contests = [c for c in contests(slot.contested) if self._may_compose(c)]
        if slot.contests:
            Composition(self.config, self.pool, self.fingerprint, slot, self.form).run()
        self._tried |= {frozenset(c.ids) for c in slot.contests if c.holders and not c.made}

    def _may_compose(self, contest: Contest) -> bool:
        """Whether a key was not tried before, and all who hear of its facts may accept them."""
        if frozenset(contest.ids) in self._tried:
            return False
        quorum, members = self.config.accept_quorum, self.slot.grid.members.values()
        found = receipts(self.pool, members, contest.ids) if quorum > 1 else {}
        return all(count >= quorum for count in found.values())

    def _check_superseded(
        self, name: str, supersedes: Mapping[str, Sequence[str]], mkvs: Sequence[Record]
    ) -> None:
        """Raises FedEditError unless a node supersedes its own MKVs only."""
        older = {id_ for ids in supersedes.values() for id_ in ids}
        uploaders = self.pool.uploaders(older)
        alien = [id_ for id_ in older if name not in uploaders.get(id_, [name])]
        if alien or not supersedes.keys() <= {mkv.id for mkv in mkvs}:
            raise FedEditError("MKVs of others, or MKVs that it did not send, superseded")

    def _note_conflicts(self, slot: Slot) -> None:
        """Record what no value was found for, and conflicts that nobody could compose."""
        settled = [contest for contest in slot.contests if contest.made]
        lone = {frozenset((p.held, p.gave_way)) for ps in slot.contested.values() for p in ps}
        tried = [set(contest.ids) for contest in slot.contests]
        for name, pairs in sorted(slot.conflicts.items()):
            for pair in pairs:
                ids = frozenset((pair.held, pair.gave_way))
                contested = ids in lone and not any(ids <= of for of in tried)
                if not contested and not is_settled(pair, settled):
                    slot.grid.record.conflict(slot.number, name, pair.held, pair.gave_way)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask every node for the metrics of its own model.

        Args:
            server_round: the slot.
            arrays: not sent.
            config: not sent.
            grid: the members of the run, a `RunGrid`.
        """
        return evaluation_messages(_run_grid(grid), server_round, self.central)

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
    content = EvaluateAsk(slot=slot, central=central).packed()
    names = sorted(grid.members) if slot else grid.record.unmeasured(sorted(grid.members))
    return [grid.members[name].message(EVALUATE, content) for name in names]


def _run_grid(grid: Grid) -> RunGrid:
    """The grid that FedEdit's strategies need, of which Flower's interface says less."""
    if not isinstance(grid, RunGrid):
        raise TypeError(f"FedEdit's strategies run on a RunGrid, not on a {type(grid).__name__}")
    return grid
