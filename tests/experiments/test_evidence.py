"""What is said of one method beside another rests on the same facts of both."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from fedit_app.evaluation.memory import read_scores, write_scores
from fedit_app.evaluation.metrics import RequestScore
from fedit_app.experiments import evidence
from fedit_app.experiments.plan import make_plan
from fedit_app.facts.request import EditRequest


def score(efficacy, paraphrase=0.5, neighborhood=0.5, accuracy=0.0):
    return RequestScore(efficacy, paraphrase, neighborhood, accuracy, "likelihood")


def fact(number):
    return EditRequest(f"f{number}", f"Subject {number}", "{} is in", "London")


@pytest.fixture
def plan(tmp_path):
    """A plan of two strategies, two seeds and a baseline, whose runs have scores of eight facts."""
    made = make_plan(tmp_path, {}, 2, "fedit,local", "memit", "1,2", baselines="ft-m")
    for run in made.runs:
        learned = {"fedit": 8, "local": 1, "ft-m": 7}[run.strategy]
        for node in ("bank", "museum"):
            scores = {fact(n): score(float(n < learned), 0.25 * (n % 3)) for n in range(8)}
            write_scores(run.folder / "facts" / f"{node}.json", scores)
    return made


def test_scores_are_kept_by_fact_without_a_text(tmp_path):
    file = tmp_path / "scores.json"
    write_scores(file, {fact(1): score(1.0), fact(2): score(float("nan"))})
    assert list(read_scores(file).values()) == [score(1.0)], "one that is not finite is left out"
    assert "Subject" not in file.read_text() and "London" not in file.read_text()


def test_the_test_is_the_exact_one_over_all_exchanges(plan):
    found = evidence.gather(plan)
    (local,) = [f for f in found.findings if (f.method, f.figure) == ("local, memit", "efficacy")]
    assert (local.ours, local.theirs, local.facts) == (1.0, 0.125, 8)
    differences = np.array([0.0] + [-1.0] * 7)
    signs = np.array(list(itertools.product([1, -1], repeat=8)))
    exact = (np.abs((signs * differences).mean(1)) >= 7 / 8 - 1e-9).mean()
    assert local.p == pytest.approx(exact, abs=0.005) and local.p < 0.05
    (same,) = [f for f in found.findings if (f.method, f.figure) == ("local, memit", "paraphrase")]
    assert same.difference == 0 and same.p == 1


def test_the_score_is_the_harmonic_mean_of_the_means(plan):
    found = evidence.gather(plan)
    parts = [found.intervals["fedit, memit"][name] for name in evidence.SCORE_PARTS]
    expected = 3 / sum(1 / part.mean for part in parts)
    span = found.intervals["fedit, memit"]["score"]
    assert span.mean == pytest.approx(expected) and span.low < span.mean < span.high
    assert {p.low for p in parts[2:]} == {p.high for p in parts[2:]} == {0.5}, "all facts alike"


def test_who_is_ahead_is_said_first(plan):
    ahead = {fact(n): score(1.0, 0.75) for n in range(8)}
    for run in plan.runs:
        if run.is_baseline:
            for file in (run.folder / "facts").glob("*.json"):
                write_scores(file, ahead)
    text = evidence.better_text(evidence.gather(plan))
    lines = text.splitlines()
    assert lines[0].startswith("Ahead of fedit, memit")
    assert lines[1].startswith("- score: ft-m +") and "local" not in lines[1]
    assert "- efficacy: none" in lines and lines[-1].startswith(
        "Of 10 comparisons others are ahead"
    )


def test_without_scores_of_the_first_method_nothing_is_said(plan):
    for run in plan.runs:
        if run.strategy == "fedit":
            for file in Path(run.folder / "facts").glob("*.json"):
                file.unlink()
    assert evidence.gather(plan) is None
