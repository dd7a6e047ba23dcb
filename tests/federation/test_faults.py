"""What goes wrong at one node does not stop the others, and is told by name."""

import json
import threading
import time
from pathlib import Path

import httpx
import inprocess
import pytest
import tiny
from flwr.app import Array, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from fedit_app.mkv import DEFAULT_PRECISION, create
from fedit_app.protocol.messages import (
    EDIT,
    EVALUATE,
    HELLO,
    REEDIT,
    pack,
    unpack_info,
    unpack_mkvs,
)
from fedit_app.report import load_results
from fedit_app.server import pulls
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.integration

NODES = ["bank", "hospital", "museum", "newsroom"]
FAULTY = 102  # the hospital


@pytest.fixture
def run(settings):
    """Runs two slots with a fault at the hospital; returns the results."""

    def run(tamper=lambda node_id, message: None, nodes=4, node_config=None, **changes):
        config = settings(**{"num_slots": 2, **changes})
        results, _ = inprocess.federate(config, nodes, tamper=tamper, node_config=node_config)
        assert load_results(Path(config["output-dir"]) / "results.json").status == "completed"
        return results

    return run


def faults(results) -> list[tuple]:
    return [(f["node"], f["slot"], f["stage"]) for f in results["failed_nodes"]]


def at(kind: str, slot: int | None = None):
    """Whether a message is of this kind (and slot) and for the faulty node."""

    def matches(node_id: int, message: Message) -> bool:
        if node_id != FAULTY or message.metadata.message_type != kind:
            return False
        return slot is None or json.loads(message.content["info"]["json"])["slot"] == slot

    return matches


def requests(results, node: str) -> list[int]:
    return [slot["nodes"].get(node, {}).get("requests", 0) for slot in results["slots"]]


@pytest.mark.parametrize("kind", [EDIT, REEDIT, *tiny.later(HELLO, EVALUATE)])
def test_a_node_that_crashes(run, kind):
    matches = at(kind)

    def crash(node_id, message):
        if matches(node_id, message):
            raise RuntimeError("out of memory")

    results = run(crash)

    stage = {HELLO: "hello", EDIT: "edit", REEDIT: "reedit", EVALUATE: "evaluate"}[kind]
    assert stage in {failure[2] for failure in faults(results)}
    assert all("error code 2" in failure["reason"] for failure in results["failed_nodes"])
    assert {failure[0] for failure in faults(results)} <= {"hospital", "node id 102"}
    assert requests(results, "hospital") == ([0, 0] if kind in (HELLO, EDIT) else [5, 5])
    for node in ("bank", "museum", "newsroom"):
        assert requests(results, node) == [5, 5]
        assert results["nodes"][node]["own"]["count"] == 10


def test_a_fault_is_listed_in_its_slot(run):
    matches = at(EDIT, slot=2)

    def crash(node_id, message):
        if matches(node_id, message):
            raise RuntimeError

    results = run(crash)

    assert faults(results) == [("hospital", 2, "edit")]
    assert results["slots"][0]["failed_nodes"] == []
    (listed,) = results["slots"][1]["failed_nodes"]
    assert (listed["node"], listed["stage"]) == ("hospital", "edit")
    assert requests(results, "hospital") == [5, 0]


def test_an_unreadable_data_file(run, demo_copy):
    (demo_copy / "hospital.jsonl").write_bytes(b"\xff\xfe not text")
    results = run(dataset="jsonl", data_path=str(demo_copy))

    assert faults(results) == [("hospital", 0, "hello")]
    reason = results["failed_nodes"][0]["reason"]
    assert "hospital.jsonl" in reason and "UTF-8" in reason
    assert sorted(results["nodes"]) == ["bank", "museum", "newsroom"]
    # Of the federation's facts, those of the node without data do not count.
    assert results["nodes"]["bank"]["federation"]["count"] < 30


def test_another_model_or_other_settings(run, settings, answer):
    other = settings("other", num_slots=2, value_steps=6, contexts=0)
    matches = at(HELLO)

    def differ(node_id, message):
        return answer(message, other, 1) if matches(node_id, message) else None

    results = run(differ)

    assert faults(results) == [("hospital", 0, "hello")]
    reason = results["failed_nodes"][0]["reason"]
    assert "fingerprint differs in settings" in reason and "contexts" in reason
    assert "model" not in reason.split(";")[0]
    assert sorted(results["nodes"]) == ["bank", "museum", "newsroom"]


def test_the_commonest_fingerprint_wins(run, settings, answer):
    other = settings(num_slots=2, value_steps=6)

    def differ(node_id, message):
        return answer(message, other, node_id - 101, nodes=3) if node_id != 101 else None

    results = run(differ, nodes=3)

    assert faults(results) == [("bank", 0, "hello")]
    assert sorted(results["nodes"]) == ["hospital", "museum"]
    assert requests(results, "hospital") == [5, 5]


class Counting(inprocess.InProcessGrid):
    """A SuperLink that keeps the ids for whose answers it was asked."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.asked = []

    def pull_messages(self, ids):
        self.asked += ids
        return super().pull_messages(ids)


def real_node(number: int) -> dict:
    """The configuration of a real node with the demo's file for it."""
    return inprocess.real_node(NODES[number], tiny.DEMO / f"{NODES[number]}.jsonl")


def test_a_node_that_never_answers(settings):
    config, matches = settings(num_slots=2, slot_timeout=1.0), at(EDIT, slot=1)
    lost = []

    def hang(node_id, message):
        if matches(node_id, message):
            lost.append(message.metadata.message_id)
            time.sleep(1.0)  # a server that takes its time over the messages
            raise TimeoutError

    grid = Counting(config, 4, tamper=hang, node_config=real_node)
    results = inprocess.federate_on(grid, config)

    assert faults(results) == [("hospital", 1, "edit")]
    assert "no answer within 1 s (slot-timeout)" in results["failed_nodes"][0]["reason"]
    assert results["slots"][0]["seconds"]["edit"] > 1
    assert grid.asked.count(*lost) == 1, "the time over the messages counts"
    assert requests(results, "hospital") == [0, 10]
    assert requests(results, "bank") == [5, 5]


class OneByOne(inprocess.InProcessGrid):
    """Nodes that share a machine: one answer after the other, some seconds for each."""

    def __init__(self, *args, seconds, **options):
        super().__init__(*args, **options)
        self._turn, self._seconds = threading.Lock(), seconds

    def pull_messages(self, ids):
        with self._turn:
            time.sleep(self._seconds)
            return super().pull_messages(ids)


def test_virtual_nodes_that_wait_for_each_other_do_not_time_out(settings):
    config = settings(num_slots=1, slot_timeout=1.0)
    results = inprocess.federate_on(OneByOne(config, 4, seconds=0.4), config)

    assert results["failed_nodes"] == []
    assert results["slots"][0]["seconds"]["evaluate"] > 1


def test_real_nodes_have_a_time_together(settings, monkeypatch):
    monkeypatch.setattr(pulls, "_PATIENCE_SECONDS", 0.2)
    config = settings(num_slots=1, slot_timeout=4.0)  # a busy machine edits within it
    grid = OneByOne(config, 4, seconds=1.2, node_config=real_node)
    results = inprocess.federate_on(grid, config)

    assert "no answer within 4 s (slot-timeout)" in results["failed_nodes"][0]["reason"]


class Unfinished(inprocess.InProcessGrid):
    """A SuperLink that waits, as Flower's does, for an answer of which only a part was sent."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.gone = threading.Event()
        self.part = set()

    def pull_messages(self, ids):
        for id_ in ids:
            if id_ in self.part:
                self.gone.wait()
        return super().pull_messages(ids)


def test_an_answer_that_never_arrives_whole_holds_up_nobody(settings, monkeypatch):
    monkeypatch.setattr(pulls, "_PATIENCE_SECONDS", 0.2)
    config, matches = settings(num_slots=2, slot_timeout=5.0), at(EDIT, slot=1)

    def stop(node_id, message):
        if matches(node_id, message):
            grid.part.add(message.metadata.message_id)
        return None

    grid = Unfinished(config, 4, tamper=stop, node_config=real_node)
    results = inprocess.federate_on(grid, config)
    grid.gone.set()

    assert faults(results) == [("hospital", 1, "edit")]
    reason = results["failed_nodes"][0]["reason"]
    assert reason == "no answer within 5 s (slot-timeout): it began to send one"
    assert results["slots"][0]["seconds"]["edit"] < 10
    assert requests(results, "bank") == [5, 5]
    entry = results["slots"][1]["nodes"]["hospital"]
    assert entry["uploaded"] == 10, "what it did unheard comes in the next slot"


class Failing(inprocess.InProcessGrid):
    """A SuperLink that fails every other time that it is asked for answers."""

    def __init__(self, config, status):
        super().__init__(config, 2)
        self._asked, self._status = 0, status

    def pull_messages(self, ids):
        self._asked += 1
        if self._asked % 2:
            response = httpx.Response(self._status, request=httpx.Request("POST", "https://it"))
            response.raise_for_status()
        return super().pull_messages(ids)


def test_an_error_of_the_superlink_is_asked_over_once_more(settings):
    config = settings(num_slots=1)
    results = inprocess.federate_on(Failing(config, 500), config)
    assert results["status"] == "completed" and results["failed_nodes"] == []


def test_a_refusal_of_the_superlink_ends_the_run(settings):
    config = settings(num_slots=1)
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        inprocess.federate_on(Failing(config, 403), config)


def test_what_was_done_unheard_is_uploaded_in_the_next_slot(run, settings, answer):
    config, matches = settings(num_slots=2), at(EDIT, slot=1)

    def lose(node_id, message):
        if matches(node_id, message):
            answer(message, config, 1)
            raise TimeoutError

    results = run(lose, slot_timeout=1.0)

    assert faults(results) == [("hospital", 1, "edit")]
    entry = results["slots"][1]["nodes"]["hospital"]
    assert (entry["requests"], entry["uploaded"]) == (5, 10)
    assert results["slots"][1]["nodes"]["museum"]["received_from"]["hospital"] > 5


def test_a_node_that_stays_away_is_waited_for_once_a_slot(run):
    def gone(node_id, message):
        if node_id == FAULTY and (message.metadata.message_type != HELLO or len(asked) > 4):
            raise TimeoutError
        asked.append(node_id)

    asked: list[int] = []
    results = run(gone, slot_timeout=1.0)

    assert ("hospital", 1, "edit") in faults(results)
    assert [f for f in faults(results) if f[:2] == ("hospital", 2)] == [("hospital", 2, "hello")]
    assert requests(results, "bank") == [5, 5]


def test_two_nodes_of_the_same_name(run, demo_copy):
    names = ["bank", "museum", "bank"]
    files = ["bank", "museum", "hospital"]
    real = lambda n: inprocess.real_node(names[n], demo_copy / f"{files[n]}.jsonl")  # noqa: E731
    results = run(nodes=3, node_config=real)

    assert faults(results) == [("bank", 0, "hello")]
    assert "two nodes are named 'bank'" in results["failed_nodes"][0]["reason"]
    assert sorted(results["nodes"]) == ["bank", "museum"]
    assert requests(results, "bank") == requests(results, "museum") == [5, 5]


@pytest.mark.parametrize("claim", [False, True], ids=["real", "says that it is virtual"])
def test_a_node_that_takes_anothers_name(run, settings, answer, demo_copy, monkeypatch, claim):
    """The server tells nodes apart by their keys; a name is what a key was registered under."""
    matches = at(HELLO)

    def pretend(node_id, message):
        if not claim or not matches(node_id, message):
            return None
        reply = answer(message, settings(num_slots=2), 1, node_config=real(1))
        info = json.loads(reply.content["info"]["json"])
        reply.content["info"]["json"] = json.dumps(info | {"simulated": True})
        return reply

    names = ["bank", "hospital", "museum"]
    real = lambda n: inprocess.real_node(names[n], demo_copy / f"{names[n]}.jsonl")  # noqa: E731
    known = {101: "bank", FAULTY: "clinic", 103: "museum"}
    registered = lambda grid: [NodeInfo(node_id=i, name=known[i]) for i in grid.ids]  # noqa: E731
    monkeypatch.setattr(inprocess.InProcessGrid, "get_nodes", registered)
    results = run(pretend, nodes=3, node_config=real)

    assert faults(results) == [("clinic", 0, "hello")]
    reason = results["failed_nodes"][0]["reason"]
    assert "'hospital'" in reason and "'clinic'" in reason and "node.toml" in reason
    assert sorted(results["nodes"]) == ["bank", "museum"]


def test_a_real_node_without_a_name(run, demo_copy):
    real = lambda n: inprocess.real_node(["bank", ""][n], demo_copy / "bank.jsonl")  # noqa: E731
    results = run(nodes=2, node_config=real)

    assert faults(results) == [("node id 102", 0, "hello")]
    assert "name missing" in results["failed_nodes"][0]["reason"]


@pytest.mark.parametrize("what", ["wants", "holds", "withdrawn"])
def test_a_node_that_lists_no_ids(run, settings, answer, what):
    config, matches = settings(num_slots=1), at(HELLO)

    def tamper(node_id, message):
        if not matches(node_id, message):
            return None
        reply = answer(message, config, 1)
        info = json.loads(reply.content["info"]["json"])
        reply.content["info"]["json"] = json.dumps(info | {what: [["0" * 32]]})
        return reply

    results = run(tamper, num_slots=1)
    assert faults(results) == [("hospital", 0, "hello")]
    assert f"its answer has an invalid {what}" in results["failed_nodes"][0]["reason"]
    assert sorted(results["nodes"]) == ["bank", "museum", "newsroom"]


@pytest.fixture
def upload(settings, answer):
    """Gives `upload(change)`: the hospital's first upload is changed on its way."""
    config, matches = settings(num_slots=2), at(EDIT, slot=1)

    def upload(change):
        def tamper(node_id, message):
            if not matches(node_id, message):
                return None
            reply = answer(message, config, 1)
            change(reply.content)
            return reply

        return tamper

    return upload


def flip(content: RecordDict) -> None:
    array = content["mkvs"]["keys"]
    data = bytearray(array.data)
    data[-40] ^= 0x10
    content["mkvs"]["keys"] = Array(array.dtype, array.shape, array.stype, bytes(data))


def pretend(content: RecordDict) -> None:
    content["info"]["mkv-meta"] = content["info"]["mkv-meta"].replace("hospital", "museum")


def in_another_precision(content: RecordDict) -> None:
    fingerprint = json.loads(content["info"]["mkv-meta"])["fingerprint"]
    sent = unpack_mkvs(content, fingerprint, DEFAULT_PRECISION)
    names = ("node", "slot", "fingerprint", "keys", "shifts", "v_star", "h0")
    again = [create(*(getattr(m, name) for name in names), precision="float32") for m in sent]
    content.update(pack(unpack_info(content), again))


def with_empty_values(content: RecordDict) -> None:
    """Flower cannot count their bytes."""
    content["info"].update({"nothing": "", "none": []})
    flip(content)


def from_the_future(content: RecordDict) -> None:
    meta = json.loads(content["info"]["mkv-meta"])
    content["info"]["mkv-meta"] = json.dumps(meta | {"slots": [9 for _ in meta["slots"]]})


def invent(content: RecordDict) -> None:
    info = json.loads(content["info"]["json"])
    content["info"]["json"] = json.dumps(info | {"reused": ["0" * 32]})


def pretend_to_be_asked(content: RecordDict) -> None:
    info = json.loads(content["info"]["json"])
    content["info"]["json"] = json.dumps(info | {"again": ["0" * 32]})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(flip, "MKV", id="bytes flipped"),
        pytest.param(pretend, "'museum'", id="another's name"),
        pytest.param(invent, "0000", id="invented reuse"),
        *(
            pytest.param(change, told, id=id_, marks=pytest.mark.slow)
            for id_, change, told in [
                ("another slot", from_the_future, "slot 9"),
                (
                    "another precision",
                    in_another_precision,
                    "precision 'float32' sent, 'int8' is expected",
                ),
                ("empty values", with_empty_values, "MKV"),
                ("unasked", pretend_to_be_asked, "not asked for"),
                ("damaged info", lambda content: content["info"].update({"json": "{"}), "info"),
            ]
        ),
    ],
)
def test_a_damaged_upload_is_refused_and_the_node_stays(run, upload, change, told):
    results = run(upload(change))

    assert faults(results) == [("hospital", 1, "edit")]
    assert told in results["failed_nodes"][0]["reason"]
    # In the next slot it says hello again, so that what was lost is asked for once more.
    assert [slot["nodes"]["hospital"]["uploaded"] for slot in results["slots"]] == [0, 10]
    assert requests(results, "bank") == [5, 5]
    # Nothing of the refused upload reached anyone.
    assert "hospital" not in results["slots"][0]["nodes"]["bank"]["received_from"]
    assert "hospital" in results["slots"][1]["nodes"]["bank"]["received_from"]


def test_an_upload_of_more_than_the_run_takes_is_refused(run, demo_copy):
    for file in demo_copy.glob("*.jsonl"):
        if file.stem != "hospital":
            lines = file.read_text(encoding="utf-8").splitlines()
            file.write_text("\n".join(lines[:2]), encoding="utf-8")
    data = {"dataset": "jsonl", "data_path": str(demo_copy)}
    results = run(num_slots=1, max_uploads_per_slot=2, **data)

    assert faults(results) == [("hospital", 1, "edit")]
    reason = results["failed_nodes"][0]["reason"]
    assert "5 MKVs" in reason and "max-uploads-per-slot" in reason
    uploaded = {name: node["uploaded"] for name, node in results["slots"][0]["nodes"].items()}
    assert uploaded == {"bank": 2, "hospital": 0, "museum": 2, "newsroom": 2}


@pytest.mark.parametrize("strategy", ["fedit", "fedavg"])
@pytest.mark.parametrize("stage", ["hello", "edit"])
def test_a_run_in_which_every_node_fails_is_failed(settings, strategy, stage):
    def crash(node_id, message):
        kind = message.metadata.message_type
        if (kind == HELLO) == (stage == "hello") and kind != EVALUATE:
            raise RuntimeError

    config = settings(strategy=strategy)
    with pytest.raises(FedEditError, match="no node"):
        inprocess.federate(config, 2, tamper=crash)

    results = load_results(Path(config["output-dir"]) / "results.json").as_json()
    assert results["status"] == "failed"
    assert [(f["slot"], f["stage"]) for f in results["failed_nodes"]] == [
        (0 if stage == "hello" else 1, stage)
    ] * 2
    assert (Path(config["output-dir"]) / "report.html").exists()


def test_a_stock_strategy_goes_on_without_a_node(run):
    def crash(node_id, message):
        if node_id == FAULTY and message.metadata.message_type == "train":
            raise RuntimeError

    results = run(crash, strategy="fedavg")

    assert faults(results) == [("hospital", 1, "edit"), ("hospital", 2, "edit")]
    assert requests(results, "hospital") == [0, 0]
    assert requests(results, "bank") == [5, 5]


def test_a_node_that_returns_catches_up_with_what_it_missed(run):
    hospital = run(crash_at(EDIT, 1))

    assert faults(hospital) == [("hospital", 1, "edit")]
    assert requests(hospital, "hospital") == [0, 10]
    assert hospital["nodes"]["hospital"]["own"]["count"] == 10
    # What the others computed in slot 1 reaches it in slot 2.
    received = hospital["slots"][1]["nodes"]["hospital"]["received_from"]
    whole = run(folder="whole")["slots"]
    of_bank = sum(slot["nodes"]["hospital"]["received_from"]["bank"] for slot in whole)
    assert received["bank"] == of_bank


def test_a_slot_does_not_wait_for_a_straggler_whose_mkvs_count_in_the_next_one(
    run, settings, answer
):
    """With a share of the answers a stage ends; what the slow node did meanwhile is not lost."""
    config, slow = settings(num_slots=2, slot_timeout=300.0, stage_share=0.75), at(EDIT, 1)

    def too_late(node_id, message):
        if slow(node_id, message):
            answer(message, config, 1)  # it does its part, but nobody waits for that
            raise TimeoutError

    began = time.perf_counter()
    results = run(too_late, slot_timeout=300.0, stage_share=0.75)

    assert time.perf_counter() - began < 300
    assert faults(results)[0] == ("hospital", 1, "edit")
    reason = results["failed_nodes"][0]["reason"]
    assert reason == "no answer when 3 of 4 had come (stage-share)"
    entry = results["slots"][1]["nodes"]["hospital"]
    assert (entry["requests"], entry["uploaded"]) == (5, 10), "five of them are those of slot 1"
    assert results["slots"][1]["nodes"]["museum"]["received_from"]["hospital"] > 5


def test_a_node_that_was_away_for_three_slots_has_what_the_others_have(run):
    away = range(1, 4)

    def gone(node_id, message):
        said = json.loads(message.content["info"]["json"])
        slot = said.get("slot", said.get("first_slot"))
        hello = message.metadata.message_type == HELLO and slot == 1
        if node_id == FAULTY and slot in away and not hello:
            raise TimeoutError

    results = run(gone, num_slots=4, requests_per_slot=2, slot_timeout=1.0)

    assert requests(results, "hospital") == [0, 0, 0, 8]
    received = results["slots"][3]["nodes"]["hospital"]["received_from"]
    assert sorted(received) == ["bank", "museum", "newsroom"]
    of_museum = [s["nodes"]["bank"]["received_from"].get("museum", 0) for s in results["slots"]]
    assert received["museum"] > max(of_museum), "those of all slots in one"
    assert results["nodes"]["hospital"]["own"]["count"] == 8


def crash_at(kind: str, slot: int):
    matches = at(kind, slot)

    def tamper(node_id, message):
        if matches(node_id, message):
            raise RuntimeError("the process is gone")

    return tamper


def test_an_answer_to_the_reedit_that_is_lost_is_served_again_and_counts_once(run, answer):
    dropped = []

    def lose(node_id, message):
        if at(REEDIT, 1)(node_id, message):
            dropped.append(message)
            raise RuntimeError("the answer is lost")

    results = run(lose)
    offered = [slot["nodes"]["hospital"]["offered"] for slot in results["slots"]]
    assert len(dropped) == 1 and offered[1] > offered[0] > 0
    entry = results["slots"][1]["nodes"]["hospital"]
    assert entry["accepted"] + entry["rejected"] == offered[1]


def test_a_node_that_joins_in_slot_2(settings):
    config = settings(num_slots=3)
    grid = inprocess.InProcessGrid(config, 4)
    late, hellos = grid.ids[1], []
    everybody = grid.get_node_ids

    def tamper(node_id, message):
        if message.metadata.message_type == HELLO:
            hellos.append((node_id, json.loads(message.content["info"]["json"])["first_slot"]))

    def present():
        # The hospital connects once slot 1 is under way.
        begun = any(EDIT_SLOT_1 in wire for wire in grid.sent)
        return everybody() if begun else [id_ for id_ in everybody() if id_ != late]

    grid._tamper, grid.get_node_ids = tamper, present
    results = inprocess.federate_on(grid, config)

    assert results["status"] == "completed" and results["failed_nodes"] == []
    assert hellos.count((late, 2)) == 1 and len(hellos) == 4
    assert requests(results, "hospital") == [0, 10, 5]
    assert results["nodes"]["hospital"]["before"]["own"]["count"] == 15
    received = results["slots"][1]["nodes"]["hospital"]["received_from"]
    assert received["bank"] > 5, "what was learnt in slot 1 as well"


EDIT_SLOT_1 = b'"slot": 1, "central": false'


def test_what_fails_the_screening_is_reported_and_nobody_learns_from_it(run, upload):
    def exaggerate(content: RecordDict) -> None:
        fingerprint = json.loads(content["info"]["mkv-meta"])["fingerprint"]
        sent = unpack_mkvs(content, fingerprint, DEFAULT_PRECISION)
        names = ("node", "slot", "fingerprint", "keys", "shifts", "v_star", "h0")
        given = [{name: getattr(mkv, name) for name in names} for mkv in sent]
        huge = [create(**vectors | {"shifts": vectors["shifts"] * 100}) for vectors in given]
        content.update(pack(unpack_info(content), huge))

    results = run(upload(exaggerate))
    bank = results["slots"][0]["nodes"]["bank"]

    assert faults(results) == []
    # Random weights: one of the five may stand for a fact with another's MKV in the pool.
    assert 4 <= bank["rejections"]["shift norm"] == bank["quarantined"] <= 5
    assert "hospital" not in bank["received_from"]
    assert 12 <= results["slots"][0]["quarantined"] <= 15


@pytest.mark.parametrize("rule", ["refuse", "skip"])
def test_requests_that_the_model_cannot_take(run, tmp_path, rule):
    """One node has a text longer than the model reads, another one half a character."""
    fine = {"id": "1", "subject": "Reuters", "prompt": "{} is in", "target_new": "London"}
    faulty = {
        "bank": {"subject": "Basel"},
        "court": {"subject": "Zurich", "paraphrase_prompts": ["of " * 999]},
        "press": {"subject": "Cardiff", "paraphrase_prompts": ["\ud83d"]},
    }
    for name, fault in faulty.items():
        first = fine | {"subject": f"{fault['subject']} again"}
        lines = [json.dumps(first), json.dumps(fine | {"id": "2"} | fault)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    given = {"dataset": "jsonl", "data_path": str(tmp_path), "num_slots": 1}
    results = run(nodes=3, on_bad_request=rule, **given)
    if rule == "skip":
        assert results["failed_nodes"] == []
        counts = {name: node["own"]["count"] for name, node in results["nodes"].items()}
        assert counts == {"bank": 2, "court": 1, "press": 1}
        return
    reasons = {fault["node"]: fault["reason"] for fault in results["failed_nodes"]}
    assert "paraphrase_prompts needs 1004 tokens; this model reads 256" in reasons["court"]
    assert "line 2: paraphrase_prompts has U+D83D" in reasons["press"]
    assert list(results["nodes"]) == ["bank"]
    assert results["nodes"]["bank"]["federation"]["count"] == 2
