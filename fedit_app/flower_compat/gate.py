"""The gate: closes the SuperLink's control API to other machines.

A SuperLink serves all its APIs on one port, and the authentication of SuperNodes does not cover the
control API. Whoever reaches `/v1/control` can start a run, that is, run code on every node. The
gate stands before the SuperLink's routes and checks where a request comes from:

    /v1/fleet/...      anywhere: SuperNodes call it, and sign with their keys
    /health            anywhere
    /v1/control/...    this machine, and the networks of `control-from` in server.toml
    all other paths    this machine
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

GATE_PATH = "/fedit/gate"
_FLEET = "/v1/fleet/"
_CONTROL = "/v1/control/"
_HEALTH = "/health"


class Gate:
    """ASGI middleware that answers requests from the wrong place with 403.

    Args:
        app: the application behind the gate.
        control_from: networks that may call the control API as well as this machine.
    """

    def __init__(self, app: App, control_from: Sequence[str] = ()) -> None:
        self._app = app
        self._networks = [ipaddress.ip_network(part, strict=False) for part in control_from]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it; on `GATE_PATH`, answer that the gate is in place."""
        if scope["type"] == "http" and scope["path"] == GATE_PATH:
            await _answer(send, 200, "the control API is closed")
        elif scope["type"] == "lifespan" or self._open(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _answer(
                send, 403, "not from this address; see control-from in the server's server.toml"
            )

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
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
