"""Every benchmark end to end, at sizes that take a moment."""

import argparse
import dataclasses
import json
import math

import inprocess
import pytest
from published import counterfact
from report.conftest import as_results, completed

from benchmarks import (
    absence,
    deployment,
    editors,
    fidelity,
    growth,
    ledger,
    lookup,
    near_keys,
    pool,
    pool_worker,
    retention,
    reuse,
    rounds,
    sketch,
    solve,
    stops,
    stores,
    subjects,
    wire,
)
from benchmarks.harness import different_subjects, loaded, workbench
from fedit_app.editing.method import EditingMethod
from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError

FACTS = [
    ("{} is in", "Reuters", "Basel", "London"),
    ("The museum of {} is in the", "Cardiff", "city of Zürich", "city"),
    ("The bank {} is in", "Basler", "Wales", "Basel"),
]


@pytest.fixture
def data(tmp_path):
    records = [counterfact(number, *fact) for number, fact in enumerate(FACTS)]
    file = tmp_path / "counterfact.json"
    file.write_text(json.dumps(records))
    return file


@pytest.fixture
def figures(tmp_path, capsys):
    """Run a benchmark and check the form of what it prints and writes."""

    def figures(run, *arguments):
        file = tmp_path / "figures.json"
        run([*map(str, arguments), "--json", str(file), "--device", "cpu"])
        written = json.loads(file.read_text())
        assert set(written) == {"device", "figures"}
        assert isinstance(written["device"], str) and "torch threads" in written["device"]
        values = written["figures"]
        assert all(isinstance(value, int | float) for value in values.values())
        assert all(map(math.isfinite, values.values()))
        name = run.__module__.removeprefix("benchmarks.")
        assert all(key.startswith(f"{name}/") for key in values)
        printed = capsys.readouterr().out
        assert printed.startswith("| ") and f"device: {written['device']}" in printed
        return values

    return figures


def test_editors(figures, tiny_folder, data, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The museum of Basel is in the city of Basel. " * 60)
    found = figures(
        editors.run,
        *("--model", tiny_folder, "--data", data, "--records", 3, "--plain-records", 1),
        *("--text", text, "--text-rows", 3, "--editors", "memit,pmet,memit-fe"),
    )
    for name in ("memit", "pmet", "memit-fe"):
        assert found[f"editors/{name}/kl"] > -1e-6, "a divergence, up to rounding"
        assert found[f"editors/{name}/perplexity"] > 1
        assert found[f"editors/{name}/seconds_per_edit"] > 0
    assert "editors/unedited/efficacy" in found
    assert "editors/unedited/seconds_per_edit" not in found
    with pytest.raises(FedEditError, match="--editors: 'rome' must be one of memit"):
        editors.run(["--editors", "rome", "--data", str(data)])


def test_stops(figures, tiny_folder, data):
    rules = ("held=0", "held=3", "p=0.9", "loss=0.05", "never")
    found = figures(
        stops.run,
        *("--model", tiny_folder, "--data", data, "--records", 3, "--rules", ",".join(rules)),
    )
    for rule in rules:
        assert found[f"stops/{rule}/seconds_per_value"] > 0
        assert {f"stops/{rule}/paraphrase_magnitude", f"stops/{rule}/exact_match"} < set(found)
    passes = {rule: found[f"stops/{rule}/passes"] for rule in rules}
    assert passes["held=0"] <= passes["held=3"] <= passes["never"] == 25
    with pytest.raises(FedEditError, match="--rules: 'held=x' must be held=K, p=P, loss=L or nev"):
        stops.run(["--rules", "held=x", "--data", str(data)])


def test_the_rule_of_a_run_stops_the_values_of_the_curve_where_it_stops_a_run(tiny_folder, data):
    """Else the curve would be of another rule than the one that it is to choose."""
    options = argparse.Namespace(model=str(tiny_folder), device="cpu", dtype="auto", data=data)
    facts = different_subjects(options, 3)
    bench = workbench(loaded(options), subject_weight=1.0)
    for held in (1, 4):
        bench.settings = dataclasses.replace(bench.settings, stop_after=held)
        values = bench.editor.values(bench.model, facts, bench.templates, bench.settings)
        passes = stops.optimised(bench, facts)
        assert (passes.stopped(f"held={held}") + 1).tolist() == values.steps.tolist()


def test_fidelity(figures, tiny_folder, data, monkeypatch, tmp_path):
    clamps, kept = [], tmp_path / "values"

    def noted(*given, **named):
        clamps.append(named["clamp"])
        return workbench(*given, **named)

    monkeypatch.setattr(fidelity, "workbench", noted)
    found = figures(
        fidelity.run,
        *("--model", tiny_folder, "--data", data, "--records", 2, "--weights", "0,2"),
        *("--editors", "memit,pmet"),
    )
    for name in ("memit", "pmet"):
        for weight in (0, 2):
            line = f"fidelity/{name}, weight {weight}"
            assert 0 <= found[f"{line}/exact_match"] <= 1
            assert found[f"{line}/seconds_per_edit"] > 0
    mixes = ("--weights", 1, "--mixes", "1+0,2+1", "--clamp", 0.5, "--work-cache", kept)
    found = figures(fidelity.run, "--model", tiny_folder, "--data", data, "--records", 2, *mixes)
    assert {"fidelity/memit, weight 1, 2+1/wild_match"} < set(found)
    assert clamps == [None] * 4 + [0.5] * 2
    assert [file for file in kept.rglob("*") if file.is_file()]
    with pytest.raises(FedEditError, match="--mixes: '5' must be PREFIXES"):
        fidelity.run(["--mixes", "5", "--data", str(data)])
    with pytest.raises(FedEditError, match="--weights: 'much' must be numbers"):
        fidelity.run(["--weights", "much", "--data", str(data)])
    with pytest.raises(FedEditError, match="--weights: -1 must be at least 0"):
        fidelity.run(["--weights", "0,-1", "--data", str(data)])


def test_wire(figures, tiny_folder, data, monkeypatch):
    optimised = []
    plain = EditingMethod.values

    def values(self, model, requests, *others):
        optimised.append([request.id for request in requests])
        return plain(self, model, requests, *others)

    monkeypatch.setattr(EditingMethod, "values", values)
    found = figures(
        wire.run, *("--model", tiny_folder, "--data", data, "--records", 3, "--clients", 2)
    )
    assert optimised == [["0", "2"], ["1"]], "v* are shared by all precisions"
    for part in ("wire_bytes_per_mkv", "file_bytes_per_mkv"):
        sizes = [found[f"wire/{name}/{part}"] for name in ("int8", "float16", "float32")]
        assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[2]
    errors = {
        name: [value for key, value in found.items() if key.startswith(f"wire/{name}/delta_error")]
        for name in ("int8", "float16", "float32")
    }
    assert all(e8 > e16 > 0 for e8, e16 in zip(errors["int8"], errors["float16"], strict=True))
    assert set(errors["float32"]) == {0}
    assert found["wire/float32/lookup_cosine"] > found["wire/int8/lookup_cosine"] > 0.99
    assert all(f"wire/{name}/{part}" in found for name in errors for part in ("score", "decodes"))
    assert "wire/unedited/score" in found and "wire/unedited/decodes" not in found
    with pytest.raises(FedEditError, match="--clients: 4 cannot share 3 records"):
        wire.run(["--records", "3", "--clients", "4", "--data", str(data)])


def test_stores(figures, tmp_path):
    found = figures(stores.run, "--mkvs", 30, "--folder", tmp_path)
    for name in ("files", "SQLite", "Lance"):
        assert found[f"stores/{name}/append"] > 0 and found[f"stores/{name}/mib"] > 0
    assert not any(tmp_path.glob("fedit-stores-*"))


def test_lookup(figures, tiny_folder, data):
    found = figures(lookup.run, "--model", tiny_folder, "--data", data, "--records", 3)
    first = next(iter(found)).split("/")[1]
    recalls = [found[f"lookup/{first}/{t}/recall"] for t in (0.98, 0.9, 0.8, 0.7)]
    assert recalls == sorted(recalls) and 0 <= recalls[0] <= recalls[-1] <= 1
    kinds = ("one request, two ledgers", "paraphrases", "one prompt, two targets")
    for kind in kinds:
        assert -1 <= found[f"lookup/{kind}/shifts/least"] <= found[f"lookup/{kind}/shifts/most"]
    same = [found[f"lookup/{kinds[0]}/{part}/least"] for part in ("key", "value")]
    assert same == pytest.approx([1, 1], abs=1e-5), "what others have edited changes neither"
    assert found[f"lookup/{kinds[2]}/key/least"] == pytest.approx(1, abs=1e-5)
    assert found[f"lookup/{kinds[2]}/value/most"] < 0.999
    assert sum(found[key] for key in found if key.endswith("/pairs")) == 3


@pytest.fixture
def facts(tmp_path):
    """Two facts about every subject: with the same beginning, and with another one."""
    prompts = ("{} is in", "{} was founded in", "The museum of {} is in the")
    records = [
        {"requested_rewrite": rewrite | {"relation_id": f"P{place}"}}
        for number, (_, subject, target, true) in enumerate(FACTS)
        for place, prompt in enumerate(prompts)
        for rewrite in [counterfact(number, prompt, subject, target, true)["requested_rewrite"]]
    ]
    for number, record in enumerate(records):
        record["case_id"] = str(number)
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    return file


def test_growth(figures, tiny_folder, data, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The museum of Basel is in the city of Basel. " * 60)
    options = ("--model", tiny_folder, "--data", data, "--per-slot", 2, "--facts", "2,3")
    options = (*options, "--sample", 2, "--text", text, "--text-rows", 3)
    found = figures(growth.run, *options)
    for way in ("with", "without"):
        for n in (2, 3):
            assert 0 <= found[f"growth/{way}/n={n}/accuracy"] <= 1
            assert 0 <= found[f"growth/{way}/n={n}/first_slot"] <= 1
            assert 0 <= found[f"growth/{way}/n={n}/exact_match"] <= 1
            assert found[f"growth/{way}/n={n}/perplexity"] > 1
    assert found["growth/without/n=3/renewed"] == 0
    assert found["growth/with/n=3/accuracy"] >= found["growth/without/n=3/accuracy"]
    assert found["growth/unedited/perplexity"] > 1
    of_text = ("--covariance-source", text, "--covariance-tokens", 300, "--ways", "without")
    other = figures(growth.run, *options, *of_text)
    key = "growth/without/n=3/perplexity"
    assert other[key] != found[key], "the covariance is that of the given text"
    with pytest.raises(FedEditError, match="--ways"):
        growth.run(["--ways", "wihout"])


def test_near_keys(figures, tiny_folder, facts, tmp_path):
    drawn = tmp_path / "near.svg"
    options = ("--model", tiny_folder, "--facts", facts, "--pairs", 2)
    found = figures(near_keys.run, *options, "--plot", drawn)
    bands = {key.split("/")[1] for key in found}
    assert sum(found[f"near_keys/{band}/pairs"] for band in bands) >= 2
    for band in bands:
        assert all(
            0 <= found[f"near_keys/{band}/{way}"] <= 1 for way in ("alone", "apart", "joint")
        )
    assert "cosine of the two keys" in drawn.read_text() or drawn.stat().st_size > 1000


def test_rounds(figures, tiny_folder, facts):
    found = figures(
        rounds.run, "--model", tiny_folder, "--facts", facts, "--subjects", 2, "--rounds", 2
    )
    assert len(found) == 10
    for key, share in found.items():
        assert 0 <= share <= 1 and (not key.endswith("_1") or share <= found[f"{key}0"])


def test_sketch(figures, tiny_folder, data):
    found = figures(
        sketch.run,
        *("--model", tiny_folder, "--data", data, "--records", 3, "--edits", 3),
        *("--again", 1, "--candidates", 3, "--widths", "16,512", "--keys", 2),
    )
    of = {name: {k.split("/")[2]: v for k, v in found.items() if k.split("/")[1] == name}
          for name in ("16", "512", "full")}  # fmt: skip
    exact = of["full"]
    assert exact["cosine_error"] < 1e-12 < of["512"]["cosine_error"] < of["16"]["cosine_error"]
    agreements = [name for name in exact if name.endswith(("agreement", "overlap"))]
    assert len(agreements) == 5 and all(exact[name] == 1 for name in agreements)
    assert exact["guessed_with_key"] == of["512"]["guessed_with_key"] == 1
    assert "guessed_blind" not in exact
    assert exact["bytes_per_mkv"] < of["16"]["bytes_per_mkv"] < of["512"]["bytes_per_mkv"]
    with pytest.raises(FedEditError, match="none may be more than the next"):
        sketch.run(["--records", "3", "--candidates", "2", "--data", str(data)])


def test_reuse(figures, tiny_folder, data, monkeypatch):
    def in_process(app, config, nodes, on_line):
        configs.append(config)
        inprocess.federate({**config, **small}, nodes)
        return "finished:completed"

    small = {"contexts": 1, "covariance-weight": 1.0, "value-steps": 3, "covariance-tokens": 400}
    configs: list[dict] = []
    monkeypatch.setattr(reuse, "simulate", in_process)
    found = figures(
        reuse.run,
        *("--model", tiny_folder, "--data", data, "--nodes", 1, "--requests", 1),
        *("--shares", "0"),
    )
    assert [config["num-slots"] for config in configs] == [2]
    assert found["reuse/0/avoidable"] == found["reuse/0/avoided"] == 0
    assert found["reuse/0/score"] == found["reuse/0/score_without"]
    many = json.loads(data.read_text()) * 2
    data.write_text(json.dumps([{**record, "case_id": i} for i, record in enumerate(many)]))
    found = figures(
        reuse.run,
        *("--model", tiny_folder, "--data", data, "--nodes", 3, "--requests", 1),
        *("--shares", "0.5"),
    )
    thresholds = [config.get("reuse-threshold") for config in configs]
    assert thresholds == [None, None, 0.0], "every share is run with and without reuse"
    assert found["reuse/0.5/avoidable"] >= 1
    assert found["reuse/0.5/avoided_share"] <= 1
    with pytest.raises(FedEditError, match="--shares"):
        reuse.run(["--shares", "0,2", "--data", str(data)])


def test_retention(figures, tiny_folder, data, facts, monkeypatch):
    def in_process(app, config, nodes, on_line):
        inprocess.federate({**config, **small}, nodes)
        return "finished:completed"

    small = {"contexts": 1, "covariance-weight": 1.0, "value-steps": 3, "covariance-tokens": 400}
    monkeypatch.setattr(subjects, "simulate", in_process)
    options = ("--data", data, "--facts", facts, "--clients", 2, "--slots", 1, "--requests", 2)
    found = figures(retention.run, "--model", tiny_folder, *options, "--share", 0.5)
    assert found["retention/fedit/shared"] == found["retention/central/shared"] == 2
    assert found["retention/central/retention"] == 1 and found["retention/central/composed"] == 0
    with pytest.raises(FedEditError, match="--share 0.9"):
        retention.run([*map(str, options), "--share", "0.9"])
    with pytest.raises(FedEditError, match="need 1 and 6"):
        retention.run([*map(str, options), "--slots", "2", "--share", "0.25"])


def test_a_plan_spreads_every_fact_once():
    facts = [EditRequest(str(i), f"S{i // 2}", "{} is", "x") for i in range(20)]
    pairs = [facts[i : i + 2] for i in range(0, 8, 2)]
    plan = retention.planned(pairs, facts, (2, 3, 2), 0.5, seed=1)
    assert {name: [len(slot) for slot in slots] for name, slots in plan.items()} == {
        "client-0": [2, 2, 2],
        "client-1": [2, 2, 2],
    }
    for fact in (pair[0] for pair in pairs[:3]):
        owners = [name for name, slots in plan.items() for slot in slots for one in slot
                  if one.subject == fact.subject]  # fmt: skip
        assert sorted(owners) == ["client-0", "client-1"]
    assert len({one.id for slots in plan.values() for slot in slots for one in slot}) == 12


def test_pool(figures, tmp_path, monkeypatch):
    steps = []

    def in_this_process(name, **arguments):
        steps.append(name)
        return json.loads(json.dumps(pool_worker._STEPS[name](**arguments)))

    monkeypatch.setattr(pool, "_step", in_this_process)
    sizes = ("--sizes", "200,500", "--widths", 32, "--nodes", 2, "--own", 8)
    found = figures(pool.run, *sizes, "--folder", tmp_path)
    for name in ("pool/32/n=200", "pool/32/n=500"):
        assert found[f"{name}/append/mkvs_per_second"] > 0
        assert found[f"{name}/bytes_per_mkv"] > 600
        for question in ("reuse", "top-20", "top-20, centred", "majority"):
            assert found[f"{name}/{question}/seconds"] > 0
            assert found[f"{name}/{question}/peak_mib"] > 50
    assert steps.count("fill") == 2
    assert not list(tmp_path.glob("fedit-pool-*")), "the pools are deleted"


def test_a_pool_step_in_a_process_of_its_own(tmp_path):
    where = {"folder": str(tmp_path), "width": 32}
    assert pool._step("fill", **where, start=0, stop=100)["seconds"] > 0
    asked = {**where, "nodes": 2, "own": 8}
    found = pool._step("lookup", **asked)
    assert [len(ids) for ids in found["ids"]] == [1, 0, 0, 0] * 4, "every fourth fact is there"
    ranked = pool._step("rank", **asked, policy="top-k", centred=True)
    assert [len(ids) for ids in ranked["ids"]] == [20, 20]
    with pytest.raises(FedEditError, match="step rank .* failed"):
        pool._step("rank", **asked, policy="best", centred=True)


def test_pool_asks_for_room_first(tmp_path):
    with pytest.raises(FedEditError, match="--folder: .* are free, a pool of 99,999,999,999 MKVs"):
        pool.run(["--sizes", "99999999999", "--folder", str(tmp_path)])


def test_deployment():
    """The figures' arithmetic; that the processes work is for the integration tests."""
    results = completed()
    results["seconds"]["hello"] = 7.0
    stages = ((9.0, 2.0, 0.0), (4.0, 1.0, 1.0), (6.0, 1.0, 0.0))
    for slot, seconds in zip(results["slots"], stages, strict=True):
        slot |= {"bytes_up": 2048, "bytes_down": 4096}
        slot["seconds"] = dict(zip(("edit", "reedit", "evaluate"), seconds, strict=True))
    assert deployment._of_slots(as_results(results), nodes=2) == {
        "hello_seconds": 7.0,
        "first_slot_seconds": 11.0,
        "later_slot_seconds": 6.5,
        "edit_seconds": 5.0,
        "reedit_seconds": 1.0,
        "evaluate_seconds": 1.0,
        "kib_up": 1.0,
        "kib_down": 2.0,
    }


def test_absence(monkeypatch):
    """The figures' arithmetic, of a node that misses the second of three slots."""
    results = completed()
    del results["slots"][1]["nodes"]["museum"]
    monkeypatch.setattr(absence, "_AWAY", "museum")
    found = absence._figures(as_results(results))
    first, back = (results["slots"][number]["nodes"]["museum"] for number in (0, 2))
    assert found["missed_slots"] == 1
    assert found["accepted_in_slot_1"] == first["accepted"]
    assert found["accepted_in_return"] == back["accepted"]
    both = sum(slot["uploaded"] + slot["accepted"] for slot in (first, back))
    assert found["mkvs_in_the_end"] == both

    monkeypatch.setattr(absence, "_AWAY", "library")
    with pytest.raises(FedEditError, match="library took part in slots"):
        absence._figures(as_results(results))


def test_solve(figures):
    sizes = ("--sizes", "10,40,80", "--both", 10, "--d-ff", 32, "--d-model", 12)
    found = figures(solve.run, *sizes, "--kept", 200, "--repeat", 1)
    assert "solve/d_ff=32/n=200/kept/seconds" in found
    assert "solve/d_ff=32/n=200/seconds" not in found
    assert {"solve/d_ff=32/n=10/sums/seconds", "solve/d_ff=32/exponent"} <= found.keys()
    assert "solve/d_ff=32/n=80/pairs/seconds" not in found


def test_ledger(figures):
    found = figures(ledger.run, "--sizes", 8, "--slots", 8)
    assert {"ledger/open_s_8", "ledger/open_mib_8", "ledger/append_s_100"} <= found.keys()
    assert found["ledger/slot_seconds_8_over_8"] == 1
    assert found["ledger/n=8/page/seconds"] > 0
