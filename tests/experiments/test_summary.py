"""Means, spreads, retention and the tables, from results whose figures are known."""

import json
import math
import pickle
import xml.etree.ElementTree as ElementTree

import pytest

from fedit_app.experiments import runner
from fedit_app.experiments.evidence import Evidence
from fedit_app.experiments.plan import make_plan, parse_axis
from fedit_app.experiments.runner import Step, Todo, execute, prepare, what_is_left
from fedit_app.experiments.summary import ahead_text, summarise
from fedit_app.report import methods_table, render_comparison
from fedit_app.report.comparison import Axis, Spread
from fedit_app.report.comparison_plots import axis_plot, method_plot, slots_plot
from fedit_app.report.html import comparison_plots
from fedit_app.report.tables import figures_csv
from fedit_app.support.errors import FedEditError

SCORES = {"fedit[selection=majority]": 0.8, "fedavg": 0.4, "local": 0.5, "central": 1.0}
ALL = ",".join(SCORES)
PERPLEXITIES = {"perplexity_before": 9.0, "perplexity_after": 9.5}
NEUTRAL = {"kl": 0.125, "top10_overlap": 0.9, "tokens": 100, **PERPLEXITIES}


def metrics(score, **more):
    shares = ("efficacy", "paraphrase", "neighborhood", "score", "accuracy")
    return {**dict.fromkeys(shares, score), "count": 4, "metric": "likelihood", **more}


def write_results(run, score, complete=2, status="completed", failures=(), **more):
    """A run's results.json after two slots."""
    counts = ("requests", "optimised", "cached", "reused", "uploaded", "offered", "accepted")
    counts += ("rejected", "conflicts", "bytes_up", "bytes_down")
    scopes = {"own": metrics(score), "federation": metrics(score, exact_match=score / 2)}
    before = {"own": metrics(0.25), "federation": metrics(0.25)}
    node = {
        **dict.fromkeys(counts[:-2], 2),
        **{"received_from": {}, "rejections": {}, "conflict_pairs": []},
        **scopes,
    }
    slots = [
        {
            **{"slot": slot, "complete": slot <= complete},
            **dict.fromkeys(counts, 4),
            **{"cached": 1, "seconds": {"edit": 1.5, "reedit": 0.5, "evaluate": None}},
            **{"failed_nodes": [], "nodes": {"a": node, "b": node}},
        }
        for slot in (1, 2)
    ]
    results = {
        **{"schema": 2, "status": status, "strategy": run.values["strategy"], "editor": run.editor},
        **{"model": {"name": "tiny", "fingerprint": "f"}, "config": run.values, "connected": 2},
        "nodes": {"a": {**scopes, "before": before}},
        "summary": {**scopes, "before": before, **more},
        **{"slots": slots, "failed_nodes": list(failures)},
        "seconds": {"total": 20.0, "hello": 1, "before": 1, "slots": 4},
    }
    folder = run.values["output-dir"]
    json_file = f"{folder}/results.json"
    with open(json_file, "w") as stream:
        json.dump(results, stream)


@pytest.fixture
def plan(tmp_path):
    """Two seeds; the second scores a tenth less."""

    def plan(seeds="1,2", axis=None, strategies=ALL, **values):
        axis = parse_axis(axis) if axis else None
        values = {"num-slots": 2, **values}
        made = make_plan(tmp_path / "all", values, None, strategies, "memit", seeds, axis)
        for run in made.runs:
            (tmp_path / "all" / run.name).mkdir(parents=True)
            score = SCORES[run.strategy] - 0.1 * (run.seed - 1) - 0.01 * float(run.value or 0)
            write_results(run, score, neutral=NEUTRAL)
        return made

    return plan


def row_of(comparison, strategy, value=None):
    (row,) = [row for row in comparison.rows if row.strategy == strategy and row.value == value]
    return row


def test_mean_and_spread_over_seeds(plan):
    comparison = summarise(plan(), {})
    row = row_of(comparison, "fedit[selection=majority]")
    assert (row.runs, row.completed, row.failed) == (2, 2, [])
    score = row.figure("score")
    assert score.mean == pytest.approx(0.75) and score.n == 2
    assert score.sd == pytest.approx(math.sqrt(2 * 0.05**2)), "the sample standard deviation"
    assert row.retention.mean == pytest.approx((0.8 / 1.0 + 0.7 / 0.9) / 2)
    assert row.ratio_to_fedavg.mean == pytest.approx((0.8 / 0.4 + 0.7 / 0.3) / 2)
    assert row.figure("own.score").mean == pytest.approx(0.75)
    assert row.figure("exact_match").mean == pytest.approx(0.375)
    assert row.figure("neutral.kl") == Spread(mean=0.125, sd=0.0, n=2)
    assert row.figure("own.exact_match") is None and row.figure("none.kl") is None
    assert row.costs["optimised"].mean == 8 and row.costs["edit_seconds"].mean == 3
    unedited = row_of(comparison, "unedited")
    assert unedited.figure("score") == Spread(mean=0.25, sd=0.0, n=2)
    assert unedited.retention.n == 0


def test_a_run_is_compared_at_its_own_value_of_the_axis(plan):
    comparison = summarise(plan("1", "overlap=0,1", "local,central"), {})
    retained = [row_of(comparison, "local", value).retention.mean for value in (0, 1)]
    assert retained == [pytest.approx(0.5), pytest.approx(0.49 / 0.99)]
    assert all(row.ratio_to_fedavg.n == 0 for row in comparison.rows)
    assert comparison.axis == Axis(key="overlap", values=[0, 1])


def test_one_seed_has_no_spread():
    assert Spread.of([0.5]) == Spread(mean=0.5, sd=None, n=1)
    assert Spread.of([None, 0.5, 0.7]).n == 2
    assert Spread.of([]) == Spread(mean=None, sd=None, n=0)


def test_what_is_missing_is_said(plan):
    made = plan()
    first = made.runs[0]
    write_results(first, 0.8, complete=1, status="failed")
    comparison = summarise(made, {first.name: "on | fire\x1b[31m"})
    row = row_of(comparison, first.strategy)
    assert (row.completed, row.failed) == (1, [first.name])
    assert "1 of 2, 1 failed" in methods_table(comparison).text()
    assert [run.name for run in comparison.failed] == [first.name]
    page = render_comparison(comparison, comparison_plots(comparison))
    assert "7 of 8 runs" in page and "on | fire [31m" in page


def test_facts_that_share_a_subject_are_a_scope_of_their_own(plan):
    made = plan()
    shared = {"count": 4, "hold": 3, "efficacy": 1.0}
    write_results(made.runs[0], 0.8, own=metrics(0.8, shared_subject=shared))
    comparison = summarise(made, {})
    row = row_of(comparison, made.runs[0].strategy)
    assert row.figure("own.shared_subject.accuracy") == Spread(mean=0.75, sd=None, n=1)
    assert "0.750" in methods_table(comparison, ["own.shared_subject.accuracy"]).text()
    line = f"{made.runs[0].name},{made.runs[0].strategy},memit,1,,own.shared_subject,accuracy,0.75"
    assert line in figures_csv(comparison).splitlines()


def test_who_answers_more_is_said_though_it_is_not_tested(plan):
    comparison = summarise(plan(), {})
    text = ahead_text(comparison, Evidence("fedavg, memit", {}, []))
    assert text.splitlines()[-2:] == [
        "In the models' own answers, without a test:",
        "- exact match: central, memit +0.300; fedit[selection=majority], memit +0.200; "
        "local, memit +0.050",
    ]
    best = ahead_text(comparison, Evidence("central, memit", {}, []))
    assert best.endswith("- exact match: none")


def test_nodes_that_are_missing_from_the_figures_are_counted(plan):
    made = plan()
    failures = [{"node": node, "slot": 2, "stage": "evaluate", "reason": "slow"} for node in "aab"]
    write_results(made.runs[0], 0.8, failures=failures)
    comparison = summarise(made, {})
    assert row_of(comparison, made.runs[0].strategy).failed_nodes == 2
    assert methods_table(comparison).text().count("2, 2 nodes failed") == 1


@pytest.mark.parametrize(
    ("complete", "strategy", "expected"),
    [
        (2, "fedavg", Todo.DONE),
        (1, "local", Todo.RESUME),
        (1, "central", Todo.RESUME),
        (1, "fedavg", Todo.RESTART),
        (0, "local", Todo.RESTART),
    ],
)
def test_what_is_left_of_a_run(plan, complete, strategy, expected):
    (run,) = [run for run in plan("1").runs if run.strategy == strategy]
    write_results(run, 0.5, complete, status="running")
    assert what_is_left(run) is expected


def test_what_is_left_of_a_run_without_results(plan, tmp_path):
    run = plan("1").runs[0]
    folder = tmp_path / "all" / run.name
    (folder / "results.json").rename(folder / "config.toml")
    assert what_is_left(run) is Todo.RESTART
    (folder / "config.toml").unlink()
    assert what_is_left(run) is Todo.START


@pytest.mark.integration
@pytest.mark.slow
def test_what_flower_refuses_is_a_failure_like_others(plan, tiny_folder, tmp_path):
    made = plan("1", strategies="local,central", model=str(tiny_folder), layers="1-2")
    for run in made.runs:
        (tmp_path / "all" / run.name / "results.json").unlink()

    def simulate(values, nodes, on_line):
        assert nodes == 4
        if values["strategy"] == "central":
            return "finished:stopped"
        raise FedEditError("Flower's SuperLink did not start")

    failures = execute(prepare(made), simulate)
    assert failures == {
        "local_memit_seed-1": "Flower's SuperLink did not start",
        "central_memit_seed-1": "finished:stopped (log: logs/central_memit_seed-1.log)",
    }


def ended(values, nodes, on_line):
    """Stands for a run."""
    if values["strategy"] == "local":
        raise FedEditError("no such federation")
    return "finished:completed"


def test_runs_side_by_side_share_values_by_what_decides_them(plan, tmp_path, monkeypatch):
    asked = []

    def one_by_one(tasks, work, jobs, shares, known):
        asked.append((jobs, [shares(task) for task in tasks], known))
        work, tasks = pickle.loads(pickle.dumps((work, tasks)))
        return [(task, work(task)) for task in tasks]

    monkeypatch.setattr(runner, "side_by_side", one_by_one)
    editors = "memit,alphaedit,pmet,memit[clamp=1]"
    made = make_plan(tmp_path / "more", {}, None, "fedit,local", editors, "1,2", baselines="lora")
    runs = [run for run in made.runs if not run.is_baseline]
    steps = [Step(run, Todo.START, 4) for run in runs]
    done = Step(runs[-1], Todo.DONE, 4)
    failures = execute([*steps[:-1], done], ended, jobs=2)
    assert len(failures) == 7 and set(failures.values()) == {"no such federation"}
    ((jobs, found, known),) = asked
    of = dict(zip([(r.strategy, r.editor, r.seed) for r in runs], found, strict=False))
    assert jobs == 2 and known == {of["fedit", "memit[clamp=1]", 2]}
    assert of["fedit", "memit", 1] == of["local", "memit", 1] == of["fedit", "alphaedit", 1]
    assert len(set(found)) == 6, "three kinds of values for each of two seeds"
    baselines = [Step(run, Todo.START, 4) for run in made.runs if run.is_baseline]
    assert len({runner._whose_values(step) for step in baselines}) == len(baselines) == 2


SURVIVED = "Traceback (most recent call last):\nValueError: a node stumbled\nINFO : slot 2"
CRASHED = """\
ERROR :     Traceback (most recent call last):
    raise Exception(
Exception: The current node timed out during startup. The GCS may be overloaded.

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
    raise RuntimeError("Simulation Runtime crashed.") from ex
RuntimeError: Simulation Runtime crashed.
"""
ENDED = f"""{CRASHED}
The above exception was the direct cause of the following exception:

Traceback (most recent call last):
RuntimeError: An error was encountered. Ending simulation.
ERROR :     Exit Code: 700"""
TWICE = """\
Traceback (most recent call last):
fedit_app.support.errors.FedEditError: slot 1: no node answered

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
OSError: [Errno 28] No space left on device"""


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (ENDED, "The current node timed out during startup. The GCS may be overloaded."),
        (f"{SURVIVED}\n{CRASHED}\n{ENDED}", "The current node timed out during startup. "),
        (f"{SURVIVED}\n{TWICE}", "slot 1: no node answered"),
        ("RuntimeError: Simulation Runtime crashed.", "finished:failed"),
    ],
    ids=["a chain", "after what was survived", "while another was handled", "nothing is said"],
)
def test_the_reason_of_a_failed_run_is_what_went_wrong_first(
    plan, tiny_folder, tmp_path, log, reason
):
    made = plan("1", strategies="local", model=str(tiny_folder), layers="1-2")
    (tmp_path / "all" / made.runs[0].name / "results.json").unlink()

    def simulate(values, nodes, on_line):
        for line in log.splitlines():
            on_line(line)
        return "finished:failed"

    (told,) = execute(prepare(made), simulate).values()
    assert told.startswith(reason) and told.endswith("(log: logs/local_memit_seed-1.log)")


def test_the_tables(plan):
    comparison = summarise(plan(), {})
    table = methods_table(comparison, ("score", "neutral.kl"))
    rows = table.texts
    assert table.columns == [
        *("Strategy", "Editor", "n", "Score", "Neutral kl", "Of central", "x FedAvg"),
        "v* computed",
    ]
    assert rows[1] == [
        *("fedit[selection=majority]", "memit", "2", "0.750 ± 0.071", "0.125 ± 0.000"),
        *("0.789 ± 0.016", "2.17 ± 0.24", "6"),
    ]
    assert rows[0][:4] == ["unedited", "", "2", "0.250 ± 0.000"] and rows[0][-1] == "–"
    lines = methods_table(comparison).markdown().splitlines()
    assert lines[1].startswith("| --- | --- | ---: |")
    assert lines[3].startswith(r"| fedit\[selection=majority\] | memit | 2 | 0.750 ± 0.071 |")
    latex = methods_table(comparison, ("score",)).latex()
    assert latex.startswith("\\begin{tabular}{llrrrrr}\n\\toprule\n")
    assert r"fedit[selection=majority] & memit & 2 & 0.750 $\pm$ 0.071 &" in latex
    assert r"unedited &  & 2 & 0.250 $\pm$ 0.000 & -- & -- & -- \\" in latex
    figures = figures_csv(comparison).splitlines()
    assert figures[0] == "run,strategy,editor,seed,value,scope,metric,figure"
    place = "local_memit_seed-2,local,memit,2,"
    for line in ("federation,score,0.4", "neutral,kl,0.125", "costs,cached,2", "before own,score"):
        assert any(figure.startswith(f"{place},{line}") for figure in figures), line


def test_signs_that_latex_and_markdown_obey(plan):
    comparison = summarise(plan("1", strategies="local,central"), {})
    comparison.rows[1].strategy = r"50%_a|b&\x"
    assert r"50\%\_a|b\&\textbackslash{}x &" in methods_table(comparison).latex()
    assert r"| 50%\_a\|b&\\x |" in methods_table(comparison).markdown()


def test_the_plots(plan):
    comparison = summarise(plan(), {})
    for plot in (method_plot, slots_plot):
        drawn = plot(comparison)
        assert drawn == plot(comparison), "the same comparison gives the same bytes"
        ElementTree.fromstring(drawn)
        assert all(name in drawn for name in SCORES)
        assert "#08" not in drawn, "every colour follows the page"
    assert "0.75 ± 0.071" in method_plot(comparison)
    assert axis_plot(comparison) == ""


@pytest.mark.parametrize("axis", ["overlap=0,0.5,1", "layers=1-2,2-3"])
def test_the_plot_of_an_axis(plan, axis, monkeypatch):
    made = plan("1,2", axis.replace("layers=1-2,2-3", "nodes=2,4"), "local,central")
    comparison = summarise(made, {})
    if axis.startswith("layers"):
        comparison.axis = Axis(key="layers", values=["1-2", "2-3"])
        for record in (*comparison.rows, *comparison.runs):
            record.value = {2: "1-2", 4: "2-3"}[record.value]
    drawn = axis_plot(comparison)
    for value in comparison.axis.values:
        assert f">{value}<" in drawn
    page = render_comparison(comparison, comparison_plots(comparison))
    assert f"Score over {comparison.axis.key}" in page and page.count("<svg") == 3


def test_nothing_is_there_yet(plan, tmp_path):
    made = plan("1")
    for run in made.runs:
        (tmp_path / "all" / run.name / "results.json").unlink()
    comparison = summarise(made, {})
    assert {run.status for run in comparison.runs} == {"missing"}
    assert method_plot(comparison) == slots_plot(comparison) == ""
    assert "0 of 4 runs" in render_comparison(comparison, comparison_plots(comparison))
    assert "0 of 1" in methods_table(comparison).text()
