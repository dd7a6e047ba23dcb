"""Data sets by name; a folder stands for the hub."""

import json

import pytest
from published import counterfact

from fedit_app.config.run_config import RunConfig
from fedit_app.facts.sources import read_data
from fedit_app.support.errors import FedEditError
from fedit_app.support.hub import load_rows

FACT = {"id": "a", "subject": "S", "prompt": "{} is", "target_new": "x"}
QUESTION = {"subject": "S", "src": "What is S?", "answers": ["x", "y"]}
RECORD = counterfact(3, "{} is", "S", "x", "y")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Gives `folder(train=[...], test=[...])`: the name of a data set with these splits."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))

    def folder(**splits) -> str:
        data = tmp_path / "data"
        data.mkdir()
        for split, records in splits.items():
            text = "\n".join(map(json.dumps, records))
            (data / f"{split}.jsonl").write_text(text, encoding="utf-8")
        return f"hub:{data}"

    return folder


def read(dataset: str, path: str) -> list:
    values = {"dataset": dataset, "data-path": path, "partition": "random"}
    return read_data(RunConfig.parse(values))


def test_every_format_is_read(folder, tmp_path):
    for dataset, record in (("jsonl", FACT), ("zsre", QUESTION), ("counterfact", RECORD)):
        (request,) = read(dataset, folder(train=[record]))
        assert (request.text.strip("?").split()[-1], request.target_new) in {
            ("is", "x"),
            ("S", "x"),
        }
        (tmp_path / "data").rename(tmp_path / dataset)


def test_the_split_is_train_or_the_one_that_is_named(folder):
    name = folder(train=[FACT], test=[FACT | {"id": "b"}])

    assert [request.id for request in read("jsonl", name)] == ["a"]
    assert [request.id for request in read("jsonl", f"{name}:default:test")] == ["b"]
    assert [row["id"] for row in load_rows("data-path", f"{name}::test")] == ["b"]


def test_what_is_null_is_absent(folder):
    first, second = read(
        "jsonl", folder(train=[FACT | {"slot": 2, "relation": "P1"}, {**FACT, "id": "b"}])
    )
    assert (first.slot, second.slot) == (2, None)
    assert (first.relation, second.relation) == ("P1", None)


def test_a_faulty_record_is_named(folder):
    name = folder(train=[FACT, FACT | {"id": "b", "prompt": "it is"}])
    with pytest.raises(FedEditError, match="data set hub:.*: record 2: prompt has 0 placeholders"):
        read("jsonl", name)


@pytest.mark.parametrize("end", ["", ":none", "::none", ":a:b:c"])
def test_a_data_set_that_cannot_be_loaded(tmp_path, end):
    with pytest.raises(FedEditError, match=r"^data-path: .*hub:.*DATASET\[:CONFIG\[:SPLIT\]\]"):
        read("jsonl", f"hub:{tmp_path}/absent{end}")
