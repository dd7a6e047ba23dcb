"""What a node's own configuration and policy say, against the run's."""

import inprocess
import pytest
import tiny

from fedit_app.config.folders import ledger_folder, nodes_with_ledger
from fedit_app.config.node_config import node_run_config
from fedit_app.config.policy import Policy, site_policy
from fedit_app.config.run_config import RunConfig
from fedit_app.support.errors import FedEditError

RUN = RunConfig().as_dict() | {"model": "run/model", "state-dir": "/run/state", "device": "cuda"}


def test_what_belongs_to_the_node_is_the_nodes():
    own = {
        "name": "a",
        "data-path": "/own/data.jsonl",
        "state-dir": "/own/state",
        "model": "/own/model",
        "device": "cpu",
        "dtype": "bfloat16",
        "node-file": "/own/node.toml",
    }
    merged = node_run_config(RUN | {"device": "auto", "device-map": "balanced"}, own)

    config = RunConfig.parse(merged)
    assert (config.data_path, config.state_dir) == ("/own/data.jsonl", "/own/state")
    assert (config.model, config.device, config.dtype) == ("/own/model", "cpu", "bfloat16")
    assert config.dataset == "jsonl" and config.device_map is None
    changed = {key for key, value in merged.items() if RUN[key] != value}
    assert changed <= {"data-path", "state-dir", "model", "device", "dtype", "dataset"}


def test_a_device_map_of_the_node_replaces_the_device_of_the_run():
    merged = node_run_config(RUN, {"name": "a", "data-path": "/d", "device-map": "auto"})

    assert (merged["device"], merged["device-map"]) == ("auto", "auto")


def test_what_the_node_does_not_say_is_the_runs():
    merged = node_run_config(RUN, {"name": "a", "data-path": "/d", "model": ""})

    assert (merged["model"], merged["state-dir"]) == ("run/model", "/run/state")


def test_a_run_makes_no_node_keep_what_it_computes():
    run = RUN | {"work-cache": "/run/cache"}
    node = {"name": "a", "data-path": "/d"}

    assert node_run_config(run, node)["work-cache"] == ""
    assert node_run_config(run, node | {"work-cache": "/own"})["work-cache"] == "/own"
    simulated = {"partition-id": 0, "num-partitions": 2}
    assert node_run_config(run, simulated)["work-cache"] == "/run/cache"


def test_a_simulation_knows_no_nodes_of_their_own():
    simulated = {"partition-id": 0, "num-partitions": 2, "model": "/own/model"}

    assert node_run_config(RUN, simulated) == RUN


def test_the_client_app_takes_the_nodes_values(tiny_folder, tmp_path):
    """The run names a model and data that no node has; each has its own."""
    names = ("bank", "museum")
    run_config = {
        "model": "/nowhere/model",
        "layers": "1-2",
        "contexts": 0,
        "value-steps": 1,
        "covariance-tokens": 400,
        "covariance-weight": 1.0,
        "num-slots": 1,
        "requests-per-slot": 1,
        "federation": "trial-1",
        "output-dir": str(tmp_path / "run"),
    }

    def node_config(number: int) -> dict:
        name = names[number]
        own = {"state-dir": str(tmp_path / name), "model": str(tiny_folder)}
        return inprocess.real_node(name, tiny.DEMO / f"{name}.jsonl") | own

    results, _ = inprocess.federate(run_config, 2, node_config=node_config)

    assert results["failed_nodes"] == []
    assert sorted(results["nodes"]) == ["bank", "museum"]
    for name in names:
        assert (tmp_path / name / name / "trial-1" / "ledger" / "index.json").is_file()
    assert not (tmp_path / "run" / "nodes").exists()


def test_ledgers_of_federations_lie_apart(tmp_path):
    one, two = (RunConfig(state_dir=str(tmp_path), federation=name) for name in ("one", "two"))
    for config, node in ((one, "a"), (one, "b"), (two, "a")):
        ledger_folder(config, 0, node).mkdir(parents=True)

    assert ledger_folder(one, 0, "a") == tmp_path / "a" / "one" / "ledger"
    assert nodes_with_ledger(one, 0) == ["a", "b"]
    assert nodes_with_ledger(two, 0) == ["a"]


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "x" * 65, "with space"])
def test_a_federation_is_a_name(name):
    with pytest.raises(FedEditError, match="federation = .* must be 1 to 64 letters"):
        RunConfig.parse({"federation": name})


def test_a_federation_is_not_named_like_the_resident_process_folder():
    with pytest.raises(FedEditError, match="federation = 'worker' .* choose another name"):
        RunConfig.parse({"federation": "worker"})


# The policy


def policy(tmp_path, text: str) -> Policy:
    file = tmp_path / "node.toml"
    file.write_text(text, encoding="utf-8")
    return site_policy({"node-file": str(file)})


def test_a_policy_is_read_from_the_node_file(tmp_path):
    (tmp_path / "probes.jsonl").write_text("")
    found = policy(
        tmp_path,
        'name = "a"\n[policy]\nupload = false\nmost-accepted-per-slot = 0\n'
        'trusted-nodes = ["b", "c"]\nprobes = "probes.jsonl"\nprobe-budget = 0.1\n'
        "screening = 2.0\n",
    )

    assert found == Policy(
        upload=False,
        most_accepted_per_slot=0,
        trusted_nodes=("b", "c"),
        screening=2.0,
        probes=str(tmp_path / "probes.jsonl"),
        probe_budget=0.1,
    )


def test_without_a_policy_everything_is_given_and_taken(tmp_path):
    assert site_policy({}) == policy(tmp_path, 'name = "a"\n') == Policy()
    assert Policy().most_accepted_per_slot is None and Policy().trusted_nodes is None
    assert policy(tmp_path, "[policy]\ntrusted-nodes = []\n").trusted_nodes == ()


def test_a_change_of_the_policy_counts_at_once(tmp_path):
    assert policy(tmp_path, "[policy]\nupload = true\n").upload
    assert not policy(tmp_path, "[policy]\nupload = false\n").upload


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[policy]\nuplaod = false\n", "unknown key 'uplaod', did you mean 'upload'"),
        ("[policy]\nupload = 3\n", "upload = 3 must be true or false"),
        ("policy = true\n", "policy must be a table"),
        ("[policy\n", "not TOML"),
    ],
)
def test_a_wrong_policy_is_no_policy(tmp_path, text, told):
    with pytest.raises(FedEditError, match=f"node file node.toml.*{told}") as caught:
        policy(tmp_path, text)
    assert str(tmp_path) not in str(caught.value)  # the server is told the reason


def test_a_node_file_that_is_gone(tmp_path):
    with pytest.raises(FedEditError, match="node file node.toml: cannot be read"):
        site_policy({"node-file": str(tmp_path / "node.toml")})
