"""Which node edits what in which slot; a partition is worked out once, and read by everybody."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from published import counterfact

from fedit_app.config.node_config import is_simulated
from fedit_app.config.run_config import RunConfig
from fedit_app.experiments.preflight import check_simulation
from fedit_app.facts import partition as module
from fedit_app.facts.jsonl import read_requests, write_requests
from fedit_app.facts.partition import (
    check_partition,
    default_node_count,
    finished_node,
    own_data,
    simulated_nodes,
)
from fedit_app.models.embedding import embed
from fedit_app.support.errors import FedEditError

RUN = Path("/no/run")  # nobody writes there
SECRETS = ("Subject", "seat of", "sits in", "Oldenmoor", "new-")


# A file a node


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


def ids(data) -> list[str]:
    return [request.id for request in data.read()]


def test_every_file_is_a_node_named_after_it(folder):
    config = jsonl(folder)

    assert default_node_count(config) == 3
    nodes = simulated_nodes(config, 3, RUN)
    assert [node.name for node in nodes] == ["archive", "bakery", "court"]
    assert [ids(node)[0] for node in nodes] == ["archive-0", "bakery-0", "court-0"]
    assert [own_data(config, simulated(k, 3), RUN) for k in range(3)] == nodes


def test_a_csv_file_is_a_node_too(folder):
    rows = "id,subject,prompt,target_new\n1,S,{} is,x\n"
    (folder / "dairy.csv").write_text(rows, encoding="utf-8")
    (folder / "figures.json").write_text("[]", encoding="utf-8")

    assert default_node_count(jsonl(folder)) == 4
    assert ids(simulated_nodes(jsonl(folder), 4, RUN)[3]) == ["1"]

    (folder / "court.csv").write_text(rows, encoding="utf-8")
    with pytest.raises(FedEditError, match="court.csv and court.jsonl .* rename one"):
        simulated_nodes(jsonl(folder), 4, RUN)


def test_published_data_may_lie_in_a_file_a_node(tmp_path):
    for number, name in enumerate(("a.json", "b.jsonl")):
        record = {"subject": f"S{number}", "src": f"What is S{number}?", "answers": ["x"]}
        text = json.dumps([record] if name.endswith(".json") else record)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "notes.csv").write_text("not data", encoding="utf-8")
    values = {"dataset": "zsre", "data-path": str(tmp_path), "requests-per-slot": 1}
    nodes = simulated_nodes(RunConfig.parse(values), 2, RUN)

    assert [node.name for node in nodes] == ["a", "b"]
    assert [node.read()[0].text for node in nodes] == ["What is S0?", "What is S1?"]


def test_slots_are_those_of_the_run_config(folder):
    node = simulated_nodes(jsonl(folder), 1, RUN)[0]

    assert [len(slot) for slot in node.slots(jsonl(folder))] == [3, 0, 0]
    config = jsonl(folder, **{"requests-per-slot": 2, "num-slots": 2})
    assert [len(slot) for slot in node.slots(config)] == [2, 1]


def test_published_records_name_no_slots(tmp_path):
    record = {"subject": "S", "src": "What is S?", "answers": ["x"]}
    (tmp_path / "a.json").write_text(json.dumps([record]), encoding="utf-8")
    config = RunConfig.parse({"dataset": "zsre", "data-path": str(tmp_path)})
    with pytest.raises(FedEditError, match="dataset = zsre needs requests-per-slot"):
        simulated_nodes(config, 1, RUN)[0].slots(config)


def test_too_many_nodes_for_the_files(folder):
    with pytest.raises(FedEditError, match="3 .*too few for 4 nodes"):
        simulated_nodes(jsonl(folder), 4, RUN)


def test_a_folder_without_data(tmp_path):
    with pytest.raises(FedEditError, match=r"0 \*.jsonl, \*.csv and \*.tsv files"):
        default_node_count(jsonl(tmp_path))


def test_a_data_path_that_does_not_exist(tmp_path):
    for partition in ("file", "random"):
        with pytest.raises(FedEditError, match="data-path.*does not exist"):
            simulated_nodes(jsonl(tmp_path / "absent", partition=partition), 2, tmp_path / "run")


def test_random_needs_one_file(folder, tmp_path):
    with pytest.raises(FedEditError, match="folder.*one file"):
        simulated_nodes(jsonl(folder, partition="random"), 2, tmp_path / "run")


def test_a_real_node_brings_its_name_and_data(tmp_path):
    file = write(tmp_path / "private.jsonl", 2)
    node_config = {"name": "Notary", "data-path": str(file)}

    for config in (RunConfig(), jsonl("/elsewhere"), jsonl("/elsewhere", partition="random")):
        data = own_data(config, node_config, RUN)
        assert data.name == "Notary"
        assert ids(data) == ["fact-0", "fact-1"]
    assert not is_simulated(node_config)


def test_a_real_node_may_use_its_home_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "HOME", str(tmp_path))
    write(tmp_path / "mine.jsonl", 1)

    assert ids(own_data(RunConfig(), {"name": "n", "data-path": "~/mine.jsonl"}, RUN)) == ["fact-0"]


@pytest.mark.parametrize(
    ("node_config", "missing"),
    [({}, "name and data-path"), ({"name": "n"}, "data-path"), ({"data-path": "/d"}, "name")],
)
def test_a_real_node_without_name_or_data_is_told_how(node_config, missing):
    with pytest.raises(FedEditError, match=f"{missing} missing.*--node-config"):
        own_data(RunConfig(), node_config, RUN)


# One data set, dealt out


def record(number: int, relation: str | None) -> dict:
    subject = f"Subject {number}"
    paraphrases = [f"It rained. {subject} sits in", f"{subject} is seated in"]
    fact = ("The seat of {} is in", subject, f"new-{number % 7}", "Oldenmoor", relation)
    return counterfact(number, *fact, paraphrase_prompts=paraphrases)


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """60 CounterFact records, 30 of P1, 20 of P2 and 10 of P3, mixed."""
    file = tmp_path_factory.mktemp("facts") / "counterfact.json"
    relations = ["P1", "P2", "P1", "P3", "P2", "P1"] * 10
    records = [record(number, relation) for number, relation in enumerate(relations)]
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


@pytest.fixture
def config(facts, tiny_folder):
    """Gives `config(key=value, ...)`: three relations over two slots of four, and changes."""

    def config(**changes) -> RunConfig:
        values = {
            "model": str(tiny_folder),
            "dataset": "counterfact",
            "data-path": str(facts),
            "partition": "relation",
            "num-slots": 2,
            "requests-per-slot": 4,
        }
        return RunConfig.parse(values | {k.replace("_", "-"): v for k, v in changes.items()})

    return config


def kept(folder) -> dict:
    return json.loads((folder / "partition.json").read_text(encoding="utf-8"))


def test_nodes_take_their_first_requests_and_the_rest_is_counted(config, tmp_path):
    nodes = simulated_nodes(config(), 3, tmp_path)

    assert [node.name for node in nodes] == ["P1", "P2", "P3"]
    for node in nodes:
        slots = node.slots(config())
        assert [len(slot) for slot in slots] == [4, 4]
        assert {request.relation for request in node.read()} == {node.name}
        assert [request.slot for request in node.read()] == [1] * 4 + [2] * 4
    assert [request.id for request in nodes[0].read()] == [
        "0",
        "2",
        "5",
        "6",
        "8",
        "11",
        "12",
        "14",
    ]
    assert kept(tmp_path)["nodes"] == [
        {"name": "P1", "taken": 8, "left_out": 22, "copies": 0},
        {"name": "P2", "taken": 8, "left_out": 12, "copies": 0},
        {"name": "P3", "taken": 8, "left_out": 2, "copies": 0},
    ]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"partition": "random"}, ["node-1", "node-2", "node-3"]),
        ({"partition": "dirichlet"}, ["node-1", "node-2", "node-3"]),
        ({"partition": "cluster"}, ["cluster-1", "cluster-2", "cluster-3"]),
        ({"partition": "relation", "overlap": 0.5}, ["P1", "P2", "P3"]),
    ],
)
def test_every_virtual_node_sees_the_same_partition(config, tmp_path, changes, names):
    config = config(**changes)
    nodes = simulated_nodes(config, 3, tmp_path, embed)

    assert [node.name for node in nodes] == names
    for number in range(3):
        node_config = {"partition-id": number, "num-partitions": 3}
        assert own_data(config, node_config, tmp_path) == nodes[number]
    again = simulated_nodes(config, 3, tmp_path / "again", embed)
    assert [node.read() for node in again] == [node.read() for node in nodes]
    ids = [(node.name, request.id) for node in nodes for request in node.read()]
    assert len(ids) == len(set(ids))


def test_a_partition_is_worked_out_once(config, tmp_path, monkeypatch):
    made, make = [], module.make_partition
    monkeypatch.setattr(module, "make_partition", lambda *given: made.append(given) or make(*given))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: simulated_nodes(config(), 3, tmp_path), range(8)))

    assert len(made) == 1
    assert [[node.name for node in nodes] for nodes in found] == [["P1", "P2", "P3"]] * 8


def test_what_was_not_finished_is_done_again(config, tmp_path):
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "P1.jsonl").write_text("{", encoding="utf-8")

    assert len(simulated_nodes(config(), 3, tmp_path)[0].read()) == 8


@pytest.mark.parametrize(
    ("changes", "count", "told"),
    [
        ({"seed": 1}, 3, "seed"),
        ({"overlap": 0.25, "overlap_slot": "later"}, 3, "overlap, overlap-slot"),
        ({}, 2, "nodes"),
    ],
)
def test_another_partition_needs_another_folder(config, tmp_path, changes, count, told):
    simulated_nodes(config(), 3, tmp_path)
    with pytest.raises(FedEditError, match=f"has a partition with another {told}; choose another"):
        simulated_nodes(config(**changes), count, tmp_path)


def test_copies_are_written_down_without_their_texts(config, tmp_path):
    overlap = {"overlap": 0.5, "overlap_clients": 2, "overlap_conflicts": 0.5}
    nodes = simulated_nodes(config(**overlap, overlap_form="paraphrase"), 3, tmp_path)

    copies = kept(tmp_path)["copies"]
    assert len(copies) == 3 * 4 * 2
    assert sum(copy["conflict"] for copy in copies) == 12
    by_name = {node.name: {r.id: r for r in node.read()} for node in nodes}
    for copy in copies:
        found = by_name[copy["node"]][copy["id"]]
        original = by_name[copy["owner"]][copy["original"]]
        assert found.slot == copy["slot"] == original.slot == copy["original_slot"]
        assert found.prompt != original.prompt and found.subject == original.subject
        assert (found.target_new != original.target_new) == copy["conflict"]
    assert [node["taken"] for node in kept(tmp_path)["nodes"]] == [8, 8, 8]
    assert sum(node["copies"] for node in kept(tmp_path)["nodes"]) == len(copies)
    text = (tmp_path / "partition.json").read_text(encoding="utf-8")
    assert not [secret for secret in SECRETS if secret in text]


def test_copies_in_a_later_slot_come_on_top(config, tmp_path):
    overlapping = config(overlap=0.5, overlap_slot="later")
    nodes = simulated_nodes(overlapping, 3, tmp_path)

    sizes = [[len(slot) for slot in node.slots(overlapping)] for node in nodes]
    assert [size[0] for size in sizes] == [4, 4, 4]
    assert sum(size[1] for size in sizes) == 3 * 4 + 3 * 4


def test_the_requests_of_a_run_can_be_another_runs_data(config, tmp_path):
    overlapping = config(overlap=0.5)
    nodes = simulated_nodes(overlapping, 3, tmp_path)
    values = {"dataset": "jsonl", "data-path": str(tmp_path / "requests"), "num-slots": 2}
    again = RunConfig.parse(values)

    assert default_node_count(again) == 3
    for node, same in zip(nodes, simulated_nodes(again, 3, tmp_path / "other"), strict=True):
        assert same.name == node.name
        assert same.slots(again) == node.slots(overlapping)


def test_overlap_on_top_of_a_file_a_node(tmp_path, tiny_folder):
    config = RunConfig(model=str(tiny_folder), overlap=0.4)
    nodes = simulated_nodes(config, 4, tmp_path)

    assert [node.name for node in nodes] == ["bank", "hospital", "museum", "newsroom"]
    for node in nodes:
        own = [request for request in node.read() if "~" not in request.id]
        assert [sum(r.slot == slot for r in own) for slot in (1, 2, 3)] == [5, 5, 5]
    assert len(kept(tmp_path)["copies"]) == 4 * 6


def test_a_node_of_a_finished_run_is_found_again(config, tmp_path):
    simulated_nodes(config(), 3, tmp_path)
    moved = tmp_path.rename(tmp_path.with_name("moved"))

    assert len(finished_node(config(), moved, "P2").read()) == 8
    assert finished_node(config(), moved, "P9") is None
    assert finished_node(RunConfig(), moved, "museum").read()[0].id == "museum-01"
    assert finished_node(RunConfig(), moved, "nobody") is None


def test_nodes_with_too_few_requests_are_warned_of(config, tmp_path, log):
    simulated_nodes(config(requests_per_slot=8), 3, tmp_path)

    assert "node P3 has 10 requests, too few for 2 slots of 8" in log.text
    assert "node P1 has" not in log.text
    assert "node P1 edits 16 of its 30 requests, and 0 copies" in log.text


@pytest.mark.parametrize(
    ("changes", "count", "told"),
    [
        ({}, 4, "3 relations, too few for 4 nodes"),
        ({"partition": "random"}, 61, "60 requests are too few for 61 nodes"),
        ({"partition": "cluster"}, 61, "60 requests are too few for 61 nodes"),
        (
            {"partition": "cluster", "overlap": 0.5},
            1,
            "overlap-clients = 1 is too large for 1 nodes",
        ),
        ({"partition": "cluster", "requests_per_slot": ""}, 3, "needs requests-per-slot"),
        ({"requests_per_slot": ""}, 3, "needs requests-per-slot"),
        ({"overlap": 0.5, "overlap_clients": 3}, 3, "overlap-clients = 3 is too large for 3 nodes"),
        ({"overlap": 0.5, "overlap_slot": "later", "num_slots": 1}, 3, "num-slots = 2 or more"),
        ({"data_path": "/no/such.json"}, 3, "/no/such.json does not exist"),
    ],
)
def test_what_is_wrong_is_found_before_the_run(config, changes, count, told):
    with pytest.raises(FedEditError, match=told):
        check_partition(config(**changes), count)


def test_a_partition_that_can_be_made_passes_the_check_without_a_model(config):
    for partition in ("relation", "random", "dirichlet", "cluster"):
        needs_model = check_partition(config(partition=partition, overlap=0.5), 3)
        assert needs_model == (partition == "cluster")


def test_an_embedding_model_that_is_missing_is_found_before_the_run(config, tiny_folder):
    given = config(partition="cluster", embedding_model="/no/such", model=str(tiny_folder))
    with pytest.raises(FedEditError, match="embedding-model: folder /no/such does not exist"):
        check_simulation(given, 3)


def test_facts_of_similar_relations_need_embeddings_and_are_dealt_out_by_slot(config, tmp_path):
    given = config(partition="relation", similar_share=0.5, requests_per_slot=2)
    assert check_partition(given, 2)
    embed = lambda _, texts: np.array([[len(text), 1.0] for text in texts])  # noqa: E731
    nodes = simulated_nodes(given, 2, tmp_path / "run", embed)
    for node in nodes:
        for slot in node.slots(given):
            assert sorted(request.relation == node.name for request in slot) == [False, True]
    made = json.loads((tmp_path / "run" / "partition.json").read_text())["made_with"]
    assert made["similar-share"] == 0.5
    with pytest.raises(FedEditError, match="similar-share needs partition = relation"):
        config(partition="random", similar_share=0.5)
    with pytest.raises(FedEditError, match="similar-share needs requests-per-slot"):
        config(partition="relation", similar_share=0.5, requests_per_slot="")


def test_without_relations_dirichlet_mixes_clusters(config, tmp_path, facts):
    lines = facts.read_text(encoding="utf-8").replace('"P3"', "null")
    (tmp_path / "some.json").write_text(lines, encoding="utf-8")
    asked = []

    def counted(config, texts):
        asked.append(len(texts))
        return embed(config, texts)

    changed = config(partition="dirichlet", data_path=str(tmp_path / "some.json"))

    assert len(simulated_nodes(changed, 3, tmp_path / "run", counted)) == 3
    assert asked == [60]
    simulated_nodes(config(partition="dirichlet"), 3, tmp_path / "related", counted)
    assert asked == [60]


def test_requests_behind_the_last_slot_are_no_requests(tmp_path):
    records = [
        {"id": f"{n}", "subject": "S", "prompt": "{} is", "target_new": "x", "slot": 4 + n}
        for n in range(2)
    ]
    file = tmp_path / "late.jsonl"
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    values = {"dataset": "jsonl", "data-path": str(file), "partition": "random"}
    with pytest.raises(FedEditError, match="node node-1 has no request in 3 slots"):
        simulated_nodes(RunConfig.parse(values), 2, tmp_path)
    assert not (tmp_path / "requests").exists()


def test_written_requests_are_read_back(tmp_path):
    requests = simulated_nodes(RunConfig(), 1, RUN)[0].read()
    write_requests(tmp_path / "same.jsonl", requests)

    assert read_requests(tmp_path / "same.jsonl") == requests
