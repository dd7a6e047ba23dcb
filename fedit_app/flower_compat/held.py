"""Questions of nodes for messages, held until there is a message.

A SuperNode asks its SuperLink every three seconds whether there is a message for it. Each question
takes some ten milliseconds of a processor, so that a few hundred nodes which do nothing but wait
keep a core busy, and of a stage a node hears up to three seconds late. Here the answer "no" is kept
back for some seconds; if a message for the node arrives meanwhile with all its content, its
question is asked once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from socket import socket
from typing import Any

from fedit_app.flower_compat.contract import require

with require("holding nodes' questions for messages"):
    import uvicorn
    from flwr.proto.runtime_pb2 import PushAppMessagesResponse

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOLD_SECONDS = 10.0
"""A SuperNode waits 30 seconds for an answer; proxies wait a minute."""
PULL_PATH = "/v1/fleet/pull-messages"
PUSH_PATH = "/v1/runtime/push-messages"
OBJECT_PATH = "/v1/runtime/push-object"
_MOST_SESSIONS = 1000


class Held:
    """ASGI middleware that keeps the answer "no message" back until there is one.

    Args:
        app: the SuperLink's application.
        known: a list in which it enters itself; see `end_with_server`.
    """

    def __init__(self, app: App, known: list[Held]) -> None:
        self._app = app
        known.append(self)
        self._waiting: dict[int, asyncio.Event] = {}  # node id -> a message has arrived
        self._arrivals, self._last = 0, dict[int, int]()  # node id -> which arrival was its last
        # Flower's id of a push -> nodes, and the objects of their messages that are yet to come.
        self._sessions: dict[str, tuple[set[int], set[str]]] = {}
        self._ending = False

    def end(self) -> None:
        """Answer all questions, and hold none from now on."""
        self._ending = True
        for waiting in self._waiting.values():
            waiting.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; hold it, or let others go, if it is one of those above."""
        path = scope["path"] if scope["type"] == "http" else ""
        if path == PULL_PATH:
            await self._pull(scope, receive, send)
        elif path == PUSH_PATH:
            answer = _Answer()
            await self._app(scope, receive, answer.keep)
            await answer.pass_on(send)
            self._announced(_request(scope), answer)
        elif path == OBJECT_PATH:
            await self._app(scope, receive, send)
            self._stored(_request(scope))
        else:
            await self._app(scope, receive, send)

    async def _pull(self, scope: Scope, receive: Receive, send: Send) -> None:
        again = {**scope, "state": dict(scope.get("state", {}))}
        arrivals, asked, answer = self._arrivals, _Asked(receive), _Answer()
        await self._app(scope, asked.receive, answer.keep)
        request = _request(scope)
        if answer.is_empty and request is not None and not self._ending:
            node = request.node.node_id
            if self._last.get(node, 0) > arrivals or await self._arrives(node, asked):
                answer = _Answer()
                await self._app(again, asked.repeat, answer.keep)
            elif asked.gone:
                return
        await answer.pass_on(send)

    async def _arrives(self, node: int, asked: _Asked) -> bool:
        """Whether a message arrives for a node before time is up or the node has gone."""
        arrived = self._waiting[node] = asyncio.Event()
        tasks = [asyncio.ensure_future(arrived.wait()), asyncio.ensure_future(asked.leaves())]
        try:
            await asyncio.wait(tasks, timeout=HOLD_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            if self._waiting.get(node) is arrived:  # not of a later question
                del self._waiting[node]
        return arrived.is_set() and not asked.gone and not self._ending

    def _announced(self, request: Any, answer: _Answer) -> None:
        """The server has announced messages, whose content it sends next."""
        if request is None or answer.status != 200:
            return
        nodes = {message.metadata.dst_node_id for message in request.messages_list}
        told = PushAppMessagesResponse.FromString(answer.body)
        if not told.objects_to_push:
            self._wake(nodes)
            return
        if len(self._sessions) >= _MOST_SESSIONS:  # of runs that have ended while they sent
            del self._sessions[next(iter(self._sessions))]
        self._sessions[told.session_id] = nodes, set(told.objects_to_push)

    def _stored(self, request: Any) -> None:
        """The server has sent a piece of content."""
        nodes, missing = self._sessions.get(request.session_id if request else "", (set(), set()))
        if missing:
            missing.discard(request.object_id)
            if not missing:
                del self._sessions[request.session_id]
                self._wake(nodes)

    def _wake(self, nodes: set[int]) -> None:
        self._arrivals += 1
        self._last |= dict.fromkeys(nodes, self._arrivals)
        for node in nodes & self._waiting.keys():
            self._waiting[node].set()


def _request(scope: Scope) -> Any:
    """What a request said, as Flower has read it; None if it could not."""
    return scope.get("state", {}).get("protobuf_request")


class _Asked:
    """A request that can be passed on twice."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._body: list[Event] = []
        self._left: list[Event] = []
        self.gone = False

    async def receive(self) -> Event:
        event = await self._receive()
        if event["type"] == "http.request":
            self._body.append(event)
            self._left.append(event)
        self.gone = self.gone or event["type"] == "http.disconnect"
        return event

    async def repeat(self) -> Event:
        return self._left.pop(0) if self._left else await self._receive()

    async def leaves(self) -> None:
        """Returns when whoever asked has gone away."""
        while not self.gone:
            await self.receive()


class _Answer:
    """A response that is kept before it is passed on."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    async def keep(self, event: Event) -> None:
        self._events.append(event)

    async def pass_on(self, send: Send) -> None:
        for event in self._events:
            await send(event)

    @property
    def status(self) -> int:
        return int(self._events[0]["status"]) if self._events else 0

    @property
    def body(self) -> bytes:
        return b"".join(event.get("body", b"") for event in self._events)

    @property
    def is_empty(self) -> bool:
        """Whether it is Flower's message without content, which takes no bytes."""
        return self.status == 200 and not self.body


def end_with_server(known: list[Held]) -> None:
    """Let a server of this process that is to end first answer the questions that it holds."""
    shutdown = uvicorn.Server.shutdown

    async def answer_first(server: uvicorn.Server, sockets: list[socket] | None = None) -> None:
        for held in known:
            held.end()
        await shutdown(server, sockets)

    uvicorn.Server.shutdown = answer_first  # type: ignore[assignment, method-assign]
