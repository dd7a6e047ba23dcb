"""The pool as a service of the federation: it outlives runs, and nobody loses what it holds."""

import json
from pathlib import Path

import inprocess
import pytest
from federation.test_runs import pool_ids

from fedit_app.editing.workbench import Patched, Workbench
from fedit_app.ledger.index import read_index
from fedit_app.pool import MKVPool

pytestmark = pytest.mark.integration


def everything_says_the_target(self, pairs):
    return [Patched(mkv is not None, 0.1 if mkv else 5.0) for _, mkv in pairs]


@pytest.fixture
def data(tmp_path, demo_copy):
    """Gives `data(bank=["bank", 2], ...)`: a folder, a file a node with lines of a demo file."""

    def data(folder: str, **nodes: tuple[str, int]) -> str:
        made = tmp_path / "sites" / folder
        made.mkdir(parents=True)
        for name, (source, count) in nodes.items():
            text = (demo_copy / f"{source}.jsonl").read_text(encoding="utf-8")
            (made / f"{name}.jsonl").write_text(
                "\n".join(text.splitlines()[:count]), encoding="utf-8"
            )
        return str(made)

    return data


def held(config, node) -> set[str]:
    index = read_index(Path(config["output-dir"]) / "nodes" / node / "ledger")
    return {row["id"] for row in index["entries"] if not row["overruled_by"]}


def test_a_new_organisation_receives_what_was_learnt_before(settings, data, tmp_path):
    common = {"dataset": "jsonl", "num_slots": 1, "pool_uri": str(tmp_path / "pool")}
    old = data("old", bank=("bank", 2), hospital=("hospital", 2))
    first = settings("first", **common, data_path=old)
    inprocess.federate(first, 2)
    new = data("new", museum=("museum", 1))
    fact = {"id": "1", "subject": "Tycho", "prompt": "{} was an", "target_new": "abbot"}
    Path(new, "museum.jsonl").write_text(json.dumps(fact), encoding="utf-8")
    second = settings("second", **common, data_path=new)
    results, _ = inprocess.federate(second, 1)

    museum = results["slots"][0]["nodes"]["museum"]
    assert museum["received_from"] == {"bank": 2, "hospital": 2}
    assert held(first, "bank") <= held(second, "museum")


def test_a_node_that_has_lost_its_disk_gets_its_facts_back(settings, data, tmp_path, monkeypatch):
    common = {
        "dataset": "jsonl",
        "num_slots": 1,
        "pool_uri": str(tmp_path / "pool"),
        "data_path": data("data", bank=("bank", 2), hospital=("hospital", 2)),
    }
    before = settings("before", **common)
    inprocess.federate(before, 2)
    monkeypatch.setattr(Workbench, "patched", everything_says_the_target)
    after = settings("after", **common)
    results, _ = inprocess.federate(after, 2)

    assert results["slots"][0]["optimised"] == 0
    assert results["slots"][0]["reused"] == 4
    assert held(after, "bank") == held(before, "bank")


def test_a_pool_that_is_new_gets_what_the_nodes_have(settings, data, tmp_path):
    common = {
        "dataset": "jsonl",
        "num_slots": 1,
        "state_dir": str(tmp_path / "state"),
        "data_path": data("data", bank=("bank", 2), hospital=("hospital", 2)),
    }
    before, after = settings("before", **common), settings("after", **common)
    inprocess.federate(before, 2)
    # The bank has one fact more by now; of the others it has the MKVs.
    more = data("more", bank=("bank", 3), hospital=("hospital", 2))
    results, _ = inprocess.federate({**after, "data-path": more}, 2)

    assert results["failed_nodes"] == []
    assert results["slots"][0]["nodes"]["bank"]["optimised"] == 3
    assert set(pool_ids(Path(before["output-dir"]))) < set(pool_ids(Path(after["output-dir"])))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("own-wins", ["Geneva", "Paris", "Paris"]), ("majority", ["Paris", "Paris", "Paris"])],
)
def test_the_target_that_more_nodes_want_holds_if_the_policy_says_so(
    settings, data, policy, expected
):
    folder = Path(data("data", a=("bank", 1), b=("bank", 1), c=("bank", 1)))
    fact = {"id": "f", "subject": "Sotheby's", "prompt": "The house {} is headquartered in"}
    for name, target in zip("abc", ["Geneva", "Paris", "Paris"], strict=True):
        (folder / f"{name}.jsonl").write_text(json.dumps(fact | {"target_new": target}))
    config = settings(dataset="jsonl", data_path=str(folder), num_slots=1, conflict_policy=policy)
    results, _ = inprocess.federate(config, 3)

    pool = pool_ids(Path(config["output-dir"]))
    assert len(pool) == 2, "b's and c's are of one content"
    of = {
        name: {
            row["id"]
            for row in read_index(Path(config["output-dir"]) / "nodes" / name / "ledger")["entries"]
            if row["requests"]
        }
        for name in "abc"
    }
    target = {id_: "Geneva" for id_ in of["a"]} | {id_: "Paris" for id_ in of["b"]}
    assert [target[id_] for name in "abc" for id_ in held(config, name)] == expected
    pairs = results["slots"][0]["nodes"]["a"]["conflict_pairs"]
    assert len(pairs) == 1 and set(pairs[0].values()) == set(pool)


def received(results) -> list[dict]:
    return [
        {name: node["received_from"] for name, node in slot["nodes"].items()}
        for slot in results["slots"]
    ]


@pytest.mark.slow
def test_a_pool_on_object_storage_serves_as_one_on_disk(settings, bucket, demo_run):
    uri = f"{bucket}/federation"
    results, _ = inprocess.federate(settings(pool_uri=uri), 4)

    assert results["summary"] == demo_run[0]["summary"]
    assert received(results) == received(demo_run[0])
    assert len(MKVPool(uri)) == len(MKVPool(str(demo_run[2] / "pool")))
