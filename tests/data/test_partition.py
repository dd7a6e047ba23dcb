"""Which node edits what in which slot."""

import json
import os

import pytest

from fedit_app.config import RunConfig
from fedit_app.data.partition import (
    default_node_count,
    is_simulated,
    own_data,
    simulated_nodes,
)
from fedit_app.errors import FedEditError


def write(file, count: int, prefix: str = "fact"):
    records = [
        {"id": f"{prefix}-{i}", "subject": f"S{i}", "prompt": "{} is", "target_new": "x"}
        for i in range(count)
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


@pytest.fixture
def folder(tmp_path):
    for name in ("court", "bakery", "archive"):
        write(tmp_path / f"{name}.jsonl", 3, name)
    (tmp_path / "notes.txt").write_text("not data")
    return tmp_path


def jsonl(path, **others) -> RunConfig:
    return RunConfig.parse({"dataset": "jsonl", "data-path": str(path), **others})


def simulated(number: int, count: int) -> dict:
    return {"partition-id": number, "num-partitions": count}


def ids(data, seed: int = 0) -> list[str]:
    return [request.id for request in data.read(seed)]


def test_every_file_is_a_node_named_after_it(folder):
    config = jsonl(folder)

    assert default_node_count(config) == 3
    nodes = simulated_nodes(config, 3)
    assert [node.name for node in nodes] == ["archive", "bakery", "court"]
    assert [ids(node)[0] for node in nodes] == ["archive-0", "bakery-0", "court-0"]
    assert [own_data(config, simulated(k, 3)) for k in range(3)] == nodes


def test_too_many_nodes_for_the_files(folder):
    with pytest.raises(FedEditError, match="3 .*too few for 4 nodes"):
        simulated_nodes(jsonl(folder), 4)


def test_a_data_path_that_does_not_exist(tmp_path):
    for partition in ("file", "random"):
        with pytest.raises(FedEditError, match="data-path.*does not exist"):
            simulated_nodes(jsonl(tmp_path / "absent", partition=partition), 2)


def test_random_needs_one_file(folder):
    with pytest.raises(FedEditError, match="folder.*one file"):
        simulated_nodes(jsonl(folder, partition="random"), 2)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_random_deals_out_every_request_once(tmp_path, count):
    config = jsonl(write(tmp_path / "all.jsonl", 11), partition="random")
    parts = [ids(node) for node in simulated_nodes(config, count)]

    dealt = [id_ for part in parts for id_ in part]
    assert sorted(dealt) == sorted(f"fact-{i}" for i in range(11))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    # Whichever node asks, it sees the same parts.
    assert [ids(own_data(config, simulated(k, count))) for k in range(count)] == parts


def test_random_is_seeded_and_shuffles(tmp_path):
    nodes = simulated_nodes(jsonl(write(tmp_path / "all.jsonl", 40), partition="random"), 2)

    assert ids(nodes[0], seed=1) == ids(nodes[0], seed=1)
    assert ids(nodes[0], seed=1) != ids(nodes[0], seed=2)
    assert ids(nodes[0], seed=1) != [f"fact-{i}" for i in range(20)]


def test_random_with_fewer_requests_than_nodes(tmp_path):
    nodes = simulated_nodes(jsonl(write(tmp_path / "all.jsonl", 2), partition="random"), 3)

    with pytest.raises(FedEditError, match="2 requests cannot be dealt out to 3 nodes"):
        nodes[0].read(0)


def test_names_of_random_nodes_sort_in_their_order(tmp_path):
    nodes = simulated_nodes(jsonl(write(tmp_path / "a.jsonl", 20), partition="random"), 12)

    names = [node.name for node in nodes]
    assert names == sorted(names)
    assert len(set(names)) == 12


def test_a_real_node_brings_its_name_and_data(tmp_path):
    file = write(tmp_path / "private.jsonl", 2)
    node_config = {"name": "Notary", "data-path": str(file)}

    for config in (RunConfig(), jsonl("/elsewhere"), jsonl("/elsewhere", partition="random")):
        data = own_data(config, node_config)
        assert data.name == "Notary"
        assert ids(data) == ["fact-0", "fact-1"]
    assert not is_simulated(node_config)


def test_a_real_node_may_use_its_home_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "HOME", str(tmp_path))
    write(tmp_path / "mine.jsonl", 1)

    assert ids(own_data(RunConfig(), {"name": "n", "data-path": "~/mine.jsonl"})) == ["fact-0"]


@pytest.mark.parametrize(
    ("node_config", "missing"),
    [({}, "name and data-path"), ({"name": "n"}, "data-path"), ({"data-path": "/d"}, "name")],
)
def test_a_real_node_without_name_or_data_is_told_how(node_config, missing):
    with pytest.raises(FedEditError, match=f"{missing} missing.*--node-config"):
        own_data(RunConfig(), node_config)
