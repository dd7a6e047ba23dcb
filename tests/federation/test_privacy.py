"""No text of a request leaves its node: not in messages, not in the pool, not in an error."""

import json
from pathlib import Path

import inprocess
import lancedb
import numpy as np
import pytest

from fedit_app.editing.workbench import Workbench
from fedit_app.mkv import create
from fedit_app.pool import MKVPool

pytestmark = pytest.mark.integration

LEAST = 4
LEAST_OF_PROMPT = 8  # shorter ones, such as "is the", stand in any text


def needles(records: list[dict]) -> dict[bytes, str]:
    """What must not be found: every text of the requests, in the encodings it could travel in."""
    texts = set()
    for record in records:
        texts |= {record["id"], record["subject"], record["target_new"], record["target_true"]}
        parts = {part.strip() for part in record["prompt"].split("{}")}
        texts |= {part for part in parts if len(part) >= LEAST_OF_PROMPT}
        texts |= {*record["paraphrase_prompts"], *record["neighborhood_prompts"]}
        texts |= {*record.get("portability_prompts", ()), *record.get("portability_targets", ())}
        texts |= {*record.get("subject_prompts", ()), *record.get("paraphrase_questions", ())}
        texts |= {record["question"]} if "question" in record else set()
    found = {}
    for text in texts:
        if len(text) >= LEAST:
            for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
                found |= {form.encode(): text, form.encode("utf-16-le"): text}
    return found


def leaks(haystacks: list[bytes], wanted: dict[bytes, str]) -> set[str]:
    everything = b"\0\0".join(haystacks)
    return {text for form, text in wanted.items() if form in everything}


def stored(folder: Path) -> list[bytes]:
    """Every file of a run folder, and the pool's rows as they are read (columns may be packed)."""
    files = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    table = lancedb.connect(str(folder / "pool")).open_table("mkvs").to_arrow()
    cells = [cell for name in ("id", "node", "fingerprint") for cell in table[name].to_pylist()]
    return [*files, *(cell.encode() for cell in cells), *table["payload"].to_pylist()]


def test_messages_hold_no_text(demo_run, demo_records):
    _, grid, _ = demo_run
    wanted = needles(demo_records)

    assert len(wanted) > 400
    assert len(grid.sent) == len(grid.received) > 4 * (2 + 3 * 3), "and rounds of composition"
    assert leaks([*grid.sent, *grid.received], wanted) == set()


def test_the_server_stores_no_text(demo_run, demo_records):
    _, _, folder = demo_run
    served = [data for data in stored(folder) if data]
    own = [file for name in ("index.json", "journal.jsonl") for file in folder.rglob(name)]
    ledgers = [file.read_bytes() for file in own if file.is_relative_to(folder / "nodes")]
    outside = [data for data in served if data not in ledgers]

    assert len(outside) == len(served) - 2 * 4
    assert leaks(outside, needles(demo_records)) == set()


@pytest.mark.parametrize("strategy", ["central", "fedavg"])
def test_other_strategies_send_no_text_either(settings, demo_records, strategy):
    _, grid = inprocess.federate(settings(strategy=strategy, num_slots=1), 4)

    assert len(grid.received) > 12
    assert leaks([*grid.sent, *grid.received], needles(demo_records)) == set()


def test_the_search_finds_what_is_planted(settings, demo_copy, demo_records, tmp_path):
    told = demo_records[0]["subject"]
    (demo_copy / "bank.jsonl").rename(demo_copy / f"{told}.jsonl")  # a node's name travels
    config = settings(dataset="jsonl", data_path=str(demo_copy), num_slots=1)
    _, grid = inprocess.federate(config, 4)
    assert leaks(grid.received, needles(demo_records)) == {told}

    keys = np.ones((2, 4))
    secret = demo_records[1]["target_new"]
    MKVPool(str(tmp_path / "p" / "pool")).append([create(secret, 1, "f", keys, keys, *keys)])
    assert leaks(stored(tmp_path / "p"), needles(demo_records)) == {secret}


def spoilt(record: dict, **changes) -> dict:
    return {key: value for key, value in (record | changes).items() if value is not ...}


BAD = {
    "no placeholder": lambda r: spoilt(r, prompt=f"{r['subject']}: {r['subject']} is located in"),
    "no placeholder in the question": lambda r: spoilt(r, question="Where is it located?"),
    "two placeholders": lambda r: spoilt(r, prompt=r["prompt"] + " {}"),
    "target is a list": lambda r: spoilt(r, target_new=[r["target_new"]]),
    "target empty": lambda r: spoilt(r, target_new=""),
    "control character": lambda r: spoilt(r, target_new=r["target_new"] + "\x07"),
    "slot is text": lambda r: spoilt(r, slot=r["subject"]),
    "prompts are text": lambda r: spoilt(r, paraphrase_prompts=r["paraphrase_prompts"][0]),
    "no subject": lambda r: spoilt(r, subject=...),
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_a_faulty_record_is_reported_without_its_text(settings, demo_copy, demo_records, spoil):
    file = demo_copy / "bank.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    records[2] = spoil(records[2])
    file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    config = settings(dataset="jsonl", data_path=str(demo_copy), strategy="local", num_slots=1)

    results, grid = inprocess.federate(config, 2)

    (failure,) = results["failed_nodes"]
    assert (failure["node"], failure["slot"], failure["stage"]) == ("bank", 0, "hello")
    assert "line 3" in failure["reason"]
    assert leaks([*grid.sent, *grid.received], needles(demo_records)) == set()


def test_an_unforeseen_error_is_reported_without_its_text(settings, demo_records, monkeypatch):
    compute = Workbench.compute

    def fail(self, requests, ledger, node, *rest):
        if node == "bank":
            raise RuntimeError(f"cannot edit {requests[0]!r}")
        return compute(self, requests, ledger, node, *rest)

    monkeypatch.setattr(Workbench, "compute", fail)
    results, grid = inprocess.federate(settings(num_slots=1), 3)

    (failure,) = results["failed_nodes"]
    assert (failure["node"], failure["slot"], failure["stage"]) == ("bank", 1, "edit")
    assert "RuntimeError in edit" in failure["reason"]
    assert leaks([*grid.sent, *grid.received], needles(demo_records)) == set()
    assert leaks([json.dumps(results).encode()], needles(demo_records)) == set()


def test_a_crash_of_the_client_is_reported_without_its_text(settings, demo_records):
    def crash(node_id, message):
        if node_id == 101:
            raise RuntimeError(f"Traceback: {demo_records[0]['subject']}")

    results, _ = inprocess.federate(settings(num_slots=1, strategy="local"), 2, tamper=crash)

    (failure,) = results["failed_nodes"]
    assert failure["node"] == "node id 101"
    assert leaks([json.dumps(results).encode()], needles(demo_records)) == set()
