"""Averages over requests."""

import pytest

from fedit_app.evaluation.metrics import RequestScore, aggregate
from fedit_app.protocol.metrics import Metrics, SharedSubject, harmonic_mean


def score(efficacy, paraphrase=None, neighborhood=None, accuracy=0.0, metric="likelihood"):
    return RequestScore(efficacy, paraphrase, neighborhood, accuracy, metric)


def test_means_and_their_harmonic_mean():
    found = aggregate([score(1.0, 0.5, 0.75, 1.0), score(0.0, 1.0, 0.25, 0.0)])
    assert found == Metrics(
        efficacy=0.5,
        paraphrase=0.75,
        neighborhood=0.5,
        accuracy=0.5,
        score=3 / (2 + 4 / 3 + 2),
        count=2,
    )


def test_what_was_not_asked_does_not_count():
    found = aggregate([score(1.0, None, None, 1.0), score(1.0, 0.5, None, 0.0)])
    assert found.paraphrase == 0.5
    assert found.neighborhood is None
    assert found.score == pytest.approx(2 / (1 + 2))
    assert found.count == 2


@pytest.mark.parametrize(
    ("metrics", "common"),
    [(["tokens"] * 2, "tokens"), (["likelihood", "tokens"], "mixed"), (["mixed"], "mixed")],
)
def test_how_shares_were_counted_is_told(metrics, common):
    assert aggregate([score(1.0, metric=metric) for metric in metrics]).metric == common


def test_further_figures_are_averaged_where_they_were_measured():
    first = RequestScore(1.0, 1.0, 1.0, 1.0, "likelihood", 0.5, 1.0, 0.75, 0.25, -0.5)
    found = aggregate([first, score(1.0), first], {"exact_match": 0.5, "generation_entropy": 6.0})
    assert (found.paraphrase_accuracy, found.neighborhood_accuracy) == (0.5, 1.0)
    magnitudes = [found.value(f"{part}magnitude") for part in ("", "paraphrase_", "neighborhood_")]
    assert magnitudes == [0.75, 0.25, -0.5]
    assert (found.exact_match, found.generation_entropy) == (0.5, 6.0)


def test_facts_that_share_a_subject_are_counted_by_whether_they_hold():
    first, second = score(1.0, accuracy=1.0), score(1.0, accuracy=0.0)
    found = aggregate([score(0.0), first, second, second], shared=[first, second, second])
    expected = SharedSubject(count=3, hold=1, efficacy=1.0)
    assert found.shared_subject == expected
    assert expected.accuracy == pytest.approx(1 / 3)
    assert aggregate([first]).shared_subject is None


def test_no_request_has_no_metrics():
    assert aggregate([]) is None


def test_the_harmonic_mean_punishes_a_zero():
    assert harmonic_mean([1.0, 1.0, 0.0]) == 0.0
    assert harmonic_mean([0.5, 0.5]) == 0.5
    assert harmonic_mean([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
