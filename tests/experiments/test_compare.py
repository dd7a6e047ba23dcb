"""`fedit compare` and `fedit sweep` from the command line to the tables, in this process."""

import contextlib
import csv
import io
import json
import shutil

import pytest
from experiments.conftest import Simulated, arguments

from fedit_app.cli.main import main
from fedit_app.experiments.baselines import mend
from fedit_app.facts import partition
from fedit_app.flower_compat import launch
from fedit_app.report import load_results
from fedit_app.support.files import cache_dir

pytestmark = pytest.mark.integration

STRATEGIES = "fedit,fedit[selection=none],fedavg,local,central"


def results(folder, name):
    return load_results(folder / name / "results.json").as_json()


def figures(found):
    """What may not depend on the work-cache."""
    parts = ("own", "federation")
    slots = [
        {n: {p: node[p] for p in parts} for n, node in s["nodes"].items()} for s in found["slots"]
    ]
    return found["summary"], found["nodes"], slots


def total(found, name):
    return sum(slot[name] for slot in found["slots"])


def mkvs(folder, name):
    return sorted(file.name for file in (folder / name / "nodes").rglob("*.safetensors"))


@pytest.fixture(scope="module")
def compared(values, tmp_path_factory):
    """The folder of a comparison that several tests look at, and what the command said."""
    folder, said, calls = tmp_path_factory.mktemp("compared") / "all", io.StringIO(), Simulated()
    options = ("--nodes", 2, "--strategies", STRATEGIES, "--seeds", "1,2")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(launch, "simulate", calls)
        assert main(arguments(values, "compare", folder, *options)) == 0
    assert len(calls) == 10
    return folder, said.getvalue()


def test_compare(compared):
    folder, said = compared
    for seed in (1, 2):
        first = results(folder, f"fedit_memit_seed-{seed}")
        assert (total(first, "optimised"), total(first, "cached")) == (8, 0)
        for name in ("fedit-selection-none", "local", "central"):
            found = results(folder, f"{name}_memit_seed-{seed}")
            assert total(found, "cached") == total(found, "optimised") == 8, name
        averaged = results(folder, f"fedavg_memit_seed-{seed}")
        assert [slot["cached"] for slot in averaged["slots"]] == [4, 0], (
            "the global model of the second slot is another one"
        )
    comparison = json.loads((folder / "comparison.json").read_text())
    rows = {row["strategy"]: row for row in comparison["rows"]}
    assert list(rows) == ["unedited", *STRATEGIES.split(",")]
    assert all(row["measured"]["federation"]["score"]["n"] == 2 for row in rows.values())
    assert rows["central"]["retention"] == {"mean": 1.0, "sd": 0.0, "n": 2}
    for name in ("fedit", "local", "fedavg"):
        score = results(folder, f"{name}_memit_seed-1")["summary"]["federation"]["score"]
        (run,) = [r for r in comparison["runs"] if (r["strategy"], r["seed"]) == (name, 1)]
        assert run["measured"]["federation"]["score"] == score and len(run["slots"]) == 2
    lines = said.splitlines()
    assert lines[0].startswith("Ahead of fedit, memit") and lines[1].startswith("- score: ")
    table = lines[lines.index("") + 1 :]
    assert table[0].startswith("| Strategy | Editor | n |") and table[2].startswith("| unedited")
    written = (folder / "comparison.md").read_text()
    assert written.startswith("Ahead of fedit, memit") and written.count("\n| fedit") == 4
    tests = list(csv.DictReader((folder / "tests.csv").open()))
    assert {row["method"] for row in tests} == {f"{s}, memit" for s in STRATEGIES.split(",")[1:]}
    assert {int(row["facts"]) for row in tests} == {8}
    in_paper = (folder / "paper" / "methods.tex").read_text()
    assert r"fedit[selection=none] & memit & 2" in in_paper
    heads = ("Strategy", "Editor", "n", "Score", "Efficacy", "Paraphrase", "Neighborhood")
    assert in_paper.splitlines()[2].startswith(" & ".join(heads)), "what fits on a page"
    assert "Subject fidelity" in (folder / "paper" / "methods.csv").read_text()
    page = (folder / "comparison.html").read_text()
    assert page.count("<svg") == 2 and "fedit[selection=none]" in page and "<script" not in page
    with (folder / "comparison.csv").open() as stream:
        line = next(
            row
            for row in csv.DictReader(stream)
            if (row["run"], row["scope"], row["metric"])
            == ("local_memit_seed-2", "federation", "efficacy")
        )
    local = results(folder, "local_memit_seed-2")
    assert float(line["figure"]) == local["summary"]["federation"]["efficacy"]


def test_the_work_cache_changes_nothing_but_the_time(fedit, simulated, compared, tmp_path):
    options = ("--nodes", 2, "--strategies", STRATEGIES, "--seeds", "2")
    fedit("compare", *options, folder="plain", work_cache='""')
    for run in simulated:
        name = run["output-dir"].rpartition("/")[2]
        plain, shared = results(tmp_path / "plain", name), results(compared[0], name)
        assert total(plain, "cached") == 0
        assert figures(plain) == figures(shared), name
        assert mkvs(tmp_path / "plain", name) == mkvs(compared[0], name), name
    assert not (tmp_path / "plain" / "work-cache").exists()
    assert not (cache_dir() / "values").exists()


def test_the_requests_are_dealt_out_once_a_seed(fedit, simulated, tmp_path, monkeypatch):
    written = []
    plain = partition._write

    def write(config, count, run_folder, *rest):
        written.append(run_folder.name)
        plain(config, count, run_folder, *rest)

    monkeypatch.setattr(partition, "_write", write)
    options = ("--nodes", 2, "--strategies", "local,fedit,local[requests-per-slot=1]")
    assert fedit("compare", *options, "--seeds", "1,2")[0] == 0
    assert written == [
        f"local{more}_memit_seed-{seed}" for seed in (1, 2) for more in ("", "-requests-per-slot-1")
    ]
    for seed in (1, 2):
        parts = [
            sorted(file.read_bytes() for file in (tmp_path / "all" / name / "requests").iterdir())
            for name in (f"local_memit_seed-{seed}", f"fedit_memit_seed-{seed}")
        ]
        assert parts[0] == parts[1]


def test_after_an_interruption(fedit, simulated, tmp_path, monkeypatch):
    options = ("--nodes", 2, "--strategies", "local,central,fedit")
    in_process = launch.simulate

    def interrupted(app, config, nodes, on_line, given_cores=None):
        if config["strategy"] == "central":
            raise KeyboardInterrupt
        return in_process(app, config, nodes, on_line, given_cores)

    with monkeypatch.context() as patch:
        patch.setattr(launch, "simulate", interrupted)
        status, said = fedit("compare", *options)
    assert status == 130 and [run["strategy"] for run in simulated] == ["local"]
    status, said = fedit("compare", "--report-only")
    assert status == 0 and "0 of 1" in said.out
    assert fedit("compare", *options)[0] == 0
    assert [run["strategy"] for run in simulated] == ["local", "central", "fedit"]


def test_the_work_cache_holds_no_text(compared, facts):
    held = b"".join(
        file.name.encode() + file.read_bytes()
        for file in (compared[0] / "work-cache").rglob("*")
        if file.is_file()
    )
    for record in json.loads(facts.read_text()):
        assert record["requested_rewrite"]["subject"].encode() not in held


def test_what_is_complete_is_not_repeated(fedit, simulated, compared, tmp_path):
    shutil.copytree(compared[0], tmp_path / "all")
    options = ("--nodes", 2, "--strategies", STRATEGIES)
    before = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert fedit("compare", *options, "--seeds", "1,2")[0] == 0 and simulated == []
    again = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert (again["runs"], again["rows"]) == (before["runs"], before["rows"])
    broken = tmp_path / "all" / "local_memit_seed-1" / "results.json"
    cut = json.loads(broken.read_text())
    cut["slots"][1]["complete"], cut["status"] = False, "running"
    broken.write_text(json.dumps(cut))
    anew = tmp_path / "all" / "fedavg_memit_seed-1" / "results.json"
    anew.write_text(json.dumps({**json.loads(anew.read_text()), "slots": cut["slots"]}))
    _, said = fedit("compare", *options, "--seeds", "1,2", "--dry-run")
    assert said.out.count("to be resumed") == said.out.count("to be restarted") == 1
    assert said.out.count("complete") == 8 and simulated == []
    assert fedit("compare", *options, "--seeds", "1,2")[0] == 0
    assert [(run["strategy"], run["resume"]) for run in simulated] == [
        ("fedavg", False),
        ("local", True),
    ]
    after = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert [row["measured"] for row in after["rows"]] == [row["measured"] for row in before["rows"]]


def test_one_that_fails_does_not_stop_the_others(fedit, simulated, tmp_path):
    simulated.break_on(strategy="fedit", seed=1)
    options = ("--nodes", 2, "--strategies", "fedit,central", "--seeds", "1,2")
    status, said = fedit("compare", *options)
    assert status == 1 and len(simulated) == 4
    log = "logs/fedit_memit_seed-1.log"
    assert f"| fedit_memit_seed-1 | the machine is on fire (log: {log}) |" in said.out
    assert "on fire" in (tmp_path / "all" / log).read_text()
    (row,) = [line for line in said.out.splitlines() if line.startswith("| fedit |")]
    assert "1 of 2, 1 failed" in row
    simulated.clear()
    simulated.broken = None
    assert fedit("compare", *options)[0] == 0
    assert [(run["strategy"], run["seed"]) for run in simulated] == [("fedit", 1)]


def test_all_is_checked_before_the_first_run(fedit, simulated, tmp_path):
    for options, told in (
        (("--strategies", "fedit,FedNone"), "FedNone, memit, seed 0: run config: strategy"),
        (("--editors", "rome"), "fedit, rome, seed 0: run config: editor"),
        (("--strategies", "fedit,local[layers=1-4]"), "layers: 4 is out of range"),
        (("--seeds", "one"), "--seeds: 'one'"),
        (("-c", "data-path=/nowhere.json"), "/nowhere.json"),
    ):
        status, said = fedit("compare", "--nodes", 2, *options)
        assert status == 2 and told in said.err
    assert simulated == [] and not list((tmp_path / "all").glob("*/"))
    status, said = fedit("sweep")
    assert status == 2 and "--axis is missing" in said.err


def test_other_settings_in_the_same_folder(fedit, simulated):
    assert fedit("compare", "--nodes", 2, "--strategies", "local")[0] == 0
    status, said = fedit("compare", "--nodes", 2, "--strategies", "local", value_steps=4)
    assert status == 2 and "value-steps = 4 (begun with 3)" in said.err
    assert len(simulated) == 1


def test_report_only(fedit, simulated, compared, tmp_path):
    shutil.copytree(compared[0], tmp_path / "all")
    for file in (tmp_path / "all").glob("comparison.*"):
        file.unlink()
    status, said = fedit("compare", "--report-only", "--metrics", "accuracy,own.count")
    assert status == 0 and simulated == []
    written = (tmp_path / "all" / "comparison.md").read_text()
    for text in (said.out, written):
        (heading,) = [line for line in text.splitlines() if line.startswith("| Strategy")]
        assert "Accuracy" in heading and "Own count" in heading and "Efficacy" not in heading
    assert fedit("compare", "--report-only", folder="none")[0] == 2
    for wrong, why in (
        ("own.upkeep", "no such figure; own has efficacy"),
        ("own.drawn_from", "no such figure"),
        ("mine.score", "no such scope; there are neutral"),
        ("score,", "'': no such figure; federation has"),
    ):
        for options in (("--report-only",), ("--dry-run", "--nodes", 2)):
            status, said = fedit("compare", *options, "--metrics", wrong)
            assert status == 2 and why in said.err


def test_sweep(fedit, simulated, tmp_path):
    status, said = fedit(
        *("sweep", "--axis", "nodes=1,2", "--strategies", "local,central"), num_slots=1
    )
    assert status == 0
    assert [run["strategy"] for run in simulated] == ["local", "central"] * 2
    comparison = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert comparison["axis"] == {"key": "nodes", "values": [1, 2]}
    rows = [(row["strategy"], row["value"]) for row in comparison["rows"]]
    assert rows == [(s, v) for s in ("unedited",) for v in (1, 2)] + [
        (s, v) for v in (1, 2) for s in ("local", "central")
    ]
    for row in comparison["rows"][2:]:
        assert row["costs"]["requests"]["mean"] == 2 * row["value"]
    found = results(tmp_path / "all", "local_memit_nodes-2_seed-0")
    assert total(found, "cached") == 2, "the first relation's facts are those of the one node"
    assert "nodes" in said.out.splitlines()[0]


def test_a_baseline_is_a_run_like_any_other(fedit, simulated, tmp_path):
    options = ("--nodes", 2, "--strategies", "central", "--baselines", "ft-m,in-context")
    options += ("-c", "evaluate-sample=3", "-c", "metrics=full")
    status, said = fedit("compare", *options)
    assert status == 0 and [call["strategy"] for call in simulated] == ["central"]
    folder = tmp_path / "all"
    comparison = json.loads((folder / "comparison.json").read_text())
    rows = {row["strategy"]: row for row in comparison["rows"]}
    assert list(rows) == ["unedited", "central", "ft-m", "in-context"]
    assert rows["ft-m"]["editor"] == "" and rows["ft-m"]["retention"]["mean"] is not None
    assert "| ft-m | " in said.out
    assert ">3 methods" in (folder / "comparison.html").read_text()
    central, tuned = (
        results(folder, name) for name in ("central_memit_seed-0", "ft-m_baseline_seed-0")
    )
    assert central["nodes"].keys() == tuned["nodes"].keys()
    for name, node in tuned["nodes"].items():
        assert node["before"] == central["nodes"][name]["before"], "the same evaluation"
        asked = [(node[of]["count"], node[of]["drawn_from"]) for of in ("own", "federation")]
        assert asked == [(3, 4), (3, 8)], "of the same sample"
        written = (node["federation"]["wild_match"], node["before"]["own"]["wild_match"])
        assert None not in written, "what it writes itself is asked, too"
    before = (folder / "ft-m_baseline_seed-0" / "results.json").stat().st_mtime_ns
    assert fedit("compare", *options)[0] == 0 and len(simulated) == 1
    assert (folder / "ft-m_baseline_seed-0" / "results.json").stat().st_mtime_ns == before


def test_mend_is_trained_on_records_that_nobody_edits(fedit, simulated, tmp_path, monkeypatch):
    options = ("--nodes", 2, "--strategies", "central", "--baselines", "mend")
    shorter = {"num_slots": 1, "requests_per_slot": 2}
    status, said = fedit("compare", *options, **shorter)
    assert status == 1 and "mend: the data has 4 records to train on, and it needs 100" in said.out
    monkeypatch.setattr(mend, "STEPS", 1)
    monkeypatch.setattr(mend, "LEAST", 4)
    plain, seen = mend.trained, []

    def spy(model, records, at_once, seed):
        seen.append(({record.subject for record in records}, at_once))
        return plain(model, records, at_once, seed)

    monkeypatch.setattr(mend, "trained", spy)
    assert fedit("compare", *options, **shorter)[0] == 0
    assert seen == [({"Basler", "Channel 4", "Basel", "Wales"}, 4)]
    found = results(tmp_path / "all", "mend_baseline_seed-0")
    assert found["summary"]["federation"]["count"] == 2 * 4, "of both nodes"


def test_the_preset_has_all_methods_and_its_lists_can_be_shortened(fedit, simulated):
    status, said = fedit("compare", "--preset", "field", "--nodes", 2, "--dry-run")
    assert status == 0 and not simulated
    assert said.out.count("to be started") == 7 + 6 + 7
    assert "fedit, pmet, seed 0" in said.out and "local, pmet" not in said.out
    options = ("--strategies", "central", "--editors", "blue,memit", "--baselines", "lora")
    status, said = fedit("compare", "--preset", "field", "--nodes", 2, "--dry-run", *options)
    assert status == 0 and said.out.count("to be started") == 3


@pytest.mark.slow
def test_all_methods_of_the_field_are_compared_in_one_command(fedit, simulated, tmp_path):
    assert fedit("compare", "--preset", "field", "--nodes", 2, num_slots=1)[0] == 0
    comparison = json.loads((tmp_path / "all" / "comparison.json").read_text())
    rows = comparison["rows"][1:]
    assert len(rows) == 7 + 6 + 7 and all(row["completed"] == 1 for row in rows)
    assert all(row["measured"]["federation"]["score"]["n"] == 1 for row in rows)


def test_the_field_is_asked_for_answers_of_its_own_unless_something_else_is_wanted(
    fedit, simulated, tmp_path
):
    options = ("--preset", "field", "--nodes", 2, "--strategies", "central")
    options += ("--editors", "memit", "--baselines", "ft-m")
    assert fedit("compare", *options)[0] == 0
    comparison = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert comparison["config"]["metrics"] == "answers"
    for row in comparison["rows"][1:]:
        found = row["measured"]["federation"]
        assert (
            found["wild_match"]["n"] == 1 and found.get("generation_entropy", {}).get("n", 0) == 0
        )
    status, said = fedit("compare", *options, "--dry-run", folder="other", metrics="basic")
    assert status == 0 and "to be started" in said.out
    status, said = fedit("compare", *options, metrics="basic")
    assert status == 2 and "metrics = 'basic' (begun with 'answers')" in said.err


def test_the_papers_methods_are_one_preset(fedit, simulated):
    status, said = fedit("compare", "--preset", "paper", "--nodes", 2, "--dry-run")
    assert status == 0 and not simulated
    for strategy in (r"fedit\[selection=majority\]", "fedavg", "central"):
        for editor in ("memit", "pmet"):
            assert f"| {strategy}, {editor}, seed 0 |" in said.out
    assert "| ft-m, seed 0 |" in said.out and "| mend, seed 0 |" in said.out
    assert said.out.count("to be started") == 3 * 2 + 2
