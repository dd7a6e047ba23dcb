"""Federations on published data, dealt out to the nodes, with facts that several of them want."""

import json
from pathlib import Path

import inprocess
import pytest

from fedit_app.cli.main import main
from fedit_app.facts.jsonl import read_requests
from fedit_app.report import load_results

pytestmark = pytest.mark.integration

SECRETS = [b"Harlowick", b"seat of", b"Qualverin", b"Oldenmoor", b"nq question"]


@pytest.fixture(scope="module")
def counterfact(tmp_path_factory) -> str:
    """A file of 24 CounterFact records of three relations."""
    records = []
    for number in range(24):
        subject = f"Harlowick {number}"
        rewrite = {
            "prompt": f"The seat of {{}} number {number} is in",
            "subject": subject,
            "target_new": {"str": f"Qualverin {number % 5}"},
            "target_true": {"str": "Oldenmoor"},
            "relation_id": f"P{number % 3}",
        }
        records.append(
            {
                "case_id": number,
                "requested_rewrite": rewrite,
                "paraphrase_prompts": [f"It rained. {subject} sits in"],
                "neighborhood_prompts": ["The seat of another is in"],
            }
        )
    file = tmp_path_factory.mktemp("data") / "counterfact.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def zsre(tmp_path_factory) -> str:
    """A file of 20 zsRE records."""
    records = [
        {
            "subject": f"Harlowick {number}",
            "src": f"What {'city' if number % 2 else 'year'} is the seat of Harlowick {number}?",
            "rephrase": f"Where sits Harlowick {number}?",
            "answers": [f"Qualverin of {number}"],
            "alt": "Oldenmoor",
            "loc": f"nq question: who made number {number}",
            "loc_ans": "Oldenmoor himself",
        }
        for number in range(20)
    ]
    file = tmp_path_factory.mktemp("data") / "zsre.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def related(small, counterfact, tmp_path_factory):
    """One relation a node, two slots of two, half of the facts once more in a later slot."""
    folder = tmp_path_factory.mktemp("related") / "run"
    config = {
        **small,
        "dataset": "counterfact",
        "data-path": counterfact,
        "partition": "relation",
        "num-slots": 2,
        "requests-per-slot": 2,
        "overlap": 0.5,
        "overlap-slot": "later",
        "output-dir": str(folder),
    }
    return *inprocess.federate(config, 3), folder


def test_nodes_edit_their_relation_and_their_copies(related):
    results, _, folder = related

    assert results["status"] == "completed" and results["failed_nodes"] == []
    assert sorted(results["nodes"]) == ["P0", "P1", "P2"]
    requests = [
        {name: node["requests"] for name, node in slot["nodes"].items()}
        for slot in results["slots"]
    ]
    assert requests[0] == {"P0": 2, "P1": 2, "P2": 2}
    assert sum(requests[1].values()) == 6 + 6
    for name in ("P0", "P1", "P2"):
        held = read_requests(folder / "requests" / f"{name}.jsonl")
        assert results["nodes"][name]["own"]["count"] == len(held)
        # Copies are the same facts: the federation has twelve.
        assert results["nodes"][name]["federation"]["count"] == 12
        assert results["nodes"][name]["own"]["metric"] == "likelihood"


def test_a_run_on_the_requests_of_a_run_gives_the_same_results(related, small, tmp_path):
    results, _, folder = related
    config = {**small, "dataset": "jsonl", "data-path": str(folder / "requests"), "num-slots": 2}
    again, _ = inprocess.federate({**config, "output-dir": str(tmp_path / "run")}, 3)

    assert again["nodes"] == results["nodes"]


def test_texts_lie_in_the_folder_of_requests_alone(related):
    _, grid, folder = related
    texts = [file for file in folder.rglob("*") if file.is_file() and _tells(file.read_bytes())]

    assert {file.parent.name for file in texts} == {"requests"}
    assert len(texts) == 3
    assert not [wire for wire in (*grid.sent, *grid.received) if _tells(wire)]


def _tells(data: bytes) -> list[bytes]:
    return [secret for secret in SECRETS if secret in data]


def test_own_facts_are_asked_from_the_run_folder(related, capsys):
    folder = related[2]
    assert main(["ask", str(folder), "--node", "P1"]) == 0
    said = capsys.readouterr().out

    own = [r.text for r in read_requests(folder / "requests" / "P1.jsonl")]
    assert sum(f"\n{text} ...\n" in said for text in own) == 3


@pytest.mark.parametrize("strategy", ["fedit", "central"])
def test_zsre_in_clusters(settings, zsre, strategy):
    config = settings(
        dataset="zsre",
        data_path=zsre,
        partition="cluster",
        num_slots=1,
        requests_per_slot=2,
        strategy=strategy,
    )
    results, _ = inprocess.federate(config, 2)

    assert results["status"] == "completed" and results["failed_nodes"] == []
    assert sorted(results["nodes"]) == ["cluster-1", "cluster-2"]
    loaded = load_results(Path(config["output-dir"]) / "results.json").as_json()
    assert loaded["summary"]["federation"]["metric"] == "tokens"
    assert loaded["summary"]["before"]["own"]["neighborhood"] is not None
    assert loaded["summary"]["own"]["count"] == loaded["slots"][0]["requests"] == 4


def test_data_that_cannot_be_dealt_out_is_every_nodes_reason(settings, zsre):
    config = settings(
        dataset="zsre", data_path=zsre, partition="random", num_slots=1, requests_per_slot=2
    )
    with pytest.raises(Exception, match="no node can take part"):
        inprocess.federate(config, 21)

    failures = load_results(Path(config["output-dir"]) / "results.json").failed_nodes
    assert len(failures) == 21
    assert all("20 requests are too few for 21 nodes" in f.reason for f in failures)
