"""Which node edits what in which slot."""

import json
import os
from pathlib import Path

import pytest

from fedit_app.config.node_config import is_simulated
from fedit_app.config.run_config import RunConfig
from fedit_app.facts.partition import default_node_count, own_data, simulated_nodes
from fedit_app.support.errors import FedEditError

RUN = Path("/no/run")  # nobody writes there


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
        record = {"subject": "S", "src": f"What is S{number}?", "answers": ["x"]}
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
    with pytest.raises(FedEditError, match=r"0 \*.jsonl and \*.csv files"):
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
