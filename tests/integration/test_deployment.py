"""A real SuperLink with TLS and SuperNode authentication, and real SuperNodes, on loopback."""

import json

import httpx
import inprocess
import psutil
import pytest
import tiny
import tomli_w

from benchmarks.loopback import PATIENCE, ROOT, Deployment
from fedit_app.cli.main import main
from fedit_app.deployment.node_setup import allow_app
from fedit_app.deployment.server_setup import init_server
from fedit_app.flower_compat.registry import register_node, unregister_node
from fedit_app.ledger.index import read_index
from fedit_app.report import load_results
from fedit_app.support.errors import FedEditError
from fedit_app.support.processes import family

NODES = ("bank", "hospital", "museum")
CONTESTED = {"bank": "city", "hospital": "London"}
RUN = {
    "num-slots": 1,
    "compose-rounds": 2,
    **tiny.RUN_CONFIG,
    "slot-timeout": 120.0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The demo's requests, and at two nodes one more each, about one subject."""
    folder = tmp_path_factory.mktemp("data")
    for name in NODES:
        lines = (tiny.DEMO / f"{name}.jsonl").read_text(encoding="utf-8")
        if name in CONTESTED:
            fact = {"id": "mint", "subject": "Royal Mint", "prompt": "{}", "slot": 1}
            lines += json.dumps(fact | {"target_new": CONTESTED[name]}) + "\n"
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, tiny_folder, data):
    """Three registered nodes, a stranger whom nobody registered, one with another authority."""
    folder = tmp_path_factory.mktemp("deployment")
    with Deployment(folder) as deployment:
        for name in NODES:
            deployment.add_node(name, data / f"{name}.jsonl", tiny_folder)
        allow_app(deployment.nodes["museum"], ROOT)  # it runs no other code than this
        deployment.add_node("stranger", tiny.DEMO / "newsroom.jsonl", tiny_folder)
        other = init_server(folder / "other", ["127.0.0.1"])
        deployment.add_node("misled", tiny.DEMO / "newsroom.jsonl", tiny_folder, other.ca_cert)
        deployment.start_server()
        deployment.register(*NODES, "misled")
        deployment.start_nodes(*NODES, "stranger", "misled")
        yield deployment


@pytest.fixture(scope="module")
def finished(deployment):
    """A finished run over one slot: (result of the command, its run folder)."""
    preset = deployment.folder / "small.toml"
    preset.write_text(tomli_w.dumps(RUN), encoding="utf-8")
    deployment.wait_online(*NODES)
    result = deployment.run("--config", str(preset), "--nodes", "3")
    assert result.returncode == 0, result.stdout + result.stderr
    (folder,) = deployment.server.path("runs").iterdir()
    return result, folder


def test_the_run_is_the_same_as_in_one_process(finished, deployment, data, tiny_folder, tmp_path):
    """Counts and figures are those of nodes with the same files and keys, without a network."""

    def same(number: int) -> dict:
        key = deployment.nodes[NODES[number]].federation_key
        return inprocess.real_node(NODES[number], data / f"{NODES[number]}.jsonl", key=key)

    values = {**RUN, "model": str(tiny_folder), "output-dir": str(tmp_path / "run")}
    expected, _ = inprocess.federate(values, len(NODES), node_config=same)
    results = load_results(finished[1] / "results.json").as_json()

    assert results["status"] == "completed"
    assert results["failed_nodes"] == []
    assert results["model"]["fingerprint"] == expected["model"]["fingerprint"]
    (ledger,) = (deployment.nodes["bank"].state_dir / "bank").glob("*/ledger")
    assert read_index(ledger)["fingerprint"] != results["model"]["fingerprint"], "it was sealed"
    assert sorted(results["nodes"]) == sorted(NODES)
    for name in NODES:
        assert results["nodes"][name]["own"] == expected["nodes"][name]["own"]
        assert results["nodes"][name]["federation"] is None
    (slot,), (wanted,) = results["slots"], expected["slots"]
    counts = ("requests", "optimised", "reused", "uploaded", "offered", "accepted", "conflicts")
    counts += ("composed",)
    assert {key: slot[key] for key in counts} == {key: wanted[key] for key in counts}
    assert slot["uploaded"] > 0 and slot["accepted"] > 0


def test_the_user_sees_the_run(finished):
    result, folder = finished

    assert "3 nodes take part: bank, hospital, museum" in result.stdout
    assert "slot 1 evaluate: museum answered" in result.stdout
    assert str(folder / "results.json") in result.stdout
    assert "not in this run, as they are not online: misled" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_two_nodes_compose_the_value_of_a_contested_key(finished):
    """Sealed, over TLS: holders that the server cannot read are asked round by round."""
    result, folder = finished
    assert result.stdout.count("slot 1 compose: bank answered") >= 3
    assert result.stdout.count("slot 1 compose: hospital answered") >= 3
    (slot,) = load_results(folder / "results.json").slots
    assert slot.seconds.compose > 0


def test_state_lies_where_it_belongs(finished, deployment):
    """Each ledger on its own node, under a folder of this run; none on the server."""
    federation = {
        path.parent.parent.name
        for name in NODES
        for path in (deployment.nodes[name].state_dir / name).glob("*/ledger/index.json")
    }
    assert len(federation) == 1
    assert f'federation = "{federation.pop()}"' in (finished[1] / "config.toml").read_text()
    assert not (finished[1] / "nodes").exists()


def test_an_unregistered_node_is_told_what_to_do(finished, deployment):
    process = deployment.processes["stranger"]
    told = deployment.log("stranger")

    assert process.wait(PATIENCE) == 2
    assert "does not know its key" in told
    assert "fedit server register DIR --node-key stranger.pub --name stranger" in told
    assert "Traceback" not in told
    assert "stranger" not in finished[0].stdout


def test_a_node_with_another_authority_does_not_trust_the_server(finished, deployment):
    process = deployment.processes["misled"]
    told = deployment.log("misled")

    assert process.wait(PATIENCE) == 2
    assert "certificate is not trusted" in told and "CA certificate" in told
    assert "Traceback" not in told


def test_the_control_api_is_closed_to_other_machines(deployment):
    url = f"https://{deployment.server.local_address}"
    elsewhere = {"X-Forwarded-For": "192.0.2.1"}  # which a proxy on this machine would say
    with httpx.Client(verify=str(deployment.server.ca_cert), headers=elsewhere) as client:
        assert client.get(f"{url}/health").status_code == 200
        for path in ("/v1/control/start-run", "/v1/runtime/get-nodes", "/docs"):
            assert client.post(url + path).status_code == 403
        assert client.post(f"{url}/v1/fleet/activate-node").status_code not in (200, 403)


def test_registering_twice_and_wrongly(deployment):
    server, nodes = deployment.server.superlink, deployment.nodes
    register_node(server, nodes["bank"].public_key, "bank")

    with pytest.raises(FedEditError, match="bank2|registered as 'bank' already"):
        register_node(server, nodes["bank"].public_key, "bank2")
    with pytest.raises(FedEditError, match="registered with another key"):
        register_node(server, nodes["stranger"].public_key, "bank")
    unregister_node(server, "misled")
    assert sorted(deployment.known()) == sorted(NODES)
    with pytest.raises(FedEditError, match="takes no key twice.*fedit keys rotate"):
        register_node(server, nodes["misled"].public_key, "misled")
    with pytest.raises(FedEditError, match="no node of that name; registered are: bank"):
        unregister_node(server, "misled")


def test_a_killed_node_comes_back_at_once(finished, deployment):
    """Flower takes a killed node for online for a minute, and refuses it as long."""
    before = deployment.known()["museum"].node_id
    deployment.kill("museum")
    assert "museum" in deployment.online()
    deployment.log_file("museum").unlink()
    deployment.start_nodes("museum")
    deployment.wait(lambda: "SuperNode ID" in deployment.log("museum"), "museum is not back")

    assert f"SuperNode ID: {before}" in deployment.log("museum")


def test_a_supernode_that_ends_by_itself_is_started_again(finished, deployment):
    """As over an error of the SuperLink; the command goes on."""

    def connections() -> int:
        return deployment.log("hospital").count("SuperNode ID")

    supernode = next(
        process
        for process in deployment.members("hospital")
        if any(part.endswith("flower-supernode") for part in process.cmdline())
    )
    before = connections()
    supernode.kill()
    deployment.wait(lambda: connections() == before + 1, "the hospital is not back")
    assert "the SuperNode ended by itself (exit -9)" in deployment.log("hospital")
    assert deployment.processes["hospital"].poll() is None


def test_what_starts_runs_is_started_again(finished, deployment):
    def superexec():
        alive = [p for p in deployment.members("server") if p.status() != psutil.STATUS_ZOMBIE]
        return [p for p in alive if any("flower-superexec" in part for part in p.cmdline())]

    (first,) = superexec()
    first.kill()
    noted = "the SuperExec has ended (status -9)"
    deployment.wait(lambda: noted in deployment.log("server"), "nobody noticed")
    deployment.wait(superexec, "no SuperExec")
    assert superexec() != [first]


def test_one_folder_runs_once(deployment, capsys):
    assert main(["node", "start", str(deployment.nodes["bank"].folder)]) == 2
    assert "is already running" in capsys.readouterr().err


def test_doctor_on_both_sides(deployment, capsys):
    assert main(["doctor", str(deployment.server.folder)]) == 0
    told = capsys.readouterr().out
    assert "closed to all but this machine" in told
    assert "bank is online" in told

    assert main(["doctor", str(deployment.nodes["bank"].folder)]) == 0
    told = capsys.readouterr().out
    assert "answers over TLS" in told and "bank is running" in told

    assert main(["doctor", str(deployment.nodes["stranger"].folder)]) == 1
    assert "| FAIL | server | does not know the key of stranger" in capsys.readouterr().out


def test_all_end_when_they_are_asked_to(finished, deployment):
    """Last of all: nothing that they started is left."""
    members = {name: family(deployment.home(name)) for name in (*NODES, "server")}
    assert all(members.values())

    assert deployment.end("bank") == [0]
    deployment.wait(lambda: "bank" not in deployment.online(), "bank is still online")
    assert deployment.end("hospital", "museum", "server") == [0, 0, 0]
    left = [process for group in members.values() for process in group if process.is_running()]
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
