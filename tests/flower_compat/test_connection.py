"""Following a run through Flower's command line, here a script that plays its part."""

import json
import sys
import tomllib
from pathlib import Path

import pytest

from fedit_app.flower_compat import connection
from fedit_app.flower_compat.connection import Connection, SuperLink
from fedit_app.support.errors import FedEditError

# Plays `flwr`: every call takes the next answer of its command from calls.json, the last one again.
FLWR = """\
import json, pathlib, sys
file = pathlib.Path("calls.json")
answers = json.loads(file.read_text())
queue = answers[sys.argv[1]]
print(queue[0] if len(queue) == 1 else queue.pop(0))
with open("called.txt", "a") as stream:
    stream.write(" ".join(sys.argv[1:]) + "\\n")
file.write_text(json.dumps(answers))
"""


@pytest.fixture
def flower(tmp_path, monkeypatch):
    """Gives `flower(run=[...], log=[...], ls=[...])`: a connection on which Flower answers so."""
    script = tmp_path / "bin" / "flwr"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\n{FLWR}", encoding="utf-8")
    script.chmod(0o700)
    monkeypatch.setattr(connection, "tool", lambda name: str(tmp_path / "bin" / name))
    monkeypatch.setattr(connection, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(connection, "_POLL_SECONDS", 0.0)

    def flower(**answers: list[str]) -> Connection:
        (tmp_path / "calls.json").write_text(json.dumps(answers), encoding="utf-8")
        return Connection.to(SuperLink("127.0.0.1:1", insecure=True), tmp_path)

    return flower


def runs(status: str) -> str:
    return json.dumps({"runs": [{"status": status}]})


def follow(connected: Connection) -> tuple[str, list[str]]:
    lines: list[str] = []
    return connected.follow("7", lines.append), lines


def test_a_run_is_followed_to_its_status(flower):
    connected = flower(log=["one\n\x1b[92mtwo\x1b[0m"], ls=[runs("finished:failed")])

    assert follow(connected) == ("finished:failed", ["one", "two"])


def test_a_log_that_broke_off_is_taken_up_again(flower):
    """Flower tells a log from its beginning each time; nobody wants to read it twice."""
    logs = ["one\ntwo", "one", "one\ntwo\nthree"]
    connected = flower(log=logs, ls=[runs("running"), runs("running"), runs("finished:completed")])

    assert follow(connected) == ("finished:completed", ["one", "two", "three"])


def test_a_superlink_that_stops_answering(flower):
    connected = flower(log=["one"], ls=["connection refused"])

    with pytest.raises(FedEditError, match="run 7: the SuperLink does not answer: connection ref"):
        follow(connected)


def test_submitting(flower, tmp_path):
    connected = flower(run=['{"run-id": 12}'])
    run_id = connected.submit(Path("/app"), {"num-slots": 2, "model": 'a "b"'}, {"num-x": 4})

    assert run_id == "12"
    called = (tmp_path / "called.txt").read_text().split("\n")[0]
    assert called.startswith("run /app fedit --run-config ")
    assert called.endswith("--federation-config num-x=4 --format json")
    text = (tmp_path / "run-config.toml").read_text()
    assert tomllib.loads(text) == {"num-slots": 2, "model": 'a "b"'}


def test_a_run_that_flower_refuses(flower):
    with pytest.raises(FedEditError, match="Flower refused the run: no such key"):
        flower(run=["no such\nkey"]).submit(Path("/app"), {})


def test_a_connection_with_tls(tmp_path):
    Connection.to(SuperLink("example.org:8000", Path("/ca.crt")), tmp_path)

    text = (tmp_path / "flwr" / "config.toml").read_text(encoding="utf-8")
    assert 'address = "example.org:8000"' in text
    assert 'root-certificates = "/ca.crt"' in text and "insecure = false" in text
