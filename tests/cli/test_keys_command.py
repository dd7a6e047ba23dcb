"""`fedit keys`: which keys a node has and trusts, renewing them, and taking trust back."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedit_app.deployment.node_folder import NodeFolder
from fedit_app.deployment.node_setup import init_node, take_federation_key, trust_peer
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.node_key import key_fingerprint, make_node_key, read_public_key
from fedit_app.node.peers import read_peers


@pytest.fixture
def node(tmp_path) -> NodeFolder:
    """A node that trusts the court, which has two keys, and the museum."""
    data = tmp_path / "requests.jsonl"
    data.write_text("")
    made = init_node(tmp_path / "bank", "bank", "localhost:8000", data=data)
    for name in ("court", "court", "museum"):
        file = tmp_path / f"{name}.pub"
        file.write_bytes(make_node_key().public)
        trust_peer(made, name, file)
    return made


def listed(fedit, node):
    status, out, err = fedit("keys", "list", node.folder, "--format", "json")
    assert status == 0, err
    return json.loads(out)["keys"]


def accepted(node):
    """How many keys of each node count today."""
    return {name: len(keys) for name, keys in read_peers(node.peers).items()}


def test_every_key_is_listed_with_what_it_opens(fedit, node, tmp_path):
    old = key_fingerprint(read_public_key(node.public_key))
    before = FederationKey.read(node.federation_key).id
    other = tmp_path / "other.key"
    FederationKey.new().write(other)
    take_federation_key(node, other)
    status, out, _ = fedit("keys", "rotate", node.folder)
    new = key_fingerprint(read_public_key(node.public_key))
    assert status == 0 and new in out and new != old

    found = {
        (row["kind"], row["whose"], row["fingerprint"]): row["opens"] for row in listed(fedit, node)
    }
    assert "the server lets the node in" in found.pop(("node", "bank.key", new))
    assert "nothing at the server" in found.pop(("node", "bank.key.old", old))
    key = FederationKey.read(node.federation_key).id
    assert "runs with this key" in found.pop(("federation", "federation.key", key))
    assert "sealed with it" in found.pop(("federation", "federation.key.old", before))
    assert sorted(whose for _, whose, _ in found) == ["court", "court", "museum"]
    secrets = [node.node_key.read_text(), node.federation_key.read_text().strip()]
    assert not any(secret in fedit("keys", "list", node.folder)[1] for secret in secrets)


def test_a_revoked_key_opens_nothing(fedit, node):
    (first, _) = (row["fingerprint"] for row in listed(fedit, node) if row["whose"] == "court")
    assert fedit("keys", "revoke", node.folder, "court", "--key", first[:12])[0] == 0
    assert accepted(node) == {"court": 1, "museum": 1}
    status, out, _ = fedit("keys", "revoke", node.folder, "court")
    assert status == 0 and "1 key of court revoked" in out and "fedit rollback" in out
    assert accepted(node) == {"museum": 1}
    status, _, err = fedit("keys", "revoke", node.folder, "court")
    assert status == 2 and "no key of it is listed" in err and "museum" in err


def test_a_key_ends_on_its_day(fedit, node):
    today = datetime.now(UTC).date()
    assert fedit("keys", "expire", node.folder, "museum", str(today))[0] == 0
    assert accepted(node) == {"court": 2, "museum": 1}
    yesterday = str(today - timedelta(days=1))
    assert fedit("keys", "expire", node.folder, "museum", yesterday)[0] == 0
    assert accepted(node) == {"court": 2, "museum": 0}
    (row,) = (row for row in listed(fedit, node) if row["whose"] == "museum")
    assert (row["until"], row["opens"]) == (yesterday, "nothing: expired")
    trust_peer(node, "museum", _file_of(node, "museum"))
    assert accepted(node) == {"court": 2, "museum": 1}, "trusted anew"


@pytest.mark.parametrize("former", [False, True])
def test_a_node_does_not_take_its_own_key_for_anothers(fedit, node, tmp_path, former):
    own = tmp_path / "own.pub"
    own.write_bytes(node.public_key.read_bytes())
    if former:
        assert fedit("keys", "rotate", node.folder)[0] == 0
    for name in ("school", "court"):
        status, _, err = fedit("node", "trust", node.folder, name, own)
        assert status == 2 and "a key of this node itself" in err and f"{name}.pub" in err
    assert accepted(node) == {"court": 2, "museum": 1}


def test_a_key_is_listed_for_one_node_only(fedit, node):
    museum = _file_of(node, "museum")
    status, _, err = fedit("node", "trust", node.folder, "court", museum)
    assert status == 2 and "listed as a key of museum" in err
    assert accepted(node) == {"court": 2, "museum": 1}
    remedy = err.split("fedit keys ")[1].split()
    assert fedit("keys", *remedy)[0] == 0
    assert fedit("node", "trust", node.folder, "court", museum)[0] == 0
    assert accepted(node) == {"court": 3}


def _file_of(node, name) -> Path:
    file = node.folder / "again.pub"
    file.write_text(" ".join((node.peers / f"{name}.pub").read_text().split()[:2]))
    return file


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("expire", "museum", "soon"), "soon"),
        (("revoke", "court", "--key", "SHA256:none"), "has no such key here"),
        (("revoke", "court", "--key", "SHA256:"), "2 keys of court begin so"),
        (("revoke", "school"), "no key of it is listed"),
    ],
)
def test_what_cannot_be_is_said(fedit, node, arguments, told):
    status, _, err = fedit("keys", arguments[0], node.folder, *arguments[1:])
    assert status == 2 and told in err
    assert accepted(node) == {"court": 2, "museum": 1}
