"""A node that asks for messages gets its answer when there is one, not seconds later."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import Message, Metadata, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesRequest, PushAppMessagesResponse

from fedit_app.flower_compat import held
from fedit_app.flower_compat.held import OBJECT_PATH, PULL_PATH, PUSH_PATH, Held

ONE, OTHER = 1, 2
SOON = 5.0  # seconds, far less than a question is held in these tests


class SuperLink:
    """As much of a SuperLink as the middleware sees: what it is asked and what it answers."""

    def __init__(self):
        self.asked: list[int] = []
        self.messages: set[int] = set()  # nodes for which there is one
        self.refused = False

    async def __call__(self, scope, receive, send):
        said = TYPES[scope["path"]].FromString((await receive())["body"])
        status, answer = 200, b""
        if self.refused:
            status, answer = 401, b"no"
        elif scope["path"] == PULL_PATH:
            self.asked.append(said.node.node_id)
            if said.node.node_id in self.messages:
                self.messages.discard(said.node.node_id)
                answer = PullMessagesResponse(messages_list=[Message()]).SerializeToString()
        elif scope["path"] == PUSH_PATH:
            self.messages |= {message.metadata.dst_node_id for message in said.messages_list}
            told = PushAppMessagesResponse(session_id="one", objects_to_push=["head", "body"])
            answer = told.SerializeToString()
        scope["state"]["protobuf_request"] = said
        await send({"type": "http.response.start", "status": status})
        await send({"type": "http.response.body", "body": answer})


TYPES = {
    PULL_PATH: PullMessagesRequest,
    PUSH_PATH: PushAppMessagesRequest,
    OBJECT_PATH: PushObjectRequest,
}


@pytest.fixture
def server(monkeypatch):
    """A SuperLink behind the middleware, and ways to ask it."""
    monkeypatch.setattr(held, "HOLD_SECONDS", 60.0)
    app, known = SuperLink(), []
    middleware = Held(app, known)
    assert known == [middleware]

    async def ask(path, request, gone=None) -> tuple[int, bytes]:
        events = [{"type": "http.request", "body": request.SerializeToString()}]

        async def receive():
            if events:
                return events.pop()
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        found: list = [0, b""]

        async def send(event):
            found[:] = [event.get("status", found[0]), event.get("body", b"")]

        await middleware({"type": "http", "path": path, "state": {}}, receive, send)
        return found[0], found[1]

    def pull(node, gone=None):
        return asyncio.ensure_future(
            ask(PULL_PATH, PullMessagesRequest(node=Node(node_id=node)), gone)
        )

    async def announce(*nodes):
        messages = [Message(metadata=Metadata(dst_node_id=node)) for node in nodes]
        await ask(PUSH_PATH, PushAppMessagesRequest(messages_list=messages))

    async def store(object_id):
        await ask(OBJECT_PATH, PushObjectRequest(session_id="one", object_id=object_id))

    return SimpleNamespace(app=app, held=middleware, pull=pull, announce=announce, store=store)


async def settled(task) -> bool:
    """Whether a question has been answered at once, or is held."""
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(task), 0.05)
    return task.done()


def test_a_question_is_held_until_a_message_has_come_with_all_its_content(server):
    async def scene():
        one, other = server.pull(ONE), server.pull(OTHER)
        assert not await settled(one)
        await server.announce(ONE)
        assert not await settled(one), "whoever fetches it now would ask again and again"
        await server.store("head")
        assert not await settled(one)
        await server.store("body")
        status, body = await asyncio.wait_for(one, SOON)
        assert (status, len(PullMessagesResponse.FromString(body).messages_list)) == (200, 1)
        assert not await settled(other), "there is none for it"
        assert server.app.asked.count(OTHER) == 1
        other.cancel()

    asyncio.run(scene())


def test_a_message_that_comes_while_the_answer_is_on_its_way_is_not_missed(server):
    async def scene():
        await server.announce(ONE)
        server.app.messages.clear()

        async def late(scope, receive, send):
            await SuperLink.__call__(server.app, scope, receive, send)
            if scope["path"] == PULL_PATH and len(server.app.asked) == 1:
                server.app.messages.add(ONE)
                await server.store("head")
                await server.store("body")

        server.held._app = late
        _, body = await asyncio.wait_for(server.pull(ONE), SOON)
        assert body

    asyncio.run(scene())


def test_time_is_up_without_a_message(server, monkeypatch):
    monkeypatch.setattr(held, "HOLD_SECONDS", 0.1)
    assert asyncio.run(_answer(server)) == (200, b"")
    assert server.app.asked == [ONE]


async def _answer(server):
    return await asyncio.wait_for(server.pull(ONE), SOON)


def test_a_refusal_is_not_held(server):
    server.app.refused = True
    assert asyncio.run(_answer(server)) == (401, b"no")


def test_nothing_is_fetched_for_a_node_that_has_gone(server):
    async def scene():
        gone = asyncio.Event()
        question = server.pull(ONE, gone)
        assert not await settled(question)
        gone.set()
        await asyncio.wait_for(question, SOON)
        await server.announce(ONE)
        await server.store("head")
        await server.store("body")

    asyncio.run(scene())
    assert server.app.asked == [ONE] and server.app.messages == {ONE}


def test_a_server_that_ends_answers_at_once(server):
    async def scene():
        question = server.pull(ONE)
        assert not await settled(question)
        server.held.end()
        assert await asyncio.wait_for(question, SOON) == (200, b"")
        assert await asyncio.wait_for(server.pull(OTHER), SOON) == (200, b"")

    asyncio.run(scene())
