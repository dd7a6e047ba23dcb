"""Flower's grid as a run sees it: nodes by name, answers in their order, failures recorded.

Every strategy talks to the nodes through a `RunGrid`, FedEdit's own and Flower's stock ones
alike, so all of them leave out the same nodes, wait no longer than `slot-timeout`, and leave the
same record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedit_app.errors import FedEditError
from fedit_app.federation.protocol import EVALUATE, TRAIN, content_bytes, unpack_info
from fedit_app.federation.record import RunRecord

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


@dataclass
class Member:
    """A node that takes part.

    Attributes:
        name: its name.
        node_id: Flower's id of it in this run.
        requests: number of its requests per slot.
        lookup: (n, d_ff) lookup keys of the slot that comes next.
    """

    name: str
    node_id: int
    requests: list[int]
    lookup: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Reply:
    """A node's answer that is not an error.

    Attributes:
        node: the node's name.
        info: the JSON part.
        message: the message itself.
    """

    node: str
    info: dict[str, Any]
    message: Message

    @property
    def content(self) -> RecordDict:
        """The records of the message."""
        return self.message.content


class RunGrid(Grid):
    """A grid restricted to the members of a run.

    Args:
        grid: Flower's grid.
        record: where failures, traffic and stock strategies' metrics go.
        timeout: most seconds to wait for the answers of one stage.
        evaluated: slot -> whether stock strategies evaluate in it.
    """

    def __init__(
        self, grid: Grid, record: RunRecord, timeout: float, evaluated: Callable[[int], bool]
    ) -> None:
        self._grid, self.record = grid, record
        self._timeout, self.evaluated = timeout, evaluated
        self.members: dict[str, Member] = {}

    def ask(
        self,
        slot: int,
        stage: str,
        message_type: str,
        contents: Mapping[int, RecordDict],
        names: Mapping[int, str],
    ) -> dict[str, Reply]:
        """Send one message a node and wait for the answers; who does not answer is recorded.

        Args:
            slot: the time slot, 0 before the first.
            stage: name of the stage in the record.
            message_type: Flower's message type.
            contents: node id -> content.
            names: node id -> name.

        Returns:
            Name -> answer, in the order of names.
        """
        messages = [
            Message(content=content, message_type=message_type, dst_node_id=node_id)
            for node_id, content in contents.items()
        ]
        return self._exchange(slot, stage, messages, names, self._timeout)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """What stock strategies call: a round of `train` or `evaluate`; see `Grid`.

        Returns:
            The answers without errors, in the order of names.

        Raises:
            FedEditError: no node answered a `train` round.
        """
        sent = list(messages)
        if not sent:
            return []
        stage = {TRAIN: "edit", EVALUATE: "evaluate"}[sent[0].metadata.message_type]
        slot = int(sent[0].content.config_records["config"]["server-round"])
        if stage == "evaluate" and not self.evaluated(slot):
            return []
        names = {member.node_id: name for name, member in self.members.items()}
        order = {node_id: name for name, node_id in sorted((n, i) for i, n in names.items())}
        sent.sort(key=lambda message: order[message.metadata.dst_node_id])
        replies = self._exchange(slot, stage, sent, names, timeout or self._timeout)
        for name, reply in replies.items():
            if stage == "edit":
                counts = {key: reply.info[key] for key in ("requests", "optimised")}
                self.record.count(slot, name, **counts)
            else:
                self.record.measured(slot, name, scopes(reply.info))
        if stage == "edit" and not replies:
            raise FedEditError(f"slot {slot}: no node answered; see the reasons above")
        if stage == "evaluate" or not self.evaluated(slot):
            self.record.close_slot(slot)
        return [reply.message for reply in replies.values()]

    def _exchange(
        self,
        slot: int,
        stage: str,
        messages: list[Message],
        names: Mapping[int, str],
        timeout: float,
    ) -> dict[str, Reply]:
        started = time.perf_counter()
        self.record.traffic(slot, down=sum(content_bytes(m.content) for m in messages))
        self._grid.push_messages(messages)
        waiting = {m.metadata.message_id: names[m.metadata.dst_node_id] for m in messages}
        asked = len(waiting)
        replies: dict[str, Reply] = {}
        while waiting and time.perf_counter() - started < timeout:
            for message in self._grid.pull_messages(list(waiting)):
                name = waiting.pop(message.metadata.reply_to_message_id)
                reply = self._read(slot, stage, name, message)
                if reply is not None:
                    replies[name] = reply
                logger.info(
                    "slot %d %s: %s answered, %d of %d",
                    slot,
                    stage,
                    name,
                    asked - len(waiting),
                    asked,
                )
            time.sleep(_POLL_SECONDS if waiting else 0)
        for name in waiting.values():
            self.record.failed(name, slot, stage, f"no answer within {timeout:g} s (slot-timeout)")
        self.record.took(slot, stage, time.perf_counter() - started)
        return dict(sorted(replies.items()))

    def _read(self, slot: int, stage: str, name: str, message: Message) -> Reply | None:
        """The answer, or None once its error is recorded."""
        if message.has_error():
            # The reason may quote what an exception said; the code is all that is passed on.
            self.record.failed(name, slot, stage, f"Flower error code {message.error.code}")
            return None
        self.record.traffic(slot, up=content_bytes(message.content))
        try:
            info = unpack_info(message.content)
        except FedEditError as error:
            self.record.failed(name, slot, stage, str(error))
            return None
        if "error" in info:
            self.record.failed(str(info.get("node") or name), slot, stage, str(info["error"]))
            return None
        return Reply(name, info, message)

    def get_node_ids(self) -> list[int]:
        """Flower's ids of the members, in the order of their names."""
        return [self.members[name].node_id for name in sorted(self.members)]

    def all_node_ids(self) -> list[int]:
        """Flower's ids of all connected nodes, members or not."""
        return list(self._grid.get_node_ids())

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


def scopes(info: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of an `evaluate` answer."""
    return {scope: info.get(scope) for scope in ("own", "federation")}
