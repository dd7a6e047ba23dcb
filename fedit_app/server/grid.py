"""Flower's grid as a run sees it: nodes by name, answers in their order, failures recorded.

Every strategy talks to the nodes through a `RunGrid`, FedEdit's own and Flower's stock ones
alike, so all of them leave out the same nodes, wait no longer than `slot-timeout`, and leave the
same record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedit_app.protocol.checks import ANSWERS, require, text
from fedit_app.protocol.messages import (
    EDIT,
    EVALUATE,
    HELLO,
    REEDIT,
    TRAIN,
    content_bytes,
    noted_seconds,
    unpack_info,
)
from fedit_app.server.record import RunRecord
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_LONGEST_REASON = 2000
# What Flower's error codes mean to who reads the report (flwr.common.constant.ErrorCode).
_FLOWER_ERRORS = {
    1: "the node could not load the app; see its log",
    2: "the app failed on the node; see its log",
    3: "the message was gone before the node took it",
    4: "the answer was gone before the server took it",
    5: "the node is not connected",
    7: "the node refused the app's files",
    8: "the app crashed on the node; see its log",
}
_STAGES = {HELLO: "hello", EDIT: "edit", TRAIN: "edit", REEDIT: "reedit", EVALUATE: "evaluate"}


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


class RunGrid(Grid):
    """A grid restricted to the members of a run.

    Args:
        grid: Flower's grid.
        record: where failures, traffic, counts and metrics go.
        timeout: most seconds to wait for the answers of one stage, of virtual nodes for the next
            answer.
        evaluated: slot -> whether it is one in which the nodes are evaluated.

    Attributes:
        members: name -> node that takes part.
        silent: name -> member that has failed in some stage since it last said hello: what its
            ledger has got meanwhile is not known here.
        newcomers: lets nodes join in a slot, and returns their names.
    """

    def __init__(
        self, grid: Grid, record: RunRecord, timeout: float, evaluated: Callable[[int], bool]
    ) -> None:
        self._grid, self._timeout, self._evaluated = grid, timeout, evaluated
        self.record = record
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
            self._note(slot, stage, self.name_of(reply), unpack_info(reply.content))
        if stage == "edit" and not replies:
            raise FedEditError(f"slot {slot}: no node answered; see the reasons above")
        if stage == "evaluate" and slot:
            self.record.close_slot(slot)
        return replies

    def _note(self, slot: int, stage: str, name: str, info: Mapping[str, Any]) -> None:
        """Record what an answer says, of FedEdit's own stages and of a stock strategy's alike."""
        if stage == "edit":
            counts = {key: info[key] for key in ("requests", "optimised", "cached")}
            self.record.count(slot, name, **counts, warm_started=info.get("warm_started", 0))
        if stage == "evaluate":
            self.record.measured(slot, name, {part: info[part] for part in ANSWERS[EVALUATE]})
        self.record.count(slot, name, quarantined=info.get("quarantined", 0))
        for conflict in info.get("conflicts", ()):
            self.record.conflict(slot, name, conflict["held"], conflict["gave_way"])

    def _exchange(
        self, slot: int, stage: str, messages: Sequence[Message], timeout: float
    ) -> list[Message]:
        stage = "before" if stage == "evaluate" and not slot else stage
        names = self._names()
        sizes = [content_bytes(message.content) for message in messages]
        self.record.traffic(slot, down=sum(sizes))
        began = heard = time.perf_counter()
        self._grid.push_messages(messages)
        ids = [message.metadata.message_id for message in messages]  # given by the push
        down = dict(zip(ids, sizes, strict=True))
        waiting = {
            m.metadata.message_id: names.get(
                m.metadata.dst_node_id, f"node id {m.metadata.dst_node_id}"
            )
            for m in messages
        }
        replies: list[Message] = []
        while waiting:
            asked_at = time.perf_counter()
            answers = self._pull(list(waiting))
            for reply in answers:
                asked = reply.metadata.reply_to_message_id
                name = waiting.pop(asked)
                info, failure = self._read(slot, reply)
                said = (info or {}).get("node")
                if stage == "hello" and said and text(said):
                    name = said  # later on, whose answer it is does not depend on what it says
                if failure:
                    self.failed(name, slot, stage, failure)
                    continue
                if stage == "hello":
                    self._simulated.add(info["simulated"])
                replies.append(reply)
                self._note_cost(slot, stage, reply, down[asked])
                done, total = len(messages) - len(waiting), len(messages)
                logger.info("slot %d %s: %s answered, %d of %d", slot, stage, name, done, total)
            if answers and self._simulated == {True}:  # virtual nodes wait for each other
                heard = time.perf_counter()
            if time.perf_counter() - heard >= timeout:
                break
            # A SuperLink with much to do is not asked all the time.
            asking = time.perf_counter() - asked_at
            time.sleep(max(_POLL_SECONDS, asking) if waiting else 0)
        for name in waiting.values():
            self.failed(name, slot, stage, f"no answer within {timeout:g} s (slot-timeout)")
        self.record.took(slot, stage, time.perf_counter() - began)
        return replies

    def _pull(self, ids: Sequence[str]) -> list[Message]:
        """The answers that are there; none if the SuperLink failed over the question."""
        try:
            return list(self._grid.pull_messages(ids))
        except httpx.HTTPStatusError as error:
            if not error.response.is_server_error:
                raise
            status = error.response.status_code
            logger.warning("the SuperLink answered with error %d, see its log; asked again", status)
            return []

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

    def _read(self, slot: int, reply: Message) -> tuple[dict[str, Any] | None, str | None]:
        """What an answer says, and why it is none."""
        if reply.has_error():
            # Its reason may quote what an exception said; the code is all that is passed on.
            meaning = _FLOWER_ERRORS.get(reply.error.code, "see Flower's ErrorCode")
            return None, f"Flower error code {reply.error.code}: {meaning}"
        self.record.traffic(slot, up=content_bytes(reply.content))
        try:
            info = unpack_info(reply.content)
        except FedEditError as error:
            return None, str(error)
        if "error" in info:
            error = info["error"]
            return info, error[:_LONGEST_REASON] if isinstance(error, str) else "it gave no reason"
        try:
            require(info, ANSWERS[reply.metadata.message_type], "its answer")
        except FedEditError as error:
            return info, str(error)
        return info, None

    def get_node_ids(self) -> list[int]:
        """Flower's ids of the members, in the order of their names."""
        return [self.members[name].node_id for name in sorted(self.members)]

    def all_node_ids(self) -> list[int]:
        """Flower's ids of all connected nodes, members or not."""
        return list(self._grid.get_node_ids())

    def registered_names(self) -> dict[int, str]:
        """Flower's id -> the name under which a node was registered, where one was."""
        return {node.node_id: node.name for node in self._grid.get_nodes() if node.name}

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


def _slot_of(content: RecordDict) -> int:
    """The slot that a message is about; stock strategies call it the server round."""
    if "config" in content.config_records:
        return int(content.config_records["config"]["server-round"])
    return int(unpack_info(content).get("slot", 0))
