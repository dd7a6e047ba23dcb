"""Averages over nodes."""

import numpy as np
import pytest

from fedit_app.protocol.metrics import Metrics, Neutral, SharedSubject, mean_metrics, mean_neutral


def record(efficacy, paraphrase, neighborhood, score, count, **more):
    return Metrics(
        efficacy=efficacy,
        paraphrase=paraphrase,
        neighborhood=neighborhood,
        score=score,
        accuracy=efficacy,
        count=count,
        **more,
    )


def test_shares_are_weighted_by_requests_and_score_is_their_harmonic_mean():
    mean = mean_metrics([record(1.0, 0.5, 0.8, 0.7, 30), None, record(0.2, 0.5, 0.4, 0.3, 10)])
    assert mean.efficacy == pytest.approx(0.8)
    assert mean.neighborhood == pytest.approx(0.7)
    assert mean.score == pytest.approx(3 / (1 / 0.8 + 1 / 0.5 + 1 / 0.7))
    assert mean.count == 40


def test_null_shares_take_no_part():
    mean = mean_metrics([record(0.5, None, 0.5, 0.5, 10), record(0.5, 0.9, 0.5, 0.6, 5)])
    assert mean.paraphrase == pytest.approx(0.9)
    unmeasured = mean_metrics([record(None, None, None, None, 4)])
    assert unmeasured.score is None and unmeasured.count == 4
    without = mean_metrics([record(0.5, None, 0.5, 0.5, 10)])
    assert without.paraphrase is None and without.score == pytest.approx(0.5)


def test_the_metric_is_kept_unless_nodes_differ():
    tokens = record(0.5, 0.5, 0.5, 0.5, 10, metric="tokens")
    assert mean_metrics([tokens, None, tokens]).metric == "tokens"
    assert mean_metrics([tokens, record(0.5, 0.5, 0.5, 0.5, 10)]).metric == "mixed"


def test_edges():
    assert mean_metrics([]) is None
    assert mean_metrics([None]) is None
    assert mean_metrics([record(0.0, 1.0, 1.0, 0.0, 2)]).score == 0.0
    assert mean_metrics([record(0.4, 0.4, 0.4, 0.4, 0)]).efficacy is None


def test_further_figures_are_averaged_over_requests_and_neutral_text_over_nodes():
    one = record(1.0, 1.0, 1.0, 1.0, 30, exact_match=0.5, magnitude=0.2)
    other = record(1.0, 1.0, 1.0, 1.0, 10, exact_match=0.9)
    mean = mean_metrics([one, other])
    assert mean.exact_match == pytest.approx(0.6)
    assert mean.magnitude == pytest.approx(0.2)
    assert mean.generation_entropy is None
    shares = {"perplexity_before": 2.0, "perplexity_after": 3.0, "top10_overlap": 0.5}
    neutral = [Neutral(kl=kl, tokens=tokens, **shares) for kl, tokens in ((0.1, 8), (0.3, 9))]
    mean = mean_neutral([neutral[0], None, neutral[1]])
    assert (mean.kl, mean.tokens) == (pytest.approx(0.2), 8.5)
    assert mean_neutral([None]) is None


def test_facts_that_share_a_subject_are_weighted_by_their_own_number():
    few, many = (
        SharedSubject(count=count, hold=hold, efficacy=efficacy)
        for count, hold, efficacy in ((1, 0, 0.0), (3, 3, 1.0))
    )
    mean = mean_metrics(
        [
            record(1.0, 1.0, 1.0, 1.0, 30, shared_subject=few),
            record(1.0, 1.0, 1.0, 1.0, 10, shared_subject=many),
            record(1.0, 1.0, 1.0, 1.0, 10),
        ]
    )
    assert mean.shared_subject == SharedSubject(count=4, hold=3, efficacy=0.75)


def test_a_sample_stands_for_all_that_it_was_drawn_from():
    sample, whole = record(1.0, 1.0, 1.0, 1.0, 10, drawn_from=90), record(0.0, 1.0, 1.0, 0.0, 10)
    mean = mean_metrics([sample, whole])
    assert mean.efficacy == pytest.approx(0.9)
    assert (mean.count, mean.drawn_from) == (20, 100)
    assert mean_metrics([whole]).drawn_from is None


def test_the_interval_of_a_sample_holds_what_it_promises():
    """Shares of samples of 50 of 200 facts, 100 of which hold."""
    random = np.random.default_rng(0)
    facts = np.repeat([0, 1], 100)
    off = [abs(random.choice(facts, 50, replace=False).mean() - 0.5) for _ in range(4000)]
    drawn = record(0.5, 0.5, 0.5, 0.5, 50, drawn_from=200)
    assert 0.94 < np.mean(np.array(off) <= drawn.uncertainty) < 0.98
    assert record(0.5, 0.5, 0.5, 0.5, 50).uncertainty == 0
