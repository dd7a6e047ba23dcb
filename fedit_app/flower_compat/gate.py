"""The gate: closes the SuperLink's control API to other machines, and large bodies to strangers.

A SuperLink serves all its APIs on one port, and the authentication of SuperNodes does not cover the
control API. Whoever reaches `/v1/control` can start a run, that is, run code on every node. The
gate stands before the SuperLink's routes and checks where a request comes from:

    /v1/fleet/...      anywhere: SuperNodes call it, and sign with their keys
    /health            anywhere
    /v1/control/...    this machine, and the networks of `control-from` in server.toml
    all other paths    this machine

Flower reads the whole body of a request before it checks who has sent it. So the gate looks at the
signed headers itself, and lets only registered nodes send more than `MOST_OF_STRANGERS` bytes. A
body without a length, which could be of any, is refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

Known = Callable[[Scope], bool]

MOST_OF_STRANGERS = 64 * 2**10
MOST_BYTES = 64 * 2**20
"""Flower sends arrays in pieces of 5 MiB; a node's JSON has 16 MiB at most."""
GATE_PATH = "/fedit/gate"
_FLEET = "/v1/fleet/"
_CONTROL = "/v1/control/"
_HEALTH = "/health"


class Gate:
    """ASGI middleware that answers requests from the wrong place with 403.

    Args:
        app: the application behind the gate.
        control_from: networks that may call the control API as well as this machine.
        known: whether a request is signed by a node that is registered.
    """

    def __init__(
        self, app: App, control_from: Sequence[str] = (), known: Known = lambda scope: False
    ) -> None:
        self._app, self._known = app, known
        self._networks = [ipaddress.ip_network(part, strict=False) for part in control_from]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it; on `GATE_PATH`, answer that the gate is in place."""
        if scope["type"] == "http" and scope["path"] == GATE_PATH:
            await _answer(send, 200, "the control API is closed")
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif self._open(scope):
            await self._within(scope, receive, send)
        elif scope["type"] == "http":
            await _answer(
                send, 403, "not from this address; see control-from in the server's server.toml"
            )

    async def _within(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, unless its body is larger than the caller may send."""
        headers = dict(scope.get("headers", ()))
        if b"transfer-encoding" in headers:
            await _answer(send, 411, "the length of the body has to be given")
            return
        length = int(headers.get(b"content-length", 0))  # digits: the server has checked them
        if length > MOST_OF_STRANGERS:
            most = MOST_BYTES if await self._may_send_more(scope) else MOST_OF_STRANGERS
            if length > most:
                await _answer(send, 413, f"a body of {length} bytes; at most {most} are read")
                return
        await self._app(scope, receive, send)

    async def _may_send_more(self, scope: Scope) -> bool:
        if not scope["path"].startswith(_FLEET):
            return True  # which this machine and the operator's networks can reach only
        return await asyncio.to_thread(self._known, scope)

    def _open(self, scope: Scope) -> bool:
        path = scope["path"]
        if (path.startswith(_FLEET) and ".." not in path) or path == _HEALTH:
            return True
        caller = _address(scope.get("client"))
        if caller is None:
            return False
        if caller.is_loopback or caller == _address(scope.get("server")):
            return True
        return path.startswith(_CONTROL) and any(caller in network for network in self._networks)


def _address(endpoint: Sequence[Any] | None) -> IPAddress | None:
    """The IP address of an end of a connection; an IPv4 address in IPv6 form becomes IPv4."""
    try:
        address = ipaddress.ip_address(endpoint[0] if endpoint else "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers.append((b"connection", b"close"))  # what else the caller sends is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
