"""A grid without Ray: real messages, serialised and back, to the real ClientApp in this process."""

import tempfile
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedit_app.mkv.federation_key import FederationKey
from fedit_app.node.app import app as client_app
from fedit_app.protocol.messages import HELLO
from fedit_app.protocol.parcel import unwrap, wrap
from fedit_app.server.app import run_federation

RUN_ID = 7
NO_PLOTS = dict.fromkeys(("score", "facts", "change", "exchange", "cost"), "")
"""For reports of which only the text is read: their plots take longer than a small run."""

_secrets = tempfile.TemporaryDirectory()


class InProcessGrid(Grid):
    """Virtual nodes 101, 102, ... that answer in the order of `order`.

    `tamper(node_id, message)` may return a reply, raise to make the node crash, or return None to
    let the ClientApp answer; it sees the message out of its parcel, and its reply becomes one.
    Every message is kept as bytes in `sent` and `received`.
    """

    def __init__(
        self,
        run_config: dict,
        nodes: int,
        tamper: Callable[[int, Message], Message | None] = lambda node_id, message: None,
        order: Callable[[list[int]], list[int]] = lambda ids: ids,
        node_config: Callable[[int], dict] | None = None,
    ) -> None:
        self._tamper, self._order = tamper, order
        self.ids = [101 + number for number in range(nodes)]
        simulated = lambda number: {"partition-id": number, "num-partitions": nodes}  # noqa: E731
        self._contexts = {
            node_id: Context(
                run_id=RUN_ID,
                node_id=node_id,
                node_config=(node_config or simulated)(number),
                state=RecordDict(),
                run_config=run_config,
            )
            for number, node_id in enumerate(self.ids)
        }
        self._replies: dict[str, Message] = {}
        self.sent: list[bytes] = []
        self.received: list[bytes] = []

    def set_run(self, run):
        raise AssertionError("not used")

    @property
    def run(self):
        raise AssertionError("not used")

    def create_message(self, *args, **kwargs):
        raise AssertionError("not used")

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("not used")

    def get_node_ids(self) -> Iterable[int]:
        return self._order(list(self.ids))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        by_node = {message.metadata.dst_node_id: message for message in messages}
        for node_id in self._order(list(by_node)):
            message = by_node[node_id]
            message.metadata.__dict__["_message_id"] = str(uuid4())
            reply = self._answer(node_id, message)
            if reply is not None:
                self._replies[message.metadata.message_id] = reply
        return [message.metadata.message_id for message in by_node.values()]

    def _answer(self, node_id: int, message: Message) -> Message | None:
        wire = recorddict_to_proto(message.content).SerializeToString()
        self.sent.append(wire)
        message.content = unwrap(message.content)
        try:
            reply = self._tamper(node_id, message)
        except TimeoutError:
            return None
        except RuntimeError as error:
            return Message(Error(code=2, reason=str(error)), reply_to=message)
        reply = reply or self._client(node_id, message, wire)
        wire = recorddict_to_proto(_parcel(reply)).SerializeToString()
        self.received.append(wire)
        content = recorddict_from_proto(ProtoRecordDict.FromString(wire))
        return Message(content, reply_to=message)

    def reply(self, node_id: int, message: Message) -> Message:
        """What the ClientApp answers, out of its parcel; for a tamper that changes it."""
        wire = recorddict_to_proto(message.content).SerializeToString()
        reply = self._client(node_id, message, wire)
        reply.content = unwrap(reply.content)
        return reply

    def _client(self, node_id: int, message: Message, wire: bytes) -> Message:
        content = recorddict_from_proto(ProtoRecordDict.FromString(wire))
        arrived = Message(
            content=content,
            message_type=message.metadata.message_type,
            dst_node_id=node_id,
        )
        arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
        return client_app(arrived, self._contexts[node_id])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(id_) for id_ in message_ids if id_ in self._replies]


def _parcel(reply: Message) -> RecordDict:
    """A reply's content as its ClientApp sends it, also after somebody has changed it."""
    hello = reply.metadata.message_type == HELLO
    return reply.content if hello else wrap(reply.content)


def federation_key() -> str:
    """The file of the federation key that all real nodes of the tests have."""
    file = Path(_secrets.name) / "federation.key"
    FederationKey.shared_by_all_at(file)
    return str(file)


def real_node(name: str, file: Path, idle: float = 0, key: Path | None = None) -> dict:
    """The node configuration of a real node; with `idle` 0 this process answers for it."""
    return {
        "name": name,
        "data-path": str(file),
        "federation-key": str(key or federation_key()),
        "worker-idle-seconds": idle,
    }


def federate(
    run_config: dict, nodes: int, plots: bool = False, **options
) -> tuple[dict, InProcessGrid]:
    """Run a whole federation in this process; returns results and the grid."""
    grid = InProcessGrid(run_config, nodes, **options)
    return federate_on(grid, run_config, plots), grid


def federate_on(grid: InProcessGrid, run_config: dict, plots: bool = False) -> dict:
    """Run a whole federation on a grid; its report has no plots, unless `plots` asks for them."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 1, 1
    context = Context(
        run_id=RUN_ID, node_id=0, node_config={}, state=RecordDict(), run_config=run_config
    )
    undrawn = patch("fedit_app.report.html._run_plots", return_value=NO_PLOTS)
    with nullcontext() if plots else undrawn:
        return run_federation(grid, context).as_json()
