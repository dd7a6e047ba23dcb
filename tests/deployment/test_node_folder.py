"""`fedit node init` and `register`: what they write, keep and refuse."""

import tomllib
from pathlib import Path

import pytest
import tiny
from deployment.conftest import edit

from fedit_app.config.limits import Limits
from fedit_app.config.policy import Policy
from fedit_app.deployment.node_folder import NodeFolder, NodeSettings
from fedit_app.deployment.node_setup import init_node, renew_key
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.node_key import key_fingerprint, read_public_key
from fedit_app.node.identity import identity_of
from fedit_app.node.peers import read_peers
from fedit_app.support.errors import FedEditError
from fedit_app.support.processes import tool


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
    folder = tmp_path / "our node"
    status, out, _ = fedit("node", "init", folder, "--name", "a")

    assert status == 0
    assert "superlink, data-path, the server's CA certificate as" in out
    assert f"fedit node start '{folder}'\n" in out
    with pytest.raises(FedEditError, match="node.toml: superlink and data-path must be given"):
        NodeFolder.open(folder)


def test_every_setting_is_explained(node):
    lines = (node.folder / "node.toml").read_text(encoding="utf-8").splitlines()
    keys = [number for number, line in enumerate(lines) if " = " in line.split(": ")[0]]

    tables = (NodeSettings(), Policy(), Limits())
    assert len(keys) == sum(len(vars(table)) for table in tables)
    assert all(lines[number - 1].startswith("# ") for number in keys)


def test_nothing_is_overwritten(fedit, node):
    before = {path: path.read_bytes() for path in node.folder.rglob("*") if path.is_file()}
    status, _, err = fedit("node", "init", node.folder, "--name", "b")

    assert status == 2
    assert "is already a node's folder" in err
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
        (
            "runtime-port = 0",
            "runtime-port = -1",
            "runtime-port = -1 must be an integer from 0 to 65535",
        ),
        ('state-dir = "state"', 'state-dir = ""', "state-dir must be given"),
        ('name = "hospital-a"', 'name = "a/b"', "name 'a/b' must be"),
        ("[policy]\n", "policy = 3\n", "policy must be a table"),
        ("upload = true", 'upload = "maybe"', "[policy]: upload = 'maybe' must be true or false"),
        ("# most-accepted-per-slot = 50", "most-accepted-per-slot = -1", "must be an integer >= 0"),
        ("# trusted-nodes", "trusted-nodes = 1 #", "trusted-nodes = 1 must be a list of strings"),
        (
            "probe-budget = 0.0",
            "probe-budget = 2.0",
            "probe-budget = 2.0 must be a number from 0 to 1",
        ),
        ("probe-budget = 0.0", "probe-budget = 0.1", "probes names no file"),
        ('probes = ""', 'probes = "none.jsonl"', "probes = 'none.jsonl' is not a file"),
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
        "node-key": str(node.folder / "hospital-a.key"),
        "federation-key": str(node.folder / "federation.key"),
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
    _, out, _ = fedit("keys", "rotate", node.folder)

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
        "peers": "",
        "unsealed": False,
        "screening": 1.0,
        "probes": "",
        "probe-budget": 0.0,
    }


# The federation key, and whom a node trusts


def test_a_new_node_has_a_federation_key_of_its_own_or_that_of_the_others(fedit, node, tmp_path):
    assert node.federation_key.stat().st_mode & 0o777 == 0o600
    first = FederationKey.read(node.federation_key)
    status, out, _ = fedit(
        *("node", "init", tmp_path / "b", "--name", "b", "--superlink", "x.org:1"),
        *("--data", tiny.DEMO / "bank.jsonl", "--federation-key", node.federation_key),
    )
    assert status == 0
    assert f"federation.key has the id {first.id}" in out
    other = NodeFolder.open(tmp_path / "b")
    assert FederationKey.read(other.federation_key) == first
    assert other.node_config()["federation-key"] == str(other.federation_key)
    assert first.secret.hex() not in out + (other.folder / "node.toml").read_text()


def test_a_federation_key_is_made_shown_and_taken_over(fedit, node, tmp_path):
    file = tmp_path / "ours.key"
    status, out, _ = fedit("node", "key", "new", file)
    key = FederationKey.read(file)
    assert (status, key.id in out, key.secret.hex() in out) == (0, True, False)
    before = FederationKey.read(node.federation_key)
    assert before.id in fedit("node", "key", "show", node.folder)[1]

    for _ in range(2):
        assert key.id in fedit("node", "key", "take", node.folder, file)[1]
    assert FederationKey.read(node.federation_key) == key
    assert FederationKey.read(node.folder / "federation.key.old") == before
    status, _, err = fedit("node", "key", "new", file)
    assert (status, "never overwritten" in err) == (2, True)


def test_a_node_may_have_no_federation_key(fedit, node, tmp_path):
    edit(node, 'federation-key = "federation.key"', 'federation-key = ""')
    bare = NodeFolder.open(node.folder)
    assert "federation-key" not in bare.node_config()
    assert fedit("node", "key", "show", node.folder)[1] == "none\n"
    status, _, err = fedit("node", "key", "take", node.folder, node.federation_key)
    assert (status, "federation-key is empty" in err) == (2, True)


def test_a_node_trusts_the_keys_that_its_operator_lists(fedit, node, tmp_path):
    other = init_node(tmp_path / "court", "court")
    status, out, _ = fedit("node", "trust", node.folder, "court", other.public_key)
    assert status == 0
    assert key_fingerprint(read_public_key(other.public_key)) in out
    assert 'peers = "peers" in [policy]' in out

    edit(node, 'peers = ""', 'peers = "peers"')
    renew_key(other)
    assert "not looked at" not in fedit("node", "trust", node.folder, "court", other.public_key)[1]
    trusting = NodeFolder.open(node.folder)
    assert len(read_peers(Path(trusting.policy.peers))["court"]) == 2
    identity = identity_of("hospital-a", trusting.node_config(), trusting.policy)
    assert sorted(identity.peers) == ["court", "hospital-a"]

    (trusting.peers / "court.pub").write_text("nonsense\n")
    with pytest.raises(FedEditError, match="court.pub: has to hold public keys"):
        read_peers(trusting.peers)


def test_a_folder_of_keys_that_is_not_there(node):
    edit(node, 'peers = ""', 'peers = "friends"')
    with pytest.raises(FedEditError, match="peers = 'friends' is not a folder"):
        NodeFolder.open(node.folder)


def test_an_app_is_allowed_by_its_hash_beside_those_before(node, fedit, tmp_path):
    assert node.settings.apps is None
    for number in range(2):
        bundle = tmp_path / f"{number}.fab"
        bundle.write_bytes(bytes([number]) * 9)
        for _ in range(2):  # the second time changes nothing
            status, out, _ = fedit("node", "allow", node.folder, bundle)
            assert status == 0 and "sha256:" in out
        found = NodeFolder.open(node.folder).settings.apps
        assert len(found) == number + 1 and found[-1] in out
    assert fedit("node", "allow", node.folder, tmp_path / "none.fab")[0] == 2


@pytest.mark.parametrize("apps", ['["sha256:12"]', '["md5:0"]', '[""]'])
def test_what_is_no_hash_of_an_app_is_refused(node, apps):
    file = node.folder / "node.toml"
    text = file.read_text(encoding="utf-8").splitlines()
    changed = [f"apps = {apps}" if line.startswith("# apps = ") else line for line in text]
    assert changed != text
    file.write_text("\n".join(changed), encoding="utf-8")
    with pytest.raises(FedEditError, match="apps = .* must list hashes"):
        NodeFolder.open(node.folder)
