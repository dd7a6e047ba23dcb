"""The gate before the SuperLink: who gets to which path."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from fedit_app.flower_compat.gate import GATE_PATH, MOST_BYTES, MOST_OF_STRANGERS, Gate
from fedit_app.support.processes import free_port

ROOT = Path(__file__).parents[2]
HERE, SERVER, ELSEWHERE = "127.0.0.1", "192.0.2.1", "198.51.100.4"


def ask(
    path: str, client: str | None, control_from=(), kind: str = "http", headers=(), known=False
) -> int | str | None:
    """The status with which a request is answered; "app" if the application got it."""
    got: list = []

    async def app(scope, receive, send):
        got.append("app")

    async def send(message):
        got.append(message.get("status"))

    scope = {"type": kind, "path": path, "server": (SERVER, 8000), "headers": list(headers)}
    scope["client"] = (client, 40000) if client else None
    asyncio.run(Gate(app, control_from, lambda scope: known)(scope, None, send))
    return got[0] if got else None


@pytest.mark.parametrize("path", ["/v1/fleet/activate-node", "/v1/fleet/pull-messages", "/health"])
@pytest.mark.parametrize("client", [HERE, ELSEWHERE, "2001:db8::1"])
def test_nodes_get_what_they_need(path, client):
    assert ask(path, client) == "app"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/pull-task-input",
        "/docs",
        "/openapi.json",
        "/",
        "/health/",
        "/v1/fleet",
        "/V1/fleet/activate-node",
        "/v1/fleet/../control/start-run",
    ],
)
@pytest.mark.parametrize("client", [ELSEWHERE, "2001:db8::1", "::ffff:198.51.100.4", "x", None])
def test_the_rest_is_closed_to_others(path, client):
    assert ask(path, client) == 403


@pytest.mark.parametrize("client", [HERE, "127.0.0.9", "::1", "::ffff:127.0.0.1", SERVER])
@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/runtime/pull-task-input"])
def test_the_machine_itself_gets_everything(path, client):
    assert ask(path, client) == "app"


def test_control_from_opens_the_control_api_alone():
    networks = ["198.51.100.0/24", "203.0.113.9"]
    for client in (ELSEWHERE, "203.0.113.9", "::ffff:203.0.113.9"):
        assert ask("/v1/control/start-run", client, networks) == "app"
        assert ask("/v1/runtime/pull-task-input", client, networks) == 403
    assert ask("/v1/control/start-run", "203.0.113.10", networks) == 403


def test_what_is_no_request():
    assert ask("", None, kind="lifespan") == "app"
    assert ask("/v1/control/x", ELSEWHERE, kind="websocket") is None
    assert ask(GATE_PATH, ELSEWHERE) == 200


def sized(length: int) -> list[tuple[bytes, bytes]]:
    return [(b"content-length", b"%d" % length)]


@pytest.mark.parametrize("path", ["/v1/fleet/push-messages", "/v1/fleet/push-object"])
def test_a_stranger_sends_no_more_than_a_little(path):
    assert ask(path, ELSEWHERE, headers=sized(MOST_OF_STRANGERS)) == "app"
    for length in (MOST_OF_STRANGERS + 1, MOST_BYTES, 600 * 2**20, 10**30):
        assert ask(path, ELSEWHERE, headers=sized(length)) == 413


def test_a_registered_node_sends_messages():
    path = "/v1/fleet/push-object"
    assert ask(path, ELSEWHERE, headers=sized(MOST_BYTES), known=True) == "app"
    assert ask(path, ELSEWHERE, headers=sized(MOST_BYTES + 1), known=True) == 413


def test_a_body_without_a_length_is_not_read():
    chunked = [(b"transfer-encoding", b"chunked")]
    for known in (True, False):
        assert ask("/v1/fleet/push-object", ELSEWHERE, headers=chunked, known=known) == 411


def test_the_operator_sends_apps():
    path = "/v1/control/start-run"
    assert ask(path, HERE, headers=sized(10 * 2**20)) == "app"
    assert ask(path, HERE, headers=sized(MOST_BYTES + 1)) == 413


SERVE = """
import sys, uvicorn
from fedit_app.flower_compat.gate import Gate

async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b""})

uvicorn.run(Gate(app), port=int(sys.argv[1]), log_level="critical", lifespan="off")
"""
CONNECTIONS = 1000


async def press(port: int) -> list[bytes]:
    """What a thousand strangers at once are told who announce 600 MB, or no end at all."""
    connections = [await asyncio.open_connection(HERE, port) for _ in range(CONNECTIONS)]
    lengths = [
        b"Content-Length: 629145600",
        b"Transfer-Encoding: chunked",
        b"Content-Length: 65536",
    ]
    for (_, writer), length in zip(connections, lengths * CONNECTIONS, strict=False):
        writer.write(b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n")
        # As much as they get through: of a body that is not read, the rest stays with them.
        writer.write(bytes(65536) if length.endswith(b"65536") else b"10000\r\n" + bytes(2**20))
    told = [await _status(reader) for reader, _ in connections]
    for _, writer in connections:
        writer.transport.abort()
    return told


async def _status(reader: asyncio.StreamReader) -> bytes:
    """The status of an answer; nothing if the connection was closed over what was still coming."""
    try:
        line = await asyncio.wait_for(reader.readline(), 60)
        return line.split()[1] if line else b""
    except ConnectionError:
        return b""


@pytest.mark.integration
def test_a_thousand_strangers_take_little_memory(record_property):
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], cwd=ROOT)
    try:
        _wait_for(port)
        process = psutil.Process(server.pid)
        before, peak, over = process.memory_info().rss, [0], threading.Event()

        def watch():
            while not over.wait(0.01):
                peak[0] = max(peak[0], process.memory_info().rss)

        threading.Thread(target=watch, daemon=True).start()
        told = asyncio.run(press(port))
        over.set()
        assert set(told[0::3]) <= {b"413", b""} and set(told[1::3]) <= {b"411", b"400", b""}
        assert set(told[2::3]) == {b"401"} and peak[0] - before < 200e6
        record_property("most_bytes", peak[0] - before)
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection((HERE, port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise AssertionError("the server does not start")
