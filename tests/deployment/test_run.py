"""`fedit run --superlink`: what it finds, completes, checks and refuses."""

import re
from pathlib import Path

import pytest

from fedit_app.deployment.superlinks import find_superlink
from fedit_app.experiments import preflight
from fedit_app.flower_compat import launch
from fedit_app.flower_compat.connection import SuperLink
from fedit_app.flower_compat.registry import RegisteredNode
from fedit_app.support.errors import FedEditError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _flower(tmp_path, monkeypatch):
    """Flower's configuration with the connection `far`; three registered nodes, two online."""
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text(
        '[superlink]\ndefault = "far"\n[superlink.far]\naddress = "example.org:8000"\n'
        'root-certificates = "~/ca.crt"\n[superlink.local]\naddress = ":local:"\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    states = {"bank": "online", "court": "offline", "museum": "online"}
    nodes = [RegisteredNode(n, name, state, "") for n, (name, state) in enumerate(states.items())]
    monkeypatch.setattr(preflight, "registered_nodes", lambda superlink: nodes)


@pytest.fixture
def started(monkeypatch) -> list[dict]:
    """What would have been run; nothing is."""
    calls: list[dict] = []

    def deploy(app, config, superlink, on_line):
        calls.append({"app": app, "config": config, "superlink": superlink})
        return "finished:completed"

    monkeypatch.setattr(launch, "deploy", deploy)
    return calls


def test_a_run_on_the_nodes_of_a_server_folder(fedit, server, started, tmp_path, caplog):
    preset = tmp_path / "mine.toml"
    preset.write_text('model = "org/name"\nnum-slots = 2\n', encoding="utf-8")
    status, out, err = fedit(
        *("run", "--app", ROOT, "--superlink", server.folder, "--config", preset)
    )

    assert status == 0
    (call,) = started
    config = call["config"]
    assert call["superlink"] == SuperLink("127.0.0.1:8700", server.ca_cert)
    folder = Path(config.pop("output-dir"))
    assert folder.parent == server.folder / "runs"
    assert re.fullmatch(r"mine-\d{8}-\d{6}", folder.name)
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", config.pop("federation"))
    assert config == {"model": "org/name", "num-slots": 2}
    assert str(folder / "results.json") in out
    told = err + caplog.text  # whoever of the two listens to the log
    assert "not in this run, as they are not online: court" in told


def test_every_run_has_ledgers_of_its_own_unless_it_names_some(fedit, server, started):
    command = ("run", "--app", ROOT, "--superlink", server.folder)
    for more in ((), (), ("-c", "federation=hospitals")):
        assert fedit(*command, *more)[0] == 0

    first, second, named = (call["config"]["federation"] for call in started)
    assert first != second
    assert named == "hospitals"


def test_a_connection_by_name(fedit, started):
    status, out, _ = fedit("run", "--app", ROOT, "--superlink", "far")

    assert status == 0
    (call,) = started
    assert call["superlink"] == SuperLink("example.org:8000", Path("~/ca.crt").expanduser())
    assert "output-dir" not in call["config"]
    assert "RUN-ID of the server" in out


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("near", "neither a server's folder .* nor a connection .*there are: far, local"),
        ("local", "gives it no address HOST:PORT"),
    ],
)
def test_a_superlink_that_is_not_known(name, told):
    with pytest.raises(FedEditError, match=f"--superlink {name}: .*{told}"):
        find_superlink(name)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--nodes", "3"), "3 must be online; online: bank, museum, offline: court"),
        (("--nodes", "0"), "--nodes 0 must be at least 1"),
        (("-c", "strategy=central"), "runs in simulation only"),
        (("-c", "strategy=fedbest"), "strategy = 'fedbest' must be one of"),
        (("-c", "editor=rome"), "editor"),
        (("-c", "num-slot=1"), "did you mean 'num-slots'"),
    ],
)
def test_what_is_refused(fedit, server, started, arguments, told):
    status, _, err = fedit("run", "--app", ROOT, "--superlink", server.folder, *arguments)

    assert status == 2
    assert told in err
    assert started == []


def test_a_strategy_that_another_app_may_know_is_left_to_its_run(fedit, server, started, tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.flwr.app.components]\nserverapp = "server_app:app"\n', encoding="utf-8"
    )
    command = ("run", "--superlink", server.folder, "-c", "strategy=fedbest")
    assert fedit(*command, "--app", tmp_path)[0] == 0
    assert started[0]["config"]["strategy"] == "fedbest"


def test_a_folder_that_is_in_use(fedit, server, started):
    (server.folder / "runs" / "old").mkdir()
    (server.folder / "runs" / "old" / "results.json").write_text("{}")
    output = ("--output-dir", server.folder / "runs" / "old")
    status, _, err = fedit("run", "--app", ROOT, "--superlink", server.folder, *output)

    assert status == 2
    assert "exists and is not an empty folder" in err
    (server.folder / "runs" / "old" / "results.json").unlink()
    (server.folder / "runs" / "old" / "mine.txt").touch()
    resumed = ("run", "--app", ROOT, "--superlink", server.folder, *output, "-c", "resume=true")
    assert "exists and is not an empty folder" in fedit(*resumed)[2], "it holds no run"
    assert fedit("run", "--app", ROOT, "--superlink", "far", *output)[0] == 0  # not this machine's


def test_a_failed_run_has_an_exit_status(fedit, server, monkeypatch):
    monkeypatch.setattr(launch, "deploy", lambda *_: "finished:failed")
    status, out, err = fedit("run", "--app", ROOT, "--superlink", server.folder)

    assert (status, out) == (1, "")
    assert "fedit: the run failed (finished:failed)" in err


def test_a_run_that_is_interrupted_is_stopped_on_the_server(monkeypatch):
    calls = []

    def interrupted(self, run_id, on_line):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.Connection, "submit", lambda *_: "7")
    monkeypatch.setattr(launch.Connection, "follow", interrupted)
    monkeypatch.setattr(launch.Connection, "stop", lambda self, run_id: calls.append(run_id))
    with pytest.raises(KeyboardInterrupt):
        launch.deploy(ROOT, {}, SuperLink("127.0.0.1:1"), print)
    assert calls == ["7"]
