"""Averages over nodes of the metric records that results.json holds."""

from collections.abc import Iterable
from typing import Any

from fedit_app.evaluation.metrics import SCORE_PARTS, common_metric, harmonic_mean

Metrics = dict[str, Any]

SHARES = (*SCORE_PARTS, "score", "accuracy")
FURTHER = {
    "exact_match": "Exact match",
    "generation_entropy": "Entropy, bits",
    "magnitude": "Magnitude",
    "paraphrase_magnitude": "Magnitude, paraphrase",
    "neighborhood_magnitude": "Magnitude, neighborhood",
    "paraphrase_accuracy": "Accuracy, paraphrase",
    "neighborhood_accuracy": "Accuracy, neighborhood",
}
"""What tables call the figures beside the shares."""

_LIKELIHOOD = (
    "Efficacy and paraphrase: prompts after which the new target is likelier than the true one. "
    "Neighborhood: prompts about other subjects after which the true target still is the likelier."
)
_TOKENS = (
    "Efficacy, paraphrase and neighborhood: tokens of the wanted answer that are the model's first "
    "choice, given the ones before."
)
METRICS = {
    "likelihood": _LIKELIHOOD,
    "tokens": _TOKENS,
    "mixed": f"Where a true target is known: {_LIKELIHOOD} Elsewhere: {_TOKENS}",
}
"""What the shares mean, in plain words, by how they are counted."""


def value_of(metrics: Metrics | None, name: str) -> float | None:
    """One figure of a metric record, None where the record or the figure was not measured."""
    return None if metrics is None else metrics.get(name)


def metric_of(metrics: Metrics | None) -> str:
    """How a record's shares are counted; records of older runs are CounterFact's."""
    return "likelihood" if metrics is None else metrics.get("metric", "likelihood")


def mean_metrics(records: Iterable[Metrics | None]) -> Metrics | None:
    """Average the metric records of several nodes over their edit requests.

    Every figure is the mean of the nodes' figures, weighted by the nodes' numbers of requests; a
    node where a figure is null takes no part in it. The score is not averaged: as in the
    CounterFact evaluation (Meng et al., arXiv 2210.07229) it is the harmonic mean of the averaged
    efficacy, paraphrase and neighborhood shares, of those among them that were measured.

    Args:
        records: One record a node, None for a node that was not evaluated.

    Returns:
        A record of the same form whose count is the sum of the counts and whose metric is theirs,
        or None when no record was given.
    """
    measured = [record for record in records if record is not None]
    if not measured:
        return None
    mean: Metrics = {name: _weighted_mean(measured, name) for name in (*SHARES, *FURTHER)}
    if mean["score"] is not None:
        parts = [mean[name] for name in SCORE_PARTS if mean[name] is not None]
        if parts:
            mean["score"] = harmonic_mean(parts)
    mean["count"] = sum(record["count"] for record in measured)
    mean["metric"] = common_metric(map(metric_of, measured))
    return mean


def mean_neutral(records: Iterable[Metrics | None]) -> Metrics | None:
    """Average what several nodes' edits do to neutral text, each model counting once.

    Args:
        records: One record a node, None for a node where it was not measured.

    Returns:
        A record of the same form, with the mean number of tokens; None when no record was given.
    """
    measured = [record for record in records if record is not None]
    if not measured:
        return None
    return {name: sum(r[name] for r in measured) / len(measured) for name in measured[0]}


def _weighted_mean(records: list[Metrics], name: str) -> float | None:
    pairs = [(record[name], record["count"]) for record in records if record.get(name) is not None]
    weight = sum(count for _, count in pairs)
    return sum(share * count for share, count in pairs) / weight if weight else None
