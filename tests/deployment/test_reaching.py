"""What server and node find out over TLS before they start, against a small HTTPS server."""

import http.server
import ssl
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from fedit_app.deployment.node_folder import NodeFolder
from fedit_app.deployment.node_setup import init_node
from fedit_app.deployment.reaching import check_clock, check_gate, clock_offset
from fedit_app.deployment.server_folder import ServerFolder
from fedit_app.deployment.server_setup import init_server
from fedit_app.flower_compat.registry import registered_nodes
from fedit_app.support.addresses import Unreachable
from fedit_app.support.errors import FedEditError
from fedit_app.support.processes import free_port


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers 404, with a clock that is `offset` seconds ahead."""

    offset = 0

    def do_HEAD(self):
        self.send_response_only(404)
        now = datetime.now(UTC) + timedelta(seconds=self.offset)
        self.send_header("Date", format_datetime(now, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_HEAD

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def reached(tmp_path) -> ServerFolder:
    """A server's folder for loopback."""
    return init_server(tmp_path / "reached", ["127.0.0.1"], free_port())


@pytest.fixture
def listening(reached):
    """Gives `listening(tls=True)`: something that listens where the server would."""
    started = []

    def listening(tls: bool = True, offset: int = 0) -> None:
        handler = type("Answers", (Answers,), {"offset": offset})
        found = http.server.ThreadingHTTPServer(("127.0.0.1", reached.settings.port), handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(reached.cert, reached.cert_key)
            found.socket = context.wrap_socket(found.socket, server_side=True)
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        started.append(found)

    yield listening
    for found in started:
        found.shutdown()
        found.server_close()


@pytest.fixture
def near(tmp_path, reached) -> NodeFolder:
    """A node of that server."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"id": "1", "subject": "a", "prompt": "{} is", "target_new": "b"}\n')
    return init_node(tmp_path / "near", "near", reached.addresses[0], reached.ca_cert, data)


def test_the_clocks_are_compared(near, listening):
    listening(offset=-60)

    assert 58 < clock_offset(near.superlink) < 62


@pytest.mark.parametrize(("ahead", "fine"), [(0, True), (-200, True), (6, False), (-400, False)])
def test_how_much_clocks_may_differ(ahead, fine):
    if fine:
        check_clock(ahead)
        return
    word = "ahead of" if ahead > 0 else "behind"
    with pytest.raises(FedEditError, match=f"clock: .* {abs(ahead)} s {word} the server.*NTP"):
        check_clock(ahead)


def test_nobody_there(near):
    with pytest.raises(Unreachable, match="not reachable.*is it running"):
        clock_offset(near.superlink)


def test_a_server_of_another_authority(near, listening, server):
    listening()
    near.ca_cert.write_bytes(server.ca_cert.read_bytes())

    with pytest.raises(FedEditError, match="certificate is not trusted.*CA certificate") as caught:
        clock_offset(near.superlink)
    assert not isinstance(caught.value, Unreachable)


def test_a_server_without_tls(near, listening):
    listening(tls=False)

    with pytest.raises(FedEditError, match="speaks no TLS"):
        clock_offset(near.superlink)


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_an_authority_that_cannot_be_read(near, listening, content):
    listening()
    near.ca_cert.unlink()
    if content is not None:
        near.ca_cert.write_bytes(content)

    with pytest.raises(FedEditError, match="ca-cert .*ca.crt: cannot be used"):
        clock_offset(near.superlink)


def test_a_superlink_without_the_gate_is_no_server(reached, listening):
    listening()
    with pytest.raises(FedEditError, match="without the gate that closes its control API"):
        check_gate(reached.local_address, reached.ca_cert)


def test_what_does_not_answer_is_not_registered_at(reached):
    with pytest.raises(FedEditError, match="does not answer.*start it: fedit server start"):
        registered_nodes(reached.superlink)


# Starting


def test_a_port_that_is_taken(fedit, reached, listening):
    listening()
    status, _, err = fedit("server", "start", reached.folder)

    assert status == 2
    assert f"cannot listen on 127.0.0.1:{reached.settings.port}" in err


def test_a_server_whose_key_others_may_read(fedit, reached):
    reached.cert_key.chmod(0o644)
    status, _, err = fedit("server", "start", reached.folder)

    assert status == 2
    assert "server.key: others may read this private key" in err


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda node: node.node_key.unlink(), "near.key: cannot be read"),
        (lambda node: node.node_key.write_text("x"), "near.key: not a private key"),
        (lambda node: node.node_key.chmod(0o644), "others may read this private key"),
        (lambda node: node.data_path.unlink(), "data file data.jsonl: cannot be read"),
        (lambda node: node.data_path.write_text("{}\n"), "line 1: field id, prompt"),
        (lambda node: node.ca_cert.unlink(), "ca-cert"),
    ],
)
def test_a_node_that_cannot_start(fedit, near, spoil, told):
    spoil(near)
    status, _, err = fedit("node", "start", near.folder)

    assert status == 2
    assert told in err
