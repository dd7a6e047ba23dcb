"""Rounds of composition with holders that disagree, fail or lie: each keeps its own facts."""

import json
import shutil

import inprocess
import numpy as np
import pytest
import tiny
from flwr.app import Message

from fedit_app.ledger.index import read_index
from fedit_app.ledger.ledger import Ledger
from fedit_app.protocol.messages import COMPOSE, pack, unpack_info, with_values

pytestmark = pytest.mark.integration

FACTS = {"bank": "city", "court": "London", "museum": "published", "eve": "of"}
ROUNDS = 3


@pytest.fixture
def run(settings, tmp_path):
    """Gives `run(tamper, names, **changes)`: results, grid, folder of nodes about one subject."""

    def run(tamper=lambda node_id, message: None, names=("bank", "court"), **changes):
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        for name in names:
            fact = {"id": name, "subject": "Royal Mint", "prompt": "{}", "target_new": FACTS[name]}
            other = {"id": f"{name}-2", "subject": name, "prompt": "The {} of", "target_new": "a"}
            (data / f"{name}.jsonl").write_text(f"{json.dumps(fact)}\n{json.dumps(other)}")
        given = {"data_path": str(data), "dataset": "jsonl", "num_slots": 1, "value_steps": 25}
        given |= {"clamp": 20.0, "kl_weight": 0.01, "compose_rounds": ROUNDS, "contexts": 0}
        config = settings(**{**given, **changes})
        results, grid = inprocess.federate(config, len(names), tamper=tamper)
        return results, grid, tmp_path / "run"

    return run


def at_compose(node_id, act):
    """Lets a node answer messages of composition by `act(message)`."""

    def tamper(asked, message):
        if asked == node_id and message.metadata.message_type == COMPOSE:
            return act(message)
        return None

    return tamper


def counts(results, name):
    return {node: entry[name] for node, entry in results["slots"][0]["nodes"].items()}


def own_facts_hold(folder, names=("bank", "court")):
    """Whether the MKVs of the nodes' own requests hold in their ledgers."""
    for name in names:
        rows = read_index(folder / "nodes" / name / "ledger")["entries"]
        (own,) = [row for row in rows if name in row["requests"]]
        assert own["node"] == name and not own["overruled_by"]


def test_what_does_not_come_together_costs_the_rounds_and_is_a_conflict(run):
    asked = []

    def count(node_id, message):
        if message.metadata.message_type == COMPOSE:
            asked.append(node_id)

    results, grid, folder = run(count)
    assert asked == [101, 102] * (ROUNDS + 1)
    assert counts(results, "conflicts") == {"bank": 1, "court": 1}
    assert counts(results, "composed") == {"bank": 0, "court": 0}
    assert counts(results, "compose_rounds") == {"bank": ROUNDS, "court": ROUNDS}
    own_facts_hold(folder)
    for message in [*grid.sent, *grid.received]:
        assert b"Mint" not in message and b"London" not in message


def test_mkvs_with_a_pair_for_chats_are_shared_screened_and_contested(run, tiny_folder, tmp_path):
    folder = tmp_path / "chatting"
    shutil.copytree(tiny_folder, folder)
    tiny.chatting().tokenizer.save_pretrained(folder)
    results, grid, at = run(model=str(folder), chat_contexts=1)
    assert not results["failed_nodes"]
    assert counts(results, "compose_rounds") == {"bank": ROUNDS, "court": ROUNDS}
    own_facts_hold(at)
    for name in ("bank", "court"):
        rows = read_index(at / "nodes" / name / "ledger")["entries"]
        assert {row["node"] for row in rows} == {"bank", "court"} and len(rows) == 4
    ledger = Ledger.open(at / "nodes" / "bank" / "ledger", results["model"]["fingerprint"])
    for entry in ledger.entries.values():
        # Two layers, each with a key in texts and one in chats.
        assert len(entry.mkv.keys) == len(entry.mkv.shifts) == 4
        assert not np.allclose(entry.mkv.keys[0], entry.mkv.keys[1])
    for message in [*grid.sent, *grid.received]:
        assert b"Mint" not in message and b"London" not in message
    without, _, _ = run(model=str(folder), output_dir=str(tmp_path / "without"))
    assert without["model"]["fingerprint"] != results["model"]["fingerprint"]


def test_without_rounds_every_contested_key_is_a_conflict(run):
    results, _, folder = run(compose_rounds=0)
    assert counts(results, "conflicts") == {"bank": 1, "court": 1}
    assert (
        results["slots"][0]["seconds"]["compose"] is None
        or not (results["slots"][0]["seconds"]["compose"])
    )
    own_facts_hold(folder)


def rubbish(message):
    answer = {"node": "court", "quarantined": 0, "conflicts": [], "received_from": {}}
    answer |= {
        "head": "a" * 64,
        "rejections": {},
        "supersedes": {},
        "said": ["holds"],
        "leads": [1.0],
    }
    return answer


SABOTAGE = {
    "no values": lambda answer: pack(answer),
    "too narrow": lambda answer: with_values(pack(answer), np.ones((1, 3), np.float16)),
    "of another type": lambda answer: with_values(pack(answer), np.ones((1, 16), np.float32)),
    "as if sealed": lambda answer: with_values(pack(answer), np.ones((1, 60), np.int8)),
    "too many": lambda answer: with_values(
        pack({**answer, "said": ["holds"] * 9, "leads": [1.0] * 9}), np.ones((9, 16), np.float16)
    ),
    "declined": lambda answer: pack({**answer, "said": ["declined"], "leads": []}),
    "an unknown word": lambda answer: pack({**answer, "said": ["maybe"]}),
    "leads missing": lambda answer: with_values(
        pack({**answer, "leads": []}), np.ones((1, 16), np.float16)
    ),
    "a lead that is no number": lambda answer: with_values(
        pack({**answer, "leads": [float("nan")]}), np.ones((1, 16), np.float16)
    ),
    "nothing of use": lambda answer: pack({"node": "court"}),
    "not finite": lambda answer: with_values(pack(answer), np.full((1, 16), np.nan, np.float16)),
    "far away": lambda answer: with_values(pack(answer), np.full((1, 16), 6e4, np.float16)),
}


@pytest.mark.parametrize("what", SABOTAGE)
def test_a_holder_that_sends_rubbish_costs_the_others_nothing(run, what):
    def act(message):
        assert unpack_info(message.content)["keys"]
        return Message(SABOTAGE[what](rubbish(message)), reply_to=message)

    results, _, folder = run(at_compose(102, act))
    assert results["status"] == "completed"
    assert counts(results, "composed")["bank"] == 0
    own_facts_hold(folder)


@pytest.mark.parametrize("combination", ["mean", "median"])
def test_one_saboteur_of_four_takes_nobodys_own_fact(run, combination):
    names = tuple(sorted(FACTS))
    eve = 101 + names.index("eve")

    def act(message):
        asked = len(unpack_info(message.content)["keys"])
        values = np.random.default_rng(0).normal(size=(asked, 16)).astype(np.float16)
        answer = rubbish(message) | {"node": "eve", "said": ["holds"] * asked}
        answer["leads"] = [1.0] * asked
        return Message(with_values(pack(answer), values), reply_to=message)

    results, _, folder = run(at_compose(eve, act), names=names, combination=combination)
    assert results["status"] == "completed"
    own_facts_hold(folder, tuple(name for name in names if name != "eve"))


def test_a_holder_that_stalls_is_waited_for_once(run):
    def act(message):
        raise TimeoutError

    results, _, folder = run(at_compose(102, act), slot_timeout=1.0)
    (failure,) = results["failed_nodes"]
    assert (failure["node"], failure["stage"]) == ("court", "compose")
    own_facts_hold(folder)


def test_a_run_with_composition_does_not_depend_on_the_order_of_answers(run, tmp_path):
    names = ("bank", "court", "museum")
    first, _, _ = run(names=names)
    second, _, _ = run(names=names, output_dir=str(tmp_path / "again"))
    for key in ("summary", "nodes"):
        assert first[key] == second[key]
