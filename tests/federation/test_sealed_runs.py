"""Sealed runs: the same ledgers as in an open one, and a server that cannot read."""

import json
from pathlib import Path

import inprocess
import lancedb
import numpy as np
import pytest
import tiny

from fedit_app.ledger.index import read_index
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import SIGNATURES
from fedit_app.mkv.authorship import is_signed_by
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.node_key import make_node_key, read_public_key
from fedit_app.mkv.sealer import Sealer
from fedit_app.pool import MKVPool
from fedit_app.protocol.messages import EDIT, REEDIT, pack, unpack_info
from fedit_app.protocol.parcel import unwrap, wrap
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_private

pytestmark = pytest.mark.integration

RUN = {"num_slots": 2, "requests_per_slot": 2, "evaluate_every": 9}


def ledgers(folder: Path) -> dict[str, dict]:
    """Node -> its index, without the head of its journal, in which there are times."""
    return {
        path.parent.name: {**read_index(path), "journal": None}
        for path in sorted(folder.glob("nodes/*/ledger"))
    }


def sealer_of(folder: Path) -> Sealer:
    """What the nodes of a sealed simulation seal with."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    key = FederationKey.read(folder / "nodes" / "federation.key")
    (inner,) = {index["fingerprint"] for index in ledgers(folder).values()}
    width = results["config"]["sketch-width"]
    return Sealer(key, results["model"]["fingerprint"], inner, width)


def mkvs_of(folder: Path) -> list:
    """All MKVs of all ledgers."""
    found = {}
    for path in folder.glob("nodes/*/ledger"):
        ledger = Ledger.open(path, read_index(path)["fingerprint"])
        found |= {id_: entry.mkv for id_, entry in ledger.entries.items()}
    return list(found.values())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Demo facts of three nodes, none of which two nodes share in one slot."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name in ("bank", "hospital", "museum"):
        facts = [
            {
                "id": f"{name}-{number}",
                "subject": f"The {name} of {''.join(random.choice(list('abcdefghij'), 8))}",
                "prompt": "{} stands in",
                "target_new": ["Rome", "Oslo", "Lima", "Bonn"][number],
            }
            for number in range(4)
        ]
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, facts)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(small, data, tmp_path_factory):
    """The same run, open and sealed: (results, grid, folder) of each."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    changes = {key.replace("_", "-"): value for key, value in RUN.items()}
    for sealed in ("off", "on"):
        config = {
            **{**small, **changes, "sealed": sealed, "output-dir": str(folder / sealed)},
            **{"dataset": "jsonl", "data-path": str(data)},
        }
        results, grid = inprocess.federate(config, 3)
        found[sealed] = (results, grid, folder / sealed)
    return found


def test_sealing_changes_no_ledger(runs):
    assert ledgers(runs["on"][2]) == ledgers(runs["off"][2])
    for name in ("requests", "optimised", "uploaded", "offered", "accepted", "rejected"):
        counts = [[slot[name] for slot in runs[sealed][0]["slots"]] for sealed in runs]
        assert counts[0] == counts[1]
    assert runs["on"][0]["summary"]["own"] == runs["off"][0]["summary"]["own"]
    fingerprints = [runs[sealed][0]["model"]["fingerprint"] for sealed in runs]
    assert fingerprints[0] != fingerprints[1]


def forms(vector: np.ndarray) -> list[bytes]:
    """What a vector could look like, wherever it is written; eight elements are enough."""
    vector = np.asarray(vector, np.float64)
    units = vector / np.linalg.norm(vector)
    numbers = np.rint(vector / np.abs(vector).max() * 127).astype(np.int8)
    floats = [v.astype(t)[:8].tobytes() for v in (vector, units) for t in ("<f2", "<f4", "<f8")]
    return [*floats, numbers[:8].tobytes()]


def seen_by_the_server(grid, folder: Path) -> bytes:
    """Every message, both ways, every file outside nodes/, and every cell of the pool."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    outside = [file.read_bytes() for file in files if folder / "nodes" not in file.parents]
    table = lancedb.connect(str(folder / "pool")).open_table("mkvs").to_arrow()
    columns = [table[kind].combine_chunks() for kind in SIGNATURES]
    cells = [column.flatten().to_numpy().tobytes() for column in columns]
    return b"\0".join([*grid.sent, *grid.received, *outside, *cells, *table["payload"].to_pylist()])


def found_vectors(runs, sealed: str) -> tuple[int, int]:
    """How many vectors of the ledgers the server has seen, and how many there are."""
    _, grid, folder = runs[sealed]
    everything = seen_by_the_server(grid, folder)
    vectors = [
        vector
        for mkv in mkvs_of(folder)
        for vector in (*mkv.keys, *mkv.shifts, mkv.v_star, mkv.h0, mkv.delta)
    ]
    hits = sum(any(form in everything for form in forms(vector)) for vector in vectors)
    return hits, len(vectors)


def test_no_vector_reaches_the_server(runs):
    hits, count = found_vectors(runs, "on")
    assert (hits, count) == (0, 12 * 7)


def test_the_search_finds_the_vectors_of_an_open_run(runs):
    hits, count = found_vectors(runs, "off")
    assert hits == count


def test_no_name_of_the_inside_reaches_the_server(runs):
    _, grid, folder = runs["on"]
    everything = seen_by_the_server(grid, folder)
    key = (folder / "nodes" / "federation.key").read_text().strip()

    (inner,) = {index["fingerprint"] for index in ledgers(folder).values()}
    for secret in (key, inner, *(mkv.id for mkv in mkvs_of(folder))):
        assert secret.encode() not in everything
    assert bytes.fromhex(key) not in everything


def test_ids_of_the_results_are_those_of_the_ledger_in_cipher(settings, demo_copy):
    for name, target in (("bank", "Rome"), ("hospital", "Oslo")):
        fact = {"id": "1", "subject": "Tycho", "prompt": "{} stands in", "target_new": target}
        (demo_copy / f"{name}.jsonl").write_text(json.dumps(fact), encoding="utf-8")
    config = settings(dataset="jsonl", data_path=str(demo_copy), num_slots=1, sealed="on")
    results, _ = inprocess.federate(config, 2)
    folder = Path(config["output-dir"])
    (pair,) = results["slots"][0]["nodes"]["bank"]["conflict_pairs"]

    sealer = sealer_of(folder)
    opened = {sealer.open_id(id_) for id_ in pair.values()}
    assert opened == {row["id"] for row in ledgers(folder)["bank"]["entries"]}
    votes = settings("votes", **{"dataset": "jsonl", "data_path": str(demo_copy), "num_slots": 1,
                                 "sealed": "on", "conflict_policy": "majority"})  # fmt: skip
    assert inprocess.federate(votes, 2)[0]["status"] == "completed"


def test_a_sealed_pool_serves_the_next_run(settings, data, tmp_path):
    common = {
        **RUN,
        "dataset": "jsonl",
        "data_path": str(data),
        "pool_uri": str(tmp_path / "pool"),
        "state_dir": str(tmp_path / "state"),
        "sealed": "on",
    }
    inprocess.federate(settings("first", **common), 3)
    inprocess.federate(settings("second", **common), 3)
    assert len(MKVPool(common["pool_uri"])) == 12, "what is sealed again has the same id"

    newcomer = tmp_path / "new"
    newcomer.mkdir()
    fact = {"id": "1", "subject": "Tycho", "prompt": "{} stands in", "target_new": "Bonn"}
    (newcomer / "zoo.jsonl").write_text(json.dumps(fact), encoding="utf-8")
    results, _ = inprocess.federate(settings("third", **{**common, "data_path": str(newcomer)}), 1)
    received = results["slots"][0]["nodes"]["zoo"]["received_from"]
    assert received == {"bank": 4, "hospital": 4, "museum": 4}


def test_an_interrupted_sealed_run_goes_on(settings, data, monkeypatch, runs):
    config = settings(**RUN, dataset="jsonl", data_path=str(data), sealed="on")

    def die_in_slot_2(node_id, message):
        if message.metadata.message_type == EDIT and unpack_info(message.content)["slot"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inprocess.federate(config, 3, tamper=die_in_slot_2)
    results, _ = inprocess.federate({**config, "resume": True}, 3)

    assert results["status"] == "completed"
    assert ledgers(Path(config["output-dir"])) == ledgers(runs["off"][2])


# What a server may try


def tampered(settings, data, spoil, **changes):
    """A run in which the server changes what it sends to one node in the re-edit of slot 1."""

    def tamper(node_id, message):
        if node_id == 101 and message.metadata.message_type == REEDIT:
            spoil(message)

    config = settings(**{**RUN, "num_slots": 1, "dataset": "jsonl", "data_path": str(data)},
                      sealed="on", **changes)  # fmt: skip
    grid = Tampering(config, 3, tamper)
    return inprocess.federate_on(grid, config)


class Tampering(inprocess.InProcessGrid):
    """Changes messages before they are sent, as a server could."""

    def __init__(self, config, nodes, change, **options):
        super().__init__(config, nodes, **options)
        self._change = change

    def _answer(self, node_id, message):
        sent, message.content = message.content, unwrap(message.content)
        self._change(node_id, message)
        if message.content is not sent:  # it came as a parcel, and goes on as one
            message.content = wrap(message.content)
        return super()._answer(node_id, message)


def flip(message):
    array = message.content["sealed-mkvs"]["payload"]
    data = bytearray(array.data)
    data[-1] ^= 1
    message.content["sealed-mkvs"]["payload"] = type(array)(
        array.dtype, array.shape, array.stype, bytes(data)
    )


def rename(message):
    info = message.content["info"]
    info["mkv-meta"] = info["mkv-meta"].replace('"hospital"', '"museum"', 1)


def exchange_ids(message):
    meta = json.loads(message.content["info"]["mkv-meta"])
    meta["ids"] = meta["ids"][::-1]
    message.content["info"]["mkv-meta"] = json.dumps(meta)


@pytest.mark.parametrize(
    ("spoil", "count"), [(flip, 1), (rename, 1), (exchange_ids, 4)], ids=["flip", "rename", "ids"]
)
def test_what_the_server_changes_is_rejected_and_the_rest_accepted(settings, data, spoil, count):
    results = tampered(settings, data, spoil)
    (slot,) = results["slots"]

    assert slot["nodes"]["bank"]["rejections"] == {"seal": count}
    assert slot["nodes"]["bank"]["accepted"] == 4 - count
    assert slot["nodes"]["museum"]["rejections"] == {}
    assert results["failed_nodes"] == []


def test_open_mkvs_are_not_taken_in_a_sealed_run(settings, data, runs):
    """Else a server could slip in what no node has sealed."""
    planted = mkvs_of(runs["off"][2])[:1]

    def plant(message):
        info = unpack_info(message.content)
        message.content = pack(info, planted)

    results = tampered(settings, data, plant)
    (failure,) = results["failed_nodes"]
    assert (failure["node"], failure["stage"]) == ("bank", "reedit")
    assert "is expected" in failure["reason"]


# Keys


def real_nodes(data, keys: list[Path | None]):
    def config(number: int) -> dict:
        name = ["bank", "hospital", "museum"][number]
        given = inprocess.real_node(name, data / f"{name}.jsonl")
        del given["federation-key"]
        return given | ({"federation-key": str(keys[number])} if keys[number] else {})

    return config


def test_a_node_with_another_key_or_none_is_left_out_by_name(settings, data, tmp_path):
    ours, other = tmp_path / "ours.key", tmp_path / "other.key"
    FederationKey.new().write(ours)
    FederationKey.new().write(other)
    config = settings(num_slots=1, requests_per_slot=1, state_dir=str(tmp_path / "state"))
    nodes = real_nodes(data, [ours, other, None])
    results, _ = inprocess.federate(config, 3, node_config=nodes)

    told = {failure["node"]: failure["reason"] for failure in results["failed_nodes"]}
    ids = [FederationKey.read(file).id for file in (ours, other)]
    assert f"federation-key {ids[1]} (the federation has {ids[0]})" in told["hospital"]
    assert "fedit node key take DIR FILE" in told["hospital"]
    assert "federation-key missing" in told["museum"]
    assert sorted(results["nodes"]) == ["bank"]


def test_a_server_cannot_ask_a_real_node_for_open_mkvs(settings, data, tmp_path):
    config = settings(num_slots=1, sealed="off", state_dir=str(tmp_path / "state"))
    nodes = real_nodes(data, [None, None, None])

    def allow(number: int) -> dict:
        file = tmp_path / f"{number}.toml"
        allowed = "true" if number else "false"
        file.write_text(f"[policy]\nunsealed = {allowed}\n{tiny.LIMITS}")
        return nodes(number) | {"node-file": str(file)}

    results, _ = inprocess.federate(config, 2, node_config=allow)
    (failure,) = results["failed_nodes"]
    assert (failure["node"], failure["stage"]) == ("bank", "hello")
    assert "its policy forbids that" in failure["reason"]
    assert sorted(results["nodes"]) == ["hospital"]


def test_weights_cannot_be_sealed(settings):
    with pytest.raises(FedEditError, match="fedavg: averages weights.*sealed = off"):
        inprocess.federate(settings(strategy="fedavg", sealed="on", num_slots=1), 2)


def test_auto_seals_on_real_nodes_only(runs, demo_run, settings, data, tmp_path):
    key = tmp_path / "a.key"
    FederationKey.new().write(key)
    config = settings(num_slots=1, requests_per_slot=1, state_dir=str(tmp_path / "state"))
    _, grid = inprocess.federate(config, 2, node_config=real_nodes(data, [key, key]))

    assert any(b"sealed-mkvs" in message for message in grid.received)
    assert not any(b"sealed-mkvs" in message for message in demo_run[1].received)


# Signatures


@pytest.fixture
def signing(data, tmp_path):
    """Gives `signing(key, peers={node: key})`: configurations of three nodes that sign.

    The bank's policy names the public keys of its peers.
    """
    federation = tmp_path / "federation.key"
    FederationKey.new().write(federation)
    names = ["bank", "hospital", "museum"]
    public = {}
    for name in names:
        pair = make_node_key()
        write_private(tmp_path / f"{name}.key", pair.private)
        public[name] = pair.public

    def signing(peers: dict[str, str]):
        folder = tmp_path / "peers"
        folder.mkdir()
        for name, of in peers.items():
            (folder / f"{name}.pub").write_bytes(public[of])

        def config(number: int) -> dict:
            name, file = names[number], tmp_path / f"{names[number]}.toml"
            policy = "unsealed = true\n" + (f'peers = "{folder}"\n' if name == "bank" else "")
            file.write_text(f"[policy]\n{policy}\n{tiny.LIMITS}")
            paths = {"node-key": tmp_path / f"{name}.key", "node-file": file}
            given = inprocess.real_node(name, data / f"{name}.jsonl")
            given |= {"federation-key": str(federation)}
            return given | {key: str(path) for key, path in paths.items()}

        return config

    return signing


@pytest.mark.parametrize("sealed", ["on", "off"])
def test_mkvs_of_strangers_and_with_wrong_signatures_are_rejected(
    settings, tmp_path, signing, sealed
):
    """The bank knows the hospital's key, and has a wrong one for the museum."""
    config = settings(num_slots=1, sealed=sealed, state_dir=str(tmp_path / "state"))
    nodes = signing({"hospital": "hospital", "museum": "bank"})
    results, _ = inprocess.federate(config, 3, node_config=nodes)
    (slot,) = results["slots"]

    assert slot["nodes"]["bank"]["received_from"] == {"hospital": 4}
    assert slot["nodes"]["bank"]["rejections"] == {"signature": 4}
    assert slot["nodes"]["museum"]["received_from"] == {"bank": 4, "hospital": 4}
    (ledger,) = (tmp_path / "state" / "bank").glob("**/ledger")
    entries = Ledger.open(ledger, read_index(ledger)["fingerprint"]).entries.values()
    received = [entry.mkv for entry in entries if entry.mkv.node == "hospital"]
    public = read_public_key(tmp_path / "peers" / "hospital.pub")
    assert len(received) == 4
    assert all(is_signed_by(mkv, {public}) for mkv in received), "whoever asks later can check"


def test_a_server_that_renames_open_mkvs_is_found_out(settings, tmp_path, signing):
    config = settings(num_slots=1, sealed="off", state_dir=str(tmp_path / "state"))

    def rename_one(node_id, message):
        if node_id == 101 and message.metadata.message_type == REEDIT:
            info = message.content["info"]
            info["mkv-meta"] = info["mkv-meta"].replace('"museum"', '"hospital"', 1)

    nodes = signing({"hospital": "hospital", "museum": "museum"})
    grid = Tampering(config, 3, rename_one, node_config=nodes)
    (slot,) = inprocess.federate_on(grid, config)["slots"]
    assert slot["nodes"]["bank"]["rejections"] == {"signature": 1}
    assert slot["nodes"]["bank"]["accepted"] == 7
