"""A SuperLink with many nodes is asked one question for the answers of all of them."""

import threading
import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from fedit_app.flower_compat.answers import arrived
from fedit_app.server import pulls
from fedit_app.server.pulls import Pulls

RUN_ID = 7
NODES = 50


class SuperLink:
    """A SuperLink's side of an exchange; each node answers with its number."""

    def __init__(self):
        self.questions, self.confirmed = [], []
        self.gone = threading.Event()
        self._heads, self._contents, self._part = {}, {}, set()

    def answered(self, number: int, whole: bool = True) -> str:
        """Lets a node answer a message; returns the message's id."""
        asked = Message(RecordDict(), dst_node_id=number, message_type="query.echo")
        asked.metadata.__dict__["_message_id"] = f"asked-{number}"
        reply = Message(RecordDict({"it": ConfigRecord({"number": number})}), reply_to=asked)
        tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        reply.metadata.__dict__["_message_id"] = tree.object_id
        self._contents |= {id_: found.deflate() for id_, found in objects.items()}
        self._part |= set() if whole else {tree.object_id}
        head = message_to_proto(remove_content_from_message(reply))
        self._heads[asked.metadata.message_id] = head, tree
        return asked.metadata.message_id

    def PullMessages(self, request):  # noqa: N802
        self.questions.append(list(request.message_ids))
        found = [self._heads.pop(id_) for id_ in request.message_ids if id_ in self._heads]
        heads, trees = zip(*found, strict=True) if found else ((), ())
        return PullAppMessagesResponse(messages_list=heads, message_object_trees=trees)

    def PullObject(self, request):  # noqa: N802
        if request.object_id in self._part:
            self.gone.wait()
        content = self._contents[request.object_id]
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request):  # noqa: N802
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def superlink():
    superlink = SuperLink()
    yield superlink
    superlink.gone.set()


@pytest.fixture
def grid(superlink):
    """Flower's own grid before it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 1, 1
    grid = HttpGrid(token="of a task")
    grid.set_run(Run.create_empty(run_id=RUN_ID))
    grid._client = superlink
    return grid


def test_one_question_for_all_answers_and_each_is_fetched_on_its_own(grid, superlink):
    ids = [superlink.answered(number) for number in (1, 2)]
    found = dict(arrived(grid, [*ids, "asked-3"]))

    assert set(found) == set(ids), "of the third there is none yet"
    assert superlink.confirmed == [], "nothing is fetched yet"
    for number, id_ in enumerate(ids, start=1):
        (message,) = found[id_]()
        assert message.content["it"]["number"] == number
        assert message.metadata.reply_to_message_id == id_
    assert len(superlink.confirmed) == 2
    assert superlink.questions == [[*ids, "asked-3"]]


def test_what_the_superlink_is_asked_does_not_grow_with_the_nodes(grid, superlink):
    waiting = Pulls(grid)
    ids = [superlink.answered(number) for number in range(NODES)]
    assert waiting.ask([f"asked-{number}" for number in range(2 * NODES)])
    assert len(superlink.questions) == 1
    assert len(superlink.confirmed) == len(ids)


def test_an_answer_of_which_a_part_is_missing_delays_no_other(grid, superlink, monkeypatch):
    monkeypatch.setattr(pulls, "_PATIENCE_SECONDS", 0.2)
    waiting = Pulls(grid)
    left = {superlink.answered(number, whole=number != 3) for number in range(NODES)}

    def fetch(until: set[str]) -> None:
        deadline = time.monotonic() + 60
        while left != until and time.monotonic() < deadline:
            left.difference_update(m.metadata.reply_to_message_id for m in waiting.ask(left))
        assert left == until

    fetch({"asked-3"})
    assert waiting.unfinished == {"asked-3"}
    superlink.gone.set()
    fetch(set())
    assert len(superlink.questions) == 1, "what is arriving is not asked for again"
