"""What goes wrong among real nodes in a run over a real SuperLink, with TLS and authentication."""

import pytest
import tiny
import tomli_w
from deployment_kit import Deployment

from fedit_app.editing.ledger import read_index
from fedit_app.mkv import MKVPool
from fedit_app.reporting import load_results

NODES = ("bank", "hospital", "museum")
TIMEOUT = 30.0
RUN = {
    "num-slots": 3,
    "layers": "1-2",
    "contexts": 1,
    "value-steps": 5,
    "covariance-tokens": 400,
    "covariance-weight": 1.0,
    "slot-timeout": TIMEOUT,
}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, tiny_folder):
    """Three registered nodes, of which the museum is not running yet."""
    with Deployment(tmp_path_factory.mktemp("faults")) as deployment:
        for name in NODES:
            deployment.add_node(name, tiny.DEMO / f"{name}.jsonl", tiny_folder)
        deployment.start_server()
        deployment.register(*NODES)
        deployment.start_nodes("bank", "hospital")
        deployment.wait_online("bank", "hospital")
        yield deployment


@pytest.fixture(scope="module")
def folder(deployment):
    """The run: the hospital is killed in the re-edit of slot 1 and returns; the museum joins."""
    preset = deployment.folder / "faults.toml"
    preset.write_text(tomli_w.dumps(RUN), encoding="utf-8")
    run = deployment.start_run("--config", str(preset))
    answered = "slot 1 edit: hospital answered"
    deployment.wait(lambda: answered in deployment.log("run"), "no edit of slot 1")
    deployment.kill("hospital")
    deployment.start_nodes("hospital", "museum")
    assert run.wait(300) == 0, deployment.log("run")
    (folder,) = deployment.server.path("runs").iterdir()
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return load_results(folder / "results.json")


def test_the_report_names_node_slot_and_reason(results):
    assert results["status"] == "completed"
    assert {(f["node"], f["slot"]) for f in results["failed_nodes"]} == {("hospital", 1)}
    assert "reedit" in {f["stage"] for f in results["failed_nodes"]}
    assert all(
        ": " in f["reason"] or "slot-timeout" in f["reason"] for f in results["failed_nodes"]
    )


def test_the_others_finish_and_nobody_waits_longer_than_the_time_outs(results):
    assert [slot["nodes"]["bank"]["requests"] for slot in results["slots"]] == [5, 5, 5]
    assert all(max(slot["seconds"].values()) < TIMEOUT + 5 for slot in results["slots"])


def test_the_run_says_how_to_repeat_it_with_new_ledgers(folder):
    first = (folder / "config.toml").read_text(encoding="utf-8").splitlines()[0]
    assert "fedit run --superlink SUPERLINK -c federation= --config config.toml" in first


def test_who_comes_late_or_returns_catches_up(results):
    slots = [slot["nodes"] for slot in results["slots"]]
    assert "museum" not in slots[0]
    assert slots[1]["museum"]["requests"] == 10  # those of slot 1 as well
    # More than the bank's five of slot 2: those of slot 1 too, of which some are in conflict.
    assert slots[1]["hospital"]["received_from"]["bank"] > 5
    assert slots[1]["museum"]["received_from"]["bank"] > 5


def test_nothing_is_lost_or_applied_twice(results, folder, deployment):
    """Every upload is in the pool once; every node's own requests are fulfilled in its ledger."""
    pool = [row["id"] for row in MKVPool(str(folder / "pool")).rows(["id"])]
    assert len(pool) == len(set(pool)) == sum(slot["uploaded"] for slot in results["slots"]) == 45
    for name in NODES:
        (ledger,) = (deployment.nodes[name].state_dir / name).glob("*/ledger")
        entries = read_index(ledger)["entries"]
        ids = [entry["id"] for entry in entries]
        assert len(ids) == len(set(ids))
        assert set(ids) <= set(pool)
        assert sum(len(entry["requests"]) for entry in entries) == 15
        accepted = sum(
            sum(s["nodes"][name]["received_from"].values())
            for s in results["slots"]
            if name in s["nodes"]
        )
        assert len(ids) >= accepted
