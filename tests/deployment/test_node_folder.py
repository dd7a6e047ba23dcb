"""`fedit node init` and `register`: what they write, keep and refuse."""

import tomllib
from pathlib import Path

import pytest
import tiny

from fedit_app.deployment.certificates import key_fingerprint, read_public_key
from fedit_app.deployment.node_folder import NodeFolder, NodeSettings
from fedit_app.errors import FedEditError
from fedit_app.federation.site import Policy
from fedit_app.processes import tool


def edit(node: NodeFolder, old: str, new: str) -> None:
    file = node.folder / "node.toml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_init_writes_a_folder_for_its_owner_alone(fedit, tmp_path, server):
    folder = tmp_path / "node"
    status, out, _ = fedit(
        *("node", "init", folder, "--name", "hospital-a", "--superlink", "fedit.example.org:8700"),
        *("--ca-cert", server.ca_cert, "--data", tiny.DEMO / "bank.jsonl", "--device", "cpu"),
    )

    assert status == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "hospital-a.key").stat().st_mode & 0o777 == 0o600
    node = NodeFolder.open(folder)
    assert node.settings == NodeSettings(
        name="hospital-a",
        superlink="fedit.example.org:8700",
        node_key="hospital-a.key",
        data_path=str(tiny.DEMO / "bank.jsonl"),
        device="cpu",
    )
    assert node.policy == Policy()
    assert node.ca_cert.read_bytes() == server.ca_cert.read_bytes()
    assert key_fingerprint(read_public_key(node.public_key)) in out
    assert "fedit server register DIR --node-key hospital-a.pub --name hospital-a" in out
    assert f"fedit node start {folder}" in out
    assert f"{tool('fedit')} node start {folder}" in (folder / "start.sh").read_text()
    assert (folder / "fedit-node-hospital-a.service").exists()


def test_what_is_still_to_be_given(fedit, tmp_path):
    folder = tmp_path / "node"
    status, out, _ = fedit("node", "init", folder, "--name", "a")

    assert status == 0
    assert "superlink, data-path, the server's CA certificate as" in out
    with pytest.raises(FedEditError, match="node.toml: superlink and data-path must be given"):
        NodeFolder.open(folder)


def test_every_setting_is_explained(node):
    lines = (node.folder / "node.toml").read_text(encoding="utf-8").splitlines()
    keys = [number for number, line in enumerate(lines) if " = " in line.split(": ")[0]]

    assert len(keys) == len(vars(NodeSettings())) + len(vars(Policy()))
    assert all(lines[number - 1].startswith("# ") for number in keys)


def test_nothing_is_overwritten(fedit, node):
    before = {path: path.read_bytes() for path in node.folder.rglob("*") if path.is_file()}
    status, _, err = fedit("node", "init", node.folder, "--name", "b")

    assert status == 2
    assert "is a node's folder already" in err
    assert {p: p.read_bytes() for p in node.folder.rglob("*") if p.is_file()} == before


def test_the_key_of_an_interrupted_init_is_kept(fedit, node):
    before = node.node_key.read_bytes()
    (node.folder / "node.toml").unlink()
    assert fedit("node", "init", node.folder, "--name", "hospital-a")[0] == 0

    assert node.node_key.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--name", "hospital a"], "name 'hospital a' must be 1 to 64 letters"),
        (["--name", "../x"], "name '../x' must be"),
        (["--name", ""], "name '' must be"),
        (["--name", "x" * 65], "must be 1 to 64 letters"),
        (["--name", "a", "--superlink", "example.org"], "must be HOST:PORT"),
        (["--name", "a", "--superlink", "https://example.org:8000"], "neither a host name"),
        (["--name", "a", "--superlink", "example.org:0"], "must be HOST:PORT"),
        (["--name", "a", "--ca-cert", "/no/ca.crt"], "--ca-cert /no/ca.crt: no such file"),
        (["--name", "a", "--data", "/no/data"], "--data /no/data: no such file"),
    ],
)
def test_what_init_refuses(fedit, tmp_path, arguments, told):
    status, _, err = fedit("node", "init", tmp_path / "node", *arguments)

    assert status == 2
    assert told in err
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('device = "auto"', 'devise = "auto"', "unknown key 'devise', did you mean 'device'"),
        ('dtype = "auto"', 'dtype = "int8"', "dtype = 'int8' must be one of auto"),
        ("runtime-port = 0", "runtime-port = -1", "runtime-port = -1 must be at least 0"),
        ('state-dir = "state"', 'state-dir = ""', "state-dir must be given"),
        ('name = "hospital-a"', 'name = "a/b"', "name 'a/b' must be"),
        ("[policy]\n", "policy = 3\n", "policy must be a table"),
        ("upload = true", 'upload = "no"', "[policy]: upload = 'no' must be a bool"),
        ("# most-accepted-per-slot = 50", "most-accepted-per-slot = -1", "must be at least 0"),
        ("# trusted-nodes", "trusted-nodes = [1] #", "trusted-nodes = [1] must be a list"),
        ("probe-budget = 0.0", "probe-budget = 2.0", "probe-budget = 2.0 must be at most 1"),
        ("probe-budget = 0.0", "probe-budget = 0.1", "probes names no file"),
        ('probes = ""', 'probes = "none.jsonl"', "probes = 'none.jsonl' is no file"),
        ('probes = ""', 'prob = ""', "unknown key 'prob', did you mean 'probes'"),
    ],
)
def test_a_wrong_node_file(node, old, new, told):
    edit(node, old, new)
    with pytest.raises(FedEditError) as caught:
        NodeFolder.open(node.folder)
    assert told in str(caught.value) and "node.toml" in str(caught.value)


def test_what_the_app_is_told(node, tiny_folder, tmp_path):
    """Paths are absolute, since Flower runs the app elsewhere; what is not given is left out."""
    assert node.node_config() == {
        "name": "hospital-a",
        "node-file": str(node.folder / "node.toml"),
        "data-path": str(tmp_path / "requests.jsonl"),
        "state-dir": str(node.folder / "state"),
        "device": "auto",
        "dtype": "auto",
    }
    (node.folder / "model").symlink_to(tiny_folder)
    (node.folder / "map.json").write_text('{"": 0}')
    edit(node, 'model = ""', 'model = "model"')
    edit(node, 'device-map = ""', 'device-map = "map.json"')
    edit(node, 'work-cache = ""', 'work-cache = "kept"')
    told = NodeFolder.open(node.folder).node_config()
    assert told["model"] == str(node.folder / "model")
    assert told["device-map"] == str(node.folder / "map.json")
    assert told["work-cache"] == str(node.folder / "kept")

    edit(node, 'model = "model"', 'model = "org/name"')
    edit(node, "# worker-idle-seconds = 1800.0", "worker-idle-seconds = 0")
    told = NodeFolder.open(node.folder).node_config()
    assert (told["model"], told["worker-idle-seconds"]) == ("org/name", 0.0)


def test_register_shows_what_the_operator_needs(fedit, node):
    _, out, _ = fedit("node", "register", node.folder)

    assert str(node.public_key) in out
    assert key_fingerprint(read_public_key(node.public_key)) in out
    assert "fedit server register" in out


def test_a_new_key(fedit, node):
    old = node.node_key.read_bytes(), read_public_key(node.public_key)
    _, out, _ = fedit("node", "register", node.folder, "--new-key")

    assert Path(f"{node.node_key}.old").read_bytes() == old[0]
    assert node.node_key.read_bytes() != old[0]
    assert read_public_key(node.public_key) != old[1]
    assert node.node_key.stat().st_mode & 0o777 == 0o600
    assert key_fingerprint(read_public_key(node.public_key)) in out


def test_the_file_is_toml_with_the_settings(node):
    values = tomllib.loads((node.folder / "node.toml").read_text(encoding="utf-8"))
    assert values["name"] == "hospital-a"
    assert values["policy"] == {
        "upload": True,
        "screening": 1.0,
        "probes": "",
        "probe-budget": 0.0,
    }
