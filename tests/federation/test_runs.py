"""Whole runs: what they leave behind, and that nothing about them is left to chance."""

import itertools
import json
import random
import tomllib
from collections import Counter
from pathlib import Path

import inprocess
import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedit_app.config.run_config import RunConfig
from fedit_app.editing.editors import EDITORS
from fedit_app.editing.workbench import Patched, Workbench
from fedit_app.evaluation.scores import TargetScore
from fedit_app.ledger import upkeep
from fedit_app.ledger.index import read_index
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import PRECISIONS
from fedit_app.models.fingerprint import model_fingerprint
from fedit_app.node.participant import Participant
from fedit_app.pool import MKVPool
from fedit_app.protocol.messages import EDIT, TRAIN, unpack_arrays, unpack_info
from fedit_app.report import Results, load_results, summary_table
from fedit_app.report.progress import load_progress
from fedit_app.server.app import run_federation
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.integration

NODES = ["bank", "hospital", "museum", "newsroom"]
# Slot of the demo -> how many MKVs it needs: two facts of one node about one subject share one.
VALUES = {1: 20, 2: 19, 3: 17}


def pool_ids(folder) -> dict[str, str]:
    """Id -> node of every MKV in a run's pool."""
    return {row["id"]: row["node"] for row in MKVPool(str(folder / "pool")).rows(["id", "node"])}


def without_clock(results: dict) -> dict:
    """Results without what may differ between two equal runs."""
    kept = json.loads(json.dumps(results))
    del kept["seconds"], kept["config"]["output-dir"]
    for slot in kept["slots"]:
        for record in (slot, *slot["nodes"].values()):
            del record["seconds"]
        for node in slot["nodes"].values():
            del node["ledger_head"], node["peak_bytes"]  # a ledger's journal tells the time
    return kept


def test_results_json(demo_run):
    results, _, folder = demo_run

    assert load_results(folder / "results.json").as_json() == results
    assert results["status"] == "completed"
    assert results["model"]["name"] == results["config"]["model"], "virtual nodes load the run's"
    assert results["failed_nodes"] == []
    assert sorted(results["nodes"]) == NODES
    assert [slot["slot"] for slot in results["slots"]] == [1, 2, 3]
    assert results["summary"]["own"]["count"] == 60
    for node in results["nodes"].values():
        assert node["own"]["count"] == node["before"]["own"]["count"] == 15
        # 60 requests are 46 facts and two contested ones, which count at their owners only.
        assert node["federation"]["count"] in (46, 47, 48)
        assert node["own"] != node["before"]["own"]


def test_counts_add_up(demo_run):
    results, grid, folder = demo_run
    total = {
        name: sum(slot[name] for slot in results["slots"])
        for name in ("requests", "optimised", "reused", "uploaded", "offered", "accepted")
    }

    assert total["requests"] == 60
    assert total["optimised"] == total["uploaded"] == sum(VALUES.values()) - total["reused"]
    # Everything is offered to the three others, except a fact that several have computed.
    assert 0 < total["accepted"] < total["offered"] < 180 - total["reused"] * 3
    for slot in results["slots"]:
        assert slot["bytes_up"] > 0 < slot["bytes_down"]
        for node, entry in slot["nodes"].items():
            assert entry["accepted"] + entry["rejected"] == entry["offered"]
            assert sum(entry["received_from"].values()) == entry["accepted"]
            assert sum(entry["rejections"].values()) == entry["rejected"]
            assert node not in entry["received_from"]


def test_every_node_has_its_costs(demo_run):
    results, _, _ = demo_run
    for slot in results["slots"]:
        nodes = slot["nodes"].values()
        for traffic in ("bytes_up", "bytes_down"):
            assert slot[traffic] == sum(node[traffic] for node in nodes)
            assert all(node[traffic] > 0 for node in nodes)
        for stage, seconds in slot["seconds"].items():
            asked = [n for n in nodes if stage != "compose" or n["seconds"][stage]]
            assert all(node["seconds"][stage] > 0 for node in asked)
            assert all(node["peak_bytes"] > 50e6 for node in asked)
            assert sum(node["seconds"][stage] for node in asked) <= (seconds or 0)
        assert all(n["offered"] == n["accepted"] + n["rejected"] for n in nodes)
        assert slot["warm_started"] == sum(node["warm_started"] for node in nodes)
        assert slot["warm_started"] <= slot["optimised"]


def test_what_a_node_writes_anew_takes_its_place_at_every_node(settings, tmp_path, monkeypatch):
    """As if no model said any own fact, until what says it has been written anew."""
    said = itertools.cycle([0.0, 1.0])

    def scores(model, pairs):
        correct = next(said)
        return [TargetScore(nll=1.0, correct=correct) for _ in pairs]

    monkeypatch.setattr(upkeep, "score_targets", scores)
    values = settings(num_slots=2, reuse_threshold=0.0, overlap=0.0, upkeep=True)
    results, _ = inprocess.federate(values, 4)
    first, second = results["slots"]
    assert results["failed_nodes"] == [] and first["renewed"] == 0
    assert second["renewed"] >= 4
    assert second["uploaded"] == second["optimised"] + second["renewed"]
    rows = {
        name: read_index(tmp_path / "run" / "nodes" / name / "ledger")["entries"] for name in NODES
    }
    renewed = {
        row["id"]: row["supersedes"]
        for name, entries in rows.items()
        for row in entries
        if row["node"] == name and row.get("supersedes")
    }
    assert len(renewed) >= second["renewed"]
    for entries in rows.values():
        holding = {row["id"] for row in entries if not row["overruled_by"]}
        older = {old for id_ in holding & renewed.keys() for old in renewed[id_]}
        assert holding & renewed.keys() and not holding & older


@pytest.mark.parametrize("strategy", ["fedit", "local", "fedavg"])
def test_full_metrics(settings, strategy):
    values = settings(num_slots=2, metrics="full", evaluate_every=1, strategy=strategy)
    results, _ = inprocess.federate(values, 4)
    first, last = (slot["nodes"] for slot in results["slots"])

    for name, node in results["nodes"].items():
        assert first[name]["own"]["exact_match"] is first[name]["neutral"] is None
        assert node["neutral"] == last[name]["neutral"]
        assert node["neutral"]["kl"] > 0 and 0 < node["neutral"]["top10_overlap"] < 1
        assert node["neutral"]["tokens"] == 4 * 95
        for metrics in (node["own"], node["federation"], *node["before"].values()):
            assert 0 <= metrics["exact_match"] <= 1
            assert -1 <= metrics["magnitude"] <= 1
    summary = results["summary"]["neutral"]
    kl = [node["neutral"]["kl"] for node in results["nodes"].values()]
    assert summary["kl"] == pytest.approx(sum(kl) / 4)
    assert (results["summary"]["received"] is not None) == (strategy == "fedit")


def test_received_facts_are_those_whose_mkvs_hold(demo_run, demo_records):
    results, _, folder = demo_run
    prompts = {(r["id"]): (r["subject"], r["prompt"], r["target_new"]) for r in demo_records}
    ledgers = {name: read_index(folder / "nodes" / name / "ledger")["entries"] for name in NODES}
    wanted = {
        name: {prompts[id_]: row["id"] for row in rows for id_ in row["requests"]}
        for name, rows in ledgers.items()
    }
    for name in NODES:
        held = {row["id"] for row in ledgers[name] if not row["overruled_by"]}
        expected = {
            fact
            for other in NODES
            for fact, id_ in wanted[other].items()
            if other != name and id_ in held and fact not in wanted[name]
        }
        contested = {
            f for f in expected if any(f[:2] == g[:2] and f != g for g in prompts.values())
        }
        found = results["nodes"][name]["received"]
        assert found["count"] == len(expected - contested) > 15
        assert found["metric"] == "likelihood"
    assert results["slots"][0]["nodes"]["bank"]["received"]["count"] < 20


def test_the_pool_holds_what_was_uploaded(demo_run):
    results, _, folder = demo_run
    by_node = list(pool_ids(folder).values())

    for node in NODES:
        uploaded = sum(slot["nodes"][node]["uploaded"] for slot in results["slots"])
        assert by_node.count(node) == uploaded


def test_every_node_keeps_a_ledger(demo_run):
    results, _, folder = demo_run
    pool = pool_ids(folder)

    for node in NODES:
        index = read_index(folder / "nodes" / node / "ledger")
        assert index["fingerprint"] == results["model"]["fingerprint"]
        ids = [entry["id"] for entry in index["entries"]]
        fulfilled = [id_ for entry in index["entries"] for id_ in entry["requests"]]
        assert sorted(fulfilled) == sorted(f"{node}-{n:02d}" for n in range(1, 16))
        assert set(ids) <= set(pool)
        ledger = Ledger.open(folder / "nodes" / node / "ledger", index["fingerprint"])
        assert all(ledger.entries[id_].mkv.keys.size for id_ in ids), "they are read"


def test_metrics_jsonl_has_a_line_per_slot_and_node(demo_run):
    results, _, folder = demo_run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    assert [(line["slot"], line["node"]) for line in lines] == [
        (slot, node) for slot in (1, 2, 3) for node in NODES
    ]
    last = {line["node"]: line for line in lines if line["slot"] == 3}
    for node in NODES:
        assert last[node]["own"] == results["nodes"][node]["own"]
        assert last[node]["time"].endswith("+00:00")


def test_report_and_config_are_written(demo_run):
    results, _, folder = demo_run
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert all(node in report for node in NODES) and report.count("<svg") == 5

    written = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    assert written == results["config"]
    assert RunConfig.parse(written).as_dict() == written


def shuffled(ids: list[int]) -> list[int]:
    return random.Random(3).sample(ids, len(ids))


@pytest.mark.parametrize("strategy", ["fedit", "fedavg", "task-arithmetic", "ties"])
def test_equal_runs_give_equal_results_in_whatever_order_nodes_answer(settings, strategy):
    runs = []
    for name, order in (("a", list), ("b", lambda ids: ids[::-1]), ("c", shuffled)):
        config = settings(name, num_slots=2, strategy=strategy, selection="top-k", top_k=4)
        results, _ = inprocess.federate(config, 4, order=order)
        runs.append((without_clock(results), pool_ids(_folder(config))))

    assert runs[0][0]["summary"]["own"]["count"] == 40
    assert len(runs[0][1]) == (VALUES[1] + VALUES[2] if strategy == "fedit" else 0)
    assert all(run == runs[0] for run in runs[1:])


def _folder(config: dict) -> Path:
    return Path(config["output-dir"])


def test_local_exchanges_nothing(settings):
    results, grid = inprocess.federate(settings(strategy="local", num_slots=2), 4)

    assert results["status"] == "completed"
    for slot in results["slots"]:
        assert slot["optimised"] == VALUES[slot["slot"]]
        assert slot["uploaded"] == slot["offered"] == slot["accepted"] == 0
    assert not MKVPool(results["config"]["output-dir"] + "/pool")


def test_central_keeps_one_ledger_with_every_fact(settings):
    results, _ = inprocess.federate(settings(strategy="central"), 4)

    assert results["failed_nodes"] == []
    nodes = _folder(results["config"]) / "nodes"
    assert [path.name for path in nodes.iterdir()] == ["central"]
    index = read_index(nodes / "central" / "ledger")
    fulfilled = [id_ for entry in index["entries"] for id_ in entry["requests"]]
    # Of those that ask the same with another target the first one counts.
    assert {"newsroom/newsroom-06", "bank/bank-12"}.isdisjoint(fulfilled)
    assert len(set(fulfilled)) == 58
    settled = {id_: entry["id"] for entry in index["entries"] for id_ in entry["requests"]}
    assert settled["museum/museum-01"] == settled["hospital/hospital-01"]
    assert sum(slot["requests"] for slot in results["slots"]) == 60
    measured = {node["federation"]["count"] for node in results["nodes"].values()}
    assert measured <= {46, 47, 48}
    heads = {node["ledger_head"] for slot in results["slots"] for node in slot["nodes"].values()}
    assert heads == {""}, "no node has a ledger of its own"


def test_central_needs_a_simulation(settings, demo_copy):
    real = lambda n: inprocess.real_node(NODES[n], demo_copy / f"{NODES[n]}.jsonl")  # noqa: E731
    with pytest.raises(FedEditError, match="central.*simulation only"):
        inprocess.federate(settings(strategy="central"), 2, node_config=real)


def test_real_nodes_measure_their_own_facts_only(settings, demo_copy):
    real = lambda n: inprocess.real_node(NODES[n], demo_copy / f"{NODES[n]}.jsonl")  # noqa: E731
    config = settings(num_slots=1, metrics="full")
    results, _ = inprocess.federate(config, 2, node_config=real)

    assert sorted(results["nodes"]) == ["bank", "hospital"]
    assert results["slots"][0]["accepted"] > 0
    for node in results["nodes"].values():
        assert node["own"]["count"] == 5
        assert node["own"]["exact_match"] is not None and node["neutral"]["kl"] > 0
        assert node["federation"] is node["received"] is None


def test_the_model_of_real_nodes_is_named_by_its_hash(settings, demo_copy, tiny_folder, tmp_path):
    """The run's own, the embedded one unless it is given, is loaded by nobody."""
    node = inprocess.real_node("bank", demo_copy / "bank.jsonl") | {"model": str(tiny_folder)}
    config, seen = settings(num_slots=1), []
    del config["model"]

    def look(node_id, message):
        seen.append(load_progress(tmp_path / "run").model)

    results, _ = inprocess.federate(config, 1, node_config=lambda _: node, tamper=look)

    name = f"the nodes' model {model_fingerprint(tiny_folder)[:12]}"
    assert results["model"]["name"] == name
    assert seen[0] is None, "nobody has said it yet"
    assert {*seen[1:], load_progress(tmp_path / "run").model} == {name}
    assert str(tiny_folder) not in (tmp_path / "run" / "results.json").read_text("utf-8")


def test_fedavg_is_the_mean_of_the_changes_weighted_by_requests(settings, demo_copy, answer):
    for name, kept in (("bank", 2), ("museum", 1)):
        lines = (demo_copy / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        (demo_copy / f"{name}.jsonl").write_text("\n".join(lines[:kept]), encoding="utf-8")
    config = settings(
        strategy="fedavg", num_slots=2, dataset="jsonl", data_path=str(demo_copy), evaluate_every=9
    )
    sent, replies = {1: [], 2: []}, {1: [], 2: []}

    def spy(node_id, message):
        if message.metadata.message_type != TRAIN:
            return None
        slot = message.content["config"]["server-round"]
        sent[slot].append(unpack_arrays(message.content, "arrays"))
        reply = answer(message, config, node_id - 101)
        replies[slot].append(reply.content)
        return reply

    results, _ = inprocess.federate(config, 4, tamper=spy)

    assert results["status"] == "completed"
    weights = [float(reply["metrics"]["num-examples"]) for reply in replies[1]]
    assert weights == [2, 5, 1, 5]
    assert [results["slots"][0]["nodes"][node]["requests"] for node in NODES] == [2, 5, 1, 5]
    for layer in ("layer-1", "layer-2"):
        assert not sent[1][0][layer].any()
        changes = [unpack_arrays(reply, "arrays")[layer] for reply in replies[1]]
        assert min(np.abs(change).max() for change in changes) > 1e-4
        expected = np.average(changes, axis=0, weights=weights)
        for received in sent[2]:
            np.testing.assert_allclose(received[layer], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("editor", EDITORS)
def test_every_editor_takes_part_in_a_federation(settings, editor):
    changes = {"editor": editor, "num_slots": 2, "null_space_threshold": 1.0, "value_steps": 12}
    config = settings(**changes)
    results, _ = inprocess.federate(config, 2)

    assert results["status"] == "completed" and results["editor"] == editor
    assert results["failed_nodes"] == []
    place = {"partition-id": 0, "num-partitions": 2}
    bank = Participant(RunConfig.parse(config), place, inprocess.RUN_ID)
    change = bank.workbench.deltas(bank.ledger())
    assert change and all(delta.abs().max() > 0 for delta in change.values())
    accepted = [node["received_from"] for node in results["slots"][0]["nodes"].values()]
    assert accepted == [{"hospital": 5}, {"bank": 5}]


def test_mkvs_travel_and_are_kept_in_the_precision_of_the_run_config(settings):
    sizes = {}
    for precision in PRECISIONS:
        config = settings(precision, mkv_precision=precision, num_slots=1)
        results, _ = inprocess.federate(config, 2)
        assert results["status"] == "completed" and results["failed_nodes"] == []
        folder = Path(config["output-dir"])
        pool = MKVPool(str(folder / "pool"))
        assert {mkv.precision for mkv in pool.fetch(list(pool_ids(folder)))} == {precision}
        assert all(slot["received_from"] for slot in results["slots"][0]["nodes"].values())
        sizes[precision] = results["slots"][0]["bytes_up"]
    assert sizes["int8"] < sizes["float16"] < sizes["float32"]


def test_a_flower_strategy_runs_unchanged(settings):
    results, _ = inprocess.federate(settings(strategy="FedMedian", num_slots=2), 4)

    assert results["status"] == "completed"
    assert [slot["optimised"] for slot in results["slots"]] == [20, 20]
    assert results["summary"]["federation"] != results["summary"]["before"]["federation"]


OLDEST = """
from fedit_app.pool import Ranked
from fedit_app.server.strategies import FedEdit


class Oldest(FedEdit):
    def select(self, own):
        return {node: self.oldest(node) for node in own}

    def oldest(self, node):
        blocks = self.pool.blocks("key", self.fingerprint)
        found = [i for b in blocks for i, n in zip(b.ids, b.nodes, strict=True) if n != node]
        return [Ranked(id_, 1.0) for id_ in sorted(found)[:1]]
"""


def test_a_new_strategy_is_one_file(settings, tmp_path, monkeypatch):
    (tmp_path / "my_strategies.py").write_text(OLDEST, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    name = "my_strategies:Oldest"
    results, _ = inprocess.federate(settings(strategy=name, num_slots=1), 4)

    assert results["status"] == "completed"
    assert results["strategy"] == name
    assert [e["offered"] for e in results["slots"][0]["nodes"].values()] == [1, 1, 1, 1]


@pytest.mark.parametrize("strategy", ["fedit", "fedavg"])
def test_evaluate_every(settings, strategy):
    results, _ = inprocess.federate(settings(strategy=strategy, evaluate_every=2), 2)

    measured = [slot["nodes"]["bank"]["own"] is not None for slot in results["slots"]]
    assert measured == [False, True, True]
    assert [slot["requests"] for slot in results["slots"]] == [10, 10, 10]
    assert results["nodes"]["bank"]["own"] == results["slots"][2]["nodes"]["bank"]["own"]
    lines = _folder(results["config"]).joinpath("metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6


def test_a_sample_of_the_facts_is_asked(settings):
    results, _ = inprocess.federate(settings(evaluate_sample=4, num_slots=2), 2)
    last = results["slots"][1]["nodes"]["bank"]
    for scope, least in (("own", 10), ("federation", 11)):
        assert last[scope]["count"] == 4 and last[scope]["drawn_from"] >= least
    assert results["nodes"]["bank"]["before"]["own"]["count"] == 4
    assert "of the federation's facts a node was asked 4, a sample of 1" in summary_table(
        Results.model_validate(results)
    )
    assert "own facts hold, a sample of 20: shares are within 0.28 (95 %)" in summary_table(
        Results.model_validate(results)
    )


@pytest.mark.parametrize(
    ("changes", "offered"),
    [
        ({"selection": "none"}, 0),
        ({"selection": "top-k", "top_k": 2, "signature": "delta"}, 2),
        ({"selection": "majority", "similarity_threshold": -1.0}, None),
        ({"selection": "majority", "similarity_threshold": 1.0, "centred": True}, 0),
        ({"selection": "all"}, None),
    ],
)
def test_selection(settings, changes, offered):
    results, _ = inprocess.federate(settings(num_slots=1, **changes), 4)

    pool = pool_ids(_folder(results["config"]))
    facts = MKVPool(results["config"]["output-dir"] + "/pool").facts(pool)
    standing = Counter(node for id_, node in pool.items() if facts[id_] == id_)
    for name, node in results["slots"][0]["nodes"].items():
        others = standing.total() - standing[name]
        assert node["offered"] == (others if offered is None else offered)


def test_an_mkv_is_offered_to_a_node_once(settings):
    results, _ = inprocess.federate(settings(selection="all"), 2)

    # What it was offered in a slot does not come again in the next, nor one that stands for the
    # fact of another.
    pool = pool_ids(_folder(results["config"]))
    facts = MKVPool(results["config"]["output-dir"] + "/pool").facts(pool)
    of_hospital = [id_ for id_, node in pool.items() if node == "hospital" and facts[id_] == id_]
    offered = [slot["nodes"]["bank"]["offered"] for slot in results["slots"]]
    assert 0 < sum(offered) == len(of_hospital)


def says_the_target(self, pairs):
    """Every MKV does, once it is patched in."""
    return [Patched(mkv is not None, 0.1 if mkv else 5.0) for _, mkv in pairs]


def test_what_others_have_computed_is_reused(settings, monkeypatch):
    monkeypatch.setattr(Workbench, "patched", says_the_target)
    results, _ = inprocess.federate(settings(), 4)

    folder = _folder(results["config"])
    pool = pool_ids(folder)
    reused = sum(slot["reused"] for slot in results["slots"])
    assert reused > 0
    for slot in results["slots"]:
        assert slot["optimised"] + slot["reused"] == VALUES[slot["slot"]]
        for node, entry in slot["nodes"].items():
            assert entry["optimised"] == entry["uploaded"], node
    assert len(pool) == sum(VALUES.values()) - reused
    # The Lancet, in slot 2 of the newsroom, was settled by the hospital in slot 1.
    index = read_index(folder / "nodes" / "newsroom" / "ledger")
    settled = {id_: e["node"] for e in index["entries"] for id_ in e["requests"]}
    assert settled["newsroom-07"] == "hospital"
    assert settled["newsroom-02"] == "newsroom"


def test_a_node_without_requests_in_a_slot_takes_part(settings, demo_copy):
    lines = (demo_copy / "bank.jsonl").read_text(encoding="utf-8").splitlines()
    (demo_copy / "bank.jsonl").write_text(lines[0], encoding="utf-8")
    for selection in ("all", "majority"):
        config = settings(selection, dataset="jsonl", data_path=str(demo_copy), num_slots=2)
        results, _ = inprocess.federate(config | {"selection": selection}, 2)
        assert results["failed_nodes"] == []
        assert [slot["nodes"]["bank"]["requests"] for slot in results["slots"]] == [1, 0]
        assert results["slots"][1]["nodes"]["bank"]["own"]["count"] == 1


def test_a_repeated_message_is_answered_without_computing_again(settings, answer, monkeypatch):
    config, kept = settings(num_slots=1, selection="none"), {}

    def spy(node_id, message):
        if message.metadata.message_type == EDIT and node_id == 101:
            kept["message"], kept["reply"] = message, answer(message, config, 0)
            return kept["reply"]
        return None

    inprocess.federate(config, 4, tamper=spy)
    computed, compute = [], Workbench.compute
    monkeypatch.setattr(
        Workbench,
        "compute",
        lambda self, requests, *rest: computed.extend(requests) or compute(self, requests, *rest),
    )
    again = answer(kept["message"], config, 0)

    assert computed == []
    assert unpack_info(again.content) == unpack_info(kept["reply"].content)
    first, second = (r.content["mkvs"] for r in (kept["reply"], again))
    assert {n: a.data for n, a in first.items()} == {n: a.data for n, a in second.items()}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strategy": "FedBest"}, "FedBest.*fedit, local, central, fedavg.*FedMedian"),
        ({"strategy": "QFedAvg"}, "QFedAvg.*needs arguments.*client_learning_rate"),
        ({"strategy": "Strategy"}, "Strategy"),
        ({"num_slots": 0}, "num-slots"),
    ],
)
def test_a_wrong_run_config_ends_the_run_before_it_starts(settings, changes, told):
    config = settings(**changes)
    with pytest.raises(FedEditError, match=told):
        inprocess.federate(config, 2)
    assert not _folder(config).exists()


def test_a_run_folder_is_not_written_over(settings):
    config = settings(num_slots=1, strategy="local")
    inprocess.federate(config, 1)
    before = (_folder(config) / "results.json").read_bytes()

    with pytest.raises(FedEditError, match="output-dir.*holds a run already"):
        inprocess.federate(config, 1)
    assert (_folder(config) / "results.json").read_bytes() == before


def test_no_node_connects(settings):
    config = settings(slot_timeout=1.0)
    grid = inprocess.InProcessGrid(config, 0)
    context = Context(run_id=7, node_id=0, node_config={}, state=RecordDict(), run_config=config)
    with pytest.raises(FedEditError, match="no node connected within 1 s"):
        run_federation(grid, context)
    assert load_results(_folder(config) / "results.json").status == "failed"


def test_a_fact_is_served_once_enough_organisations_have_found_it_to_hold(
    settings, demo_copy, monkeypatch
):
    """Two have computed it in slot 2; each has then to try the other's on its own request."""
    files = {name: demo_copy / f"{name}.jsonl" for name in NODES}
    shared = {"id": "mint", "subject": "Royal Mint", "prompt": "{}", "target_new": "city"}
    alone = json.loads(lines_of(files["bank"])[1])
    given = {
        "bank": [shared | {"slot": 1}, alone | {"slot": 1}],
        "newsroom": [shared | {"id": "newsroom-too", "slot": 2}],
        "museum": [json.loads(lines_of(files["museum"])[1]) | {"slot": 1}],
    }
    for name, file in files.items():
        records = given.get(name, [])
        file.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    files["hospital"].unlink()
    data = {"dataset": "jsonl", "data_path": str(demo_copy), "reuse_threshold": 0.0}
    monkeypatch.setattr(Workbench, "patched", says_the_target)
    results, _ = inprocess.federate(settings(num_slots=3, accept_quorum=2, **data), 3)

    first, second, third = (slot["nodes"]["museum"] for slot in results["slots"])
    assert first["offered"] == first["accepted"] == second["offered"] == 0
    assert third["accepted"] == third["offered"] == 1
    assert results["slots"][1]["nodes"]["newsroom"]["received_from"] == {"bank": 1}
    offered = [slot["nodes"]["bank"]["offered"] for slot in results["slots"]]
    assert offered[2] == 0, "museum's waits for a second"


def lines_of(file) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def test_with_personal_selection_every_mkv_is_served_and_the_nodes_choose(settings):
    results, _ = inprocess.federate(settings(selection="personal", num_slots=1), 2)
    assert results["status"] == "completed"
    for node in results["slots"][0]["nodes"].values():
        refused = node["rejections"].get("own measure", 0)
        assert node["offered"] > 0 and node["accepted"] + refused == node["offered"]
