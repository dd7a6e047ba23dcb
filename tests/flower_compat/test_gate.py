"""The gate before the SuperLink: who gets to which path."""

import asyncio

import pytest

from fedit_app.flower_compat.gate import GATE_PATH, Gate

HERE, SERVER, ELSEWHERE = "127.0.0.1", "192.0.2.1", "198.51.100.4"


def ask(path: str, client: str | None, control_from=(), kind: str = "http") -> int | str | None:
    """The status with which a request is answered; "app" if the application got it."""
    got: list = []

    async def app(scope, receive, send):
        got.append("app")

    async def send(message):
        got.append(message.get("status"))

    scope = {"type": kind, "path": path, "server": (SERVER, 8000)}
    scope["client"] = (client, 40000) if client else None
    asyncio.run(Gate(app, control_from)(scope, None, send))
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
