"""Flower's grid as a run sees it: nodes by name, answers in their order, failures recorded.

Every strategy talks to the nodes through a `RunGrid`, FedEdit's own and Flower's stock ones
alike, so all of them leave out the same nodes, wait no longer than `slot-timeout`, and leave the
same record.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedit_app.flower_compat.errors import meaning
from fedit_app.flower_compat.registry import openssh_key
from fedit_app.protocol.messages import (
    COMPOSE,
    EDIT,
    EVALUATE,
    HELLO,
    REEDIT,
    TRAIN,
    content_bytes,
    noted_memory,
    noted_seconds,
    unpack_info,
)
from fedit_app.protocol.metrics import Metrics
from fedit_app.protocol.parcel import unwrap, wrap
from fedit_app.protocol.schema import (
    ANSWERS,
    Answer,
    EditAnswer,
    EvaluateAnswer,
    HelloAnswer,
    LedgerAnswer,
    RoundAsk,
    TrainAnswer,
    is_name,
)
from fedit_app.protocol.signed import Question, require_signature
from fedit_app.server.pulls import Pulls, push
from fedit_app.server.record import RunRecord
from fedit_app.server.uploads import check_average
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import printable

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_LONGEST_REASON = 2000
_STAGES = {
    HELLO: "hello",
    EDIT: "edit",
    TRAIN: "edit",
    REEDIT: "reedit",
    COMPOSE: "compose",
    EVALUATE: "evaluate",
}


@dataclass
class Member:
    """A node that takes part.

    Attributes:
        name: its name.
        node_id: Flower's id of it in this run.
        lookup: (n, d_ff) lookup keys of its requests of the slot that comes next.
        wants: ids of MKVs that fulfil its own requests.
        holds: ids of other MKVs that it has, or has been offered and refused.
        withdrawn: ids of own MKVs that it has withdrawn, until the pool has been told.
    """

    name: str
    node_id: int
    lookup: np.ndarray = field(repr=False)
    wants: set[str] = field(default_factory=set, repr=False)
    holds: set[str] = field(default_factory=set, repr=False)
    withdrawn: set[str] = field(default_factory=set, repr=False)

    @property
    def known(self) -> set[str]:
        """Ids of the MKVs that need not be sent to it."""
        return self.wants | self.holds

    def message(self, message_type: str, content: RecordDict) -> Message:
        """A message to this node."""
        return Message(content=content, message_type=message_type, dst_node_id=self.node_id)


@dataclass(frozen=True)
class _Asked:
    """A message whose answer is waited for.

    Attributes:
        node_id: Flower's id of the node.
        known: the name under which it takes part or is registered; "" if it does neither.
        size: the message's size in bytes.
        question: the message, as its answer's signature names it.
    """

    node_id: int
    known: str
    size: int
    question: Question

    @property
    def name(self) -> str:
        """What the record calls the node if it says nothing of itself."""
        return self.known or f"node id {self.node_id}"


class RunGrid(Grid):
    """A grid restricted to the members of a run.

    Args:
        grid: Flower's grid.
        run_id: Flower's run id.
        record: where failures, traffic, counts and metrics go.
        timeout: most seconds to wait for the answers of one stage, of virtual nodes for the next
            answer.
        share: part of the nodes that were asked in a slot whose answers end a stage.
        evaluated: slot -> whether it is one in which the nodes are evaluated.

    Attributes:
        members: name -> node that takes part.
        share: see above.
        silent: name -> member that has failed in some stage since it last said hello: what its
            ledger has got meanwhile is not known here.
        newcomers: lets nodes join in a slot, and returns their names.
    """

    def __init__(
        self,
        grid: Grid,
        run_id: int,
        record: RunRecord,
        timeout: float,
        share: float,
        evaluated: Callable[[int], bool],
    ) -> None:
        self._grid, self._run_id, self._timeout, self._evaluated = grid, run_id, timeout, evaluated
        self.share = share
        self.record = record
        self._keys: dict[int, str] = {}  # of nodes that are registered under a name
        self.members: dict[str, Member] = {}
        self.silent: dict[str, Member] = {}
        self._simulated: set[bool] = set()  # what nodes have said of themselves
        self.newcomers: Callable[[int], list[str]] = lambda slot: []

    def name_of(self, reply: Message) -> str:
        """The name of the member that sent an answer."""
        return self._names()[reply.metadata.src_node_id]

    def _names(self) -> dict[int, str]:
        return {member.node_id: name for name, member in self.members.items()}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send the messages of one stage and wait; who does not answer is recorded.

        Evaluations of slots that are not evaluated are not sent.

        Args:
            messages: one per node, all of one kind and slot.
            timeout: most seconds to wait; None for the run's slot-timeout.

        Returns:
            The answers that are no errors, in the order of the nodes' names.

        Raises:
            FedEditError: no node answered an edit stage.
        """
        sent = list(messages)
        stage = _STAGES[sent[0].metadata.message_type] if sent else ""
        slot = _slot_of(sent[0].content) if sent else 0
        if stage == "evaluate" and slot and not self._evaluated(slot):
            sent = []
        names = self._names()
        sent.sort(key=lambda message: names.get(message.metadata.dst_node_id, ""))
        replies = self._exchange(slot, stage, sent, timeout or self._timeout) if sent else []
        replies.sort(key=lambda reply: names.get(reply.metadata.src_node_id, ""))
        for reply in replies if stage != "hello" else ():
            answer = ANSWERS[reply.metadata.message_type].read(reply.content)
            self._note(slot, self.name_of(reply), answer)
        if stage == "edit" and not replies:
            raise FedEditError(f"slot {slot}: no node answered; see the reasons above")
        if stage == "evaluate" and slot:
            self.record.close_slot(slot)
        return replies

    def _note(self, slot: int, name: str, answer: Answer) -> None:
        """Record what an answer says, of FedEdit's own stages and of a stock strategy's alike."""
        if isinstance(answer, TrainAnswer):
            counts = {key: getattr(answer, key) for key in ("requests", "optimised", "cached")}
            self.record.count(slot, name, **counts)
        if isinstance(answer, EditAnswer):
            counts = {key: getattr(answer, key) for key in ("warm_started", "renewed")}
            self.record.count(slot, name, **counts)
        if isinstance(answer, LedgerAnswer):
            self.record.count(slot, name, quarantined=answer.quarantined)
            self.record.ledger_head(slot, name, answer.head)
        if isinstance(answer, EvaluateAnswer):
            self.record.measured(slot, name, answer.model_dump(exclude={"node"}))

    def _exchange(
        self, slot: int, stage: str, messages: Sequence[Message], timeout: float
    ) -> list[Message]:
        """Send messages, and record what becomes of each; returns the answers that are sound."""
        stage = "before" if stage == "evaluate" and not slot else stage
        began = time.perf_counter()
        waiting = self._push(slot, messages)
        self.record.progress.asks(slot, stage, (asked.known for asked in waiting.values()))
        pulls = Pulls(self._grid)
        replies: list[Message] = []
        enough = math.ceil(round(self.share * len(messages), 6)) if slot else len(messages)
        for reply in self._arriving(pulls, waiting, began, timeout, lambda: len(replies) >= enough):
            asked = waiting.pop(reply.metadata.reply_to_message_id, None)
            if asked is None:
                logger.warning("slot %d %s: an answer came twice; the first counts", slot, stage)
                continue
            name = asked.name
            try:
                if reply.has_content():
                    reply.content = unwrap(reply.content)
                # What it says of itself counts if it is registered under no name, as virtual nodes.
                name = asked.known or _introduced(reply) or asked.name
                self._require_signature(asked, reply)
                answer, sent = self._read(slot, reply), asked.question.content
                if _is_stock(sent):
                    check_average(reply.content, sent, answer)
            except FedEditError as error:
                self.failed(name, slot, stage, str(error))
                continue
            if isinstance(answer, HelloAnswer):
                self._simulated.add(answer.simulated)
            replies.append(reply)
            self._note_cost(slot, stage, reply, asked.size)
            self.record.progress.heard(slot, stage, name, *_scores(answer))
            done, total = len(messages) - len(waiting), len(messages)
            logger.info("slot %d %s: %s answered, %d of %d", slot, stage, name, done, total)
        reason = f"no answer within {timeout:g} s (slot-timeout)"
        if waiting and len(replies) >= enough:
            reason = f"no answer when {enough} of {len(messages)} had come (stage-share)"
        for id_, asked in waiting.items():
            begun = ": it began to send one" if id_ in pulls.unfinished else ""
            self.failed(asked.name, slot, stage, reason + begun)
        self.record.took(slot, stage, time.perf_counter() - began)
        return replies

    def _push(self, slot: int, messages: Sequence[Message]) -> dict[str, _Asked]:
        """Send messages; returns what is waited for by Flower's id of each."""
        contents = [message.content for message in messages]
        sizes = [*map(content_bytes, contents)]
        self.record.traffic(slot, down=sum(sizes))
        for message in messages:
            if message.metadata.message_type != HELLO:
                message.content = wrap(message.content)
        push(self._grid, messages)  # gives them their ids
        names = self._names()
        if any(m.metadata.dst_node_id not in names for m in messages):
            names = self.registered_names() | names
        waiting = {}
        for message, content, size in zip(messages, contents, sizes, strict=True):
            told = message.metadata
            known, id_ = names.get(told.dst_node_id, ""), told.message_id
            question = Question(self._run_id, id_, told.message_type, known, content)
            waiting[id_] = _Asked(told.dst_node_id, known, size, question)
        return waiting

    def _arriving(
        self,
        pulls: Pulls,
        waiting: Mapping[str, _Asked],
        began: float,
        timeout: float,
        enough: Callable[[], bool],
    ) -> Iterator[Message]:
        """The answers as they come, until no more are waited for or time is up.

        Args:
            pulls: where they come from.
            waiting: what is waited for; the caller takes out what has arrived.
            began: when the stage began; the time over sending its messages counts.
            timeout: most seconds to wait for all, of virtual nodes for the next answer.
            enough: whether those that the caller has taken suffice.
        """
        heard = began
        while waiting and not enough():
            asked_at = time.perf_counter()
            answers = pulls.ask(list(waiting))
            yield from answers
            if answers and self._simulated == {True}:  # virtual nodes wait for each other
                heard = time.perf_counter()
            if time.perf_counter() - heard >= timeout:
                return
            # A busy SuperLink is asked less often.
            asking = time.perf_counter() - asked_at
            time.sleep(max(_POLL_SECONDS, asking) if waiting else 0)

    def failed(self, name: str, slot: int, stage: str, reason: str) -> None:
        """Record that a member's part of a slot is lost; it is to say hello again, see `welcome`.

        Args:
            name: the node.
            slot: the slot.
            stage: what it failed in.
            reason: why, in words that quote nothing of a node's text.
        """
        self.record.failed(name, slot, stage, reason)
        if stage != "hello" and name in self.members:
            self.silent[name] = self.members[name]

    def _note_cost(self, slot: int, stage: str, reply: Message, down: int) -> None:
        """Record what a member's part of a slot's stage took."""
        name = self._names().get(reply.metadata.src_node_id)
        if slot and name and stage != "hello":
            up, seconds = content_bytes(reply.content), noted_seconds(reply.content)
            self.record.cost(slot, name, stage, up, down, seconds)
            self.record.memory(slot, name, noted_memory(reply.content))

    def _require_signature(self, asked: _Asked, reply: Message) -> None:
        """Raises FedEditError unless the asked node has signed, if a key of it is registered."""
        key = self._keys.get(asked.node_id)
        if key and reply.has_content():
            require_signature(reply.content, asked.question, key)

    def _read(self, slot: int, reply: Message) -> Answer:
        """What an answer says.

        Raises:
            FedEditError: it says why there is none, or cannot be read.
        """
        if reply.has_error():
            raise FedEditError(meaning(reply.error))
        self.record.traffic(slot, up=content_bytes(reply.content))
        info = unpack_info(reply.content)
        if "error" in info:
            error = info["error"]
            raise FedEditError(
                printable(error[:_LONGEST_REASON])
                if isinstance(error, str)
                else "it gave no reason"
            )
        return ANSWERS[reply.metadata.message_type].parse(info)

    def get_node_ids(self) -> list[int]:
        """Flower's ids of the members, in the order of their names."""
        return [self.members[name].node_id for name in sorted(self.members)]

    def all_node_ids(self) -> list[int]:
        """Flower's ids of all connected nodes, members or not."""
        return list(self._grid.get_node_ids())

    def registered_names(self) -> dict[int, str]:
        """Flower's id -> the name under which a node was registered, where one was."""
        nodes = [node for node in self._grid.get_nodes() if node.name]
        self._keys |= {node.node_id: openssh_key(node.public_key) for node in nodes}
        return {node.node_id: node.name for node in nodes}

    def set_run(self, run: Any) -> None:
        """See `Grid`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """See `Grid`."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See `Grid`."""
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`."""
        return self._grid.pull_messages(message_ids)


def _introduced(reply: Message) -> str:
    """The name that a node gives itself; "" if it gives none that can be shown."""
    try:
        name = unpack_info(reply.content).get("node") if reply.has_content() else None
    except FedEditError:
        return ""
    return name if is_name(name) else ""


def _scores(answer: Answer) -> tuple[Metrics | None, Metrics | None]:
    """What an answer says of a node's own and of the federation's facts."""
    if isinstance(answer, EvaluateAnswer):
        return answer.own, answer.federation
    return None, None


def _is_stock(content: RecordDict) -> bool:
    """Whether a message is one of Flower's own strategies, and its answer is averaged."""
    return "config" in content.config_records


def _slot_of(content: RecordDict) -> int:
    """The slot that a message is about; stock strategies call it the server round."""
    if _is_stock(content):
        return RoundAsk.parse(dict(content.config_records["config"])).server_round
    return int(unpack_info(content).get("slot", 0))
