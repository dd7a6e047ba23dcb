"""`fedit doctor`: each thing that may be wrong is found, said, and counted."""

import importlib.metadata
import json
import shutil
import socket
from collections import namedtuple

import numpy as np
import psutil
import pytest
import torch
from deployment.conftest import edit
from safetensors.torch import save_file

from fedit_app.deployment import certificates
from fedit_app.deployment.findings import GIGABYTE
from fedit_app.deployment.node_checks import _weights_bytes
from fedit_app.deployment.node_folder import NodeFolder
from fedit_app.deployment.node_setup import allow_app, init_node
from fedit_app.deployment.server_setup import renew_certificate
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import create
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.node_key import make_node_key


@pytest.fixture
def doctor(fedit):
    """Gives `doctor(folder)`: (exit status, lines by level and topic)."""

    def doctor(*folder) -> tuple[int, str]:
        status, out, err = fedit("doctor", *folder, "--format", "json")
        assert err == ""
        rows = json.loads(out)["findings"]
        return status, "\n".join(" ".join(row.values()) for row in rows)

    return doctor


# The machine


def test_a_machine_in_order(doctor):
    status, told = doctor()

    assert status == 0
    for topic in ("versions fedit 0.1", "disk", "memory", "gpu"):
        assert f"ok {topic}" in told


def test_a_package_of_another_version(doctor, monkeypatch):
    real = importlib.metadata.version
    found = {"flwr": "1.29.0", "lancedb": "0.41.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found.get(name) or real(name))
    status, told = doctor()

    assert status == 1
    assert "FAIL versions flwr 1.29.0; required is <1.42,>=1.41: pip install 'flwr[sim" in told
    assert "FAIL versions lancedb 0.41.0; required is <0.41,>=0.40" in told
    assert told.count("FAIL") == 2


@pytest.mark.parametrize(
    ("free", "level", "status"), [(100, "ok", 0), (2, "warn", 0), (0.1, "FAIL", 1)]
)
def test_room_on_the_disk(doctor, monkeypatch, free, level, status):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, free * GIGABYTE))
    found, told = doctor()

    assert found == status
    assert f"{level} disk {free:.1f} GB free" in told


def test_a_folder_that_is_neither(fedit, tmp_path):
    status, _, err = fedit("doctor", tmp_path)

    assert status == 2
    assert "neither a server's folder (server.toml) nor a node's (node.toml)" in err


# A server


def test_a_server_in_order(doctor, server):
    status, told = doctor(server.folder)

    assert status == 0
    assert "ok certificate for fedit.example.org, 192.0.2.7, valid until" in told
    assert "ok port 0.0.0.0:8700 is free; the server is not running" in told
    assert "ok files" in told
    assert "warn names fedit.example.org cannot be resolved here" in told


def test_a_certificate_that_ends(doctor, server, monkeypatch):
    monkeypatch.setattr(certificates, "SERVER_DAYS", 20)
    renew_certificate(server)
    status, told = doctor(server.folder)
    assert (status, "warn certificate expires in 19 days: fedit server renew" in told) == (0, True)

    monkeypatch.setattr(certificates, "SERVER_DAYS", 0)
    renew_certificate(server)
    status, told = doctor(server.folder)
    assert status == 1
    assert "certificate has expired; fedit server renew" in told


def test_a_server_with_much_wrong(doctor, server):
    server.cert_key.chmod(0o640)
    file = server.folder / "server.toml"
    text = file.read_text(encoding="utf-8").replace("192.0.2.7", "192.0.2.8")
    file.write_text(text.replace('bind = "0.0.0.0"', 'bind = "127.0.0.1"'), encoding="utf-8")
    (server.folder / "runs").rmdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 8700))
        taken.listen()
        status, told = doctor(server.folder)

    assert status == 1
    assert "FAIL certificate" in told and "192.0.2.8" in told and "fedit server renew" in told
    assert "others may read this private key" in told
    assert "warn names bind = 127.0.0.1: nodes elsewhere reach this server only through" in told
    assert "FAIL port 127.0.0.1:8700 cannot be listened on" in told
    assert f"FAIL files {server.folder / 'runs'} is missing" in told


def test_a_server_file_that_is_wrong(doctor, server):
    (server.folder / "server.toml").write_text("port = 1.5", encoding="utf-8")
    status, told = doctor(server.folder)

    assert status == 1
    assert "FAIL settings" in told and "port = 1.5 must be an integer" in told


# A node


def test_a_node_in_order_but_for_the_server(doctor, node, tiny_folder):
    edit(node, 'model = ""', f'model = "{tiny_folder}"')
    edit(node, "# most-accepted-per-slot = 50", "most-accepted-per-slot = 7")
    edit(node, "# trusted-nodes", 'trusted-nodes = ["bank"] #')
    status, told = doctor(node.folder)

    assert status == 1
    assert "ok key hospital-a.pub SHA256:" in told
    assert "ok data requests.jsonl: 15 edit requests (slot 1: 5, slot 2: 5, slot 3: 5)" in told
    assert "ok policy uploads its MKVs; accepts at most 7 a slot; trusts bank" in told
    assert "ok apps any that the server's operator starts; `fedit node allow` lists" in told
    assert "0 ledgers with 0 MKVs" in told
    assert "ok model llama of 5 layers, fingerprint" in told
    assert "ok memory weights 0.0 GB" in told
    (failure,) = [line for line in told.splitlines() if line.startswith("FAIL")]
    assert "server fedit.example.org:8700: not reachable" in failure


def test_a_model_that_the_run_names(doctor, node):
    assert "warn model the run names it" in doctor(node.folder)[1]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('model = ""', 'model = "/no/model"', "FAIL model model: folder /no/model does not exist"),
        ('device = "auto"', 'device = "cuda:7"', "FAIL model device: 'cuda:7' asked for"),
        ('superlink = "fedit', 'superlink = "://', "FAIL settings"),
    ],
)
def test_settings_that_do_not_work(doctor, node, old, new, told):
    edit(node, old, new)
    status, found = doctor(node.folder)

    assert status == 1
    assert told in found


def test_a_model_that_was_downloaded_in_part(doctor, node, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    edit(node, 'model = ""', f'model = "{folder}"')
    status, told = doctor(node.folder)

    assert status == 1
    assert f"FAIL model model: {weights} is damaged or not complete" in told


def test_data_that_is_faulty(doctor, node):
    with node.data_path.open("a", encoding="utf-8") as file:
        file.write('{"id": "hospital-16", "subject": "Louvre"}\n')
    status, told = doctor(node.folder)

    assert status == 1
    assert "FAIL data data file requests.jsonl: line 16: field prompt, target_new" in told
    assert "Louvre" not in told


def test_a_model_that_is_too_large(doctor, node, tiny_folder, monkeypatch):
    edit(node, 'model = ""', f'model = "{tiny_folder}"')
    memory = namedtuple("memory", "total available")
    size = (tiny_folder / "model.safetensors").stat().st_size  # in float32, as on a processor
    for share, level in ((0.5, "FAIL"), (1.1, "warn"), (2, "ok")):
        monkeypatch.setattr(psutil, "virtual_memory", lambda s=share: memory(size, s * size))
        assert f"{level} memory weights 0.0 GB, 0.0 GB free on cpu" in doctor(node.folder)[1]


def test_quantised_weights_take_as_much_memory_as_space(tmp_path):
    parts = {"packed": torch.zeros(10, dtype=torch.uint8), "scales": torch.zeros(3).bfloat16()}
    save_file(parts, tmp_path / "model.safetensors")
    assert _weights_bytes(tmp_path, torch.device("cpu"), "auto") == 10 + 3 * 4


def test_ledgers_are_read(doctor, node):
    folder = node.state_dir / "hospital-a" / "run-1" / "ledger"
    vectors = np.ones((2, 4), np.float32), np.ones((2, 3), np.float32), np.ones(3), np.ones(3)
    mkv = create("hospital-a", 1, "f" * 32, *(part.astype(np.float32) for part in vectors))
    Ledger("f" * 32, folder).accept([mkv], 1)
    assert "1 ledgers with 1 MKVs" in doctor(node.folder)[1]

    (file,) = (folder / "mkvs").iterdir()
    file.write_bytes(file.read_bytes()[:-4])
    status, told = doctor(node.folder)
    assert status == 1
    assert f"FAIL state {folder}: MKV {mkv.id}: ledger file" in told and "damaged" in told


def test_a_key_that_is_missing(doctor, node):
    node.node_key.unlink()
    status, told = doctor(node.folder)

    assert status == 1
    assert "FAIL key node key" in told and "cannot be read" in told


def test_keys_that_are_no_pair(doctor, node):
    node.public_key.write_bytes(make_node_key().public)

    assert "FAIL key" in doctor(node.folder)[1]
    assert "does not belong to" in doctor(node.folder)[1]


def test_the_federation_key(doctor, node):
    key = FederationKey.read(node.federation_key)
    status, told = doctor(node.folder)
    assert f"ok federation key federation.key: id {key.id}; must be the same on all nodes" in told
    assert key.secret.hex() not in told

    node.federation_key.chmod(0o644)
    assert "FAIL federation key" in doctor(node.folder)[1]
    node.federation_key.unlink()
    assert "no such file; copy that of an organisation" in doctor(node.folder)[1]
    edit(node, 'federation-key = "federation.key"', 'federation-key = ""')
    assert "FAIL federation key none, and the policy forbids" in doctor(node.folder)[1]
    edit(node, "unsealed = false", "unsealed = true")
    told = doctor(node.folder)[1]
    assert "warn federation key none: the server can read what this node sends" in told
    assert "lets servers read what it sends" in told


def test_peers(doctor, fedit, node, tmp_path):
    court = init_node(tmp_path / "court", "court")
    fedit("node", "trust", node.folder, "court", court.public_key)
    edit(node, 'peers = ""', 'peers = "peers"')
    assert "asks for the signatures of court" in doctor(node.folder)[1]
    (node.folder / "peers" / "court.pub").write_text("x")
    assert "FAIL policy peer" in doctor(node.folder)[1]


def test_what_code_a_node_runs_is_told(doctor, node, tmp_path):
    for number in range(2):
        (tmp_path / "app.fab").write_bytes(bytes([number]))
        allow_app(NodeFolder.open(node.folder), tmp_path / "app.fab")
    assert "ok apps 2 apps may run here, by hash" in doctor(node.folder)[1]
