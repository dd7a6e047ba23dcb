"""Averages over requests, as `results.json` holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # reporting averages metrics too, and needs no torch for it
    from fedit_app.evaluation.scores import RequestScore

Metrics = dict[str, float | int | str | None]

Metric = Literal["likelihood", "tokens", "mixed"]
"""How shares are counted: targets compared by likelihood (CounterFact), correct tokens (zsRE)."""


SCORE_PARTS = ("efficacy", "paraphrase", "neighborhood")
"""The score is their harmonic mean."""

MEASURES = (
    *SCORE_PARTS,
    *("accuracy", "paraphrase_accuracy", "neighborhood_accuracy"),
    *("magnitude", "paraphrase_magnitude", "neighborhood_magnitude"),
)
"""What is averaged over requests, see `RequestScore`."""

_PROBABILITIES = tuple(name for name in MEASURES if name.endswith("magnitude"))
# Beyond them, a probability depends on what else was in its batch.
_DIGITS = 4

WRITTEN = ("exact_match", "generation_entropy")
"""What is read off text that the model writes itself, see `evaluation.generation`."""


def aggregate(
    scores: Sequence[RequestScore], written: Mapping[str, float | None] | None = None
) -> Metrics | None:
    """Mean over requests; the score is the harmonic mean of efficacy, paraphrase, neighborhood.

    Args:
        scores: one per request.
        written: value of each of `WRITTEN`; None if nothing was written.

    Returns:
        Each of `MEASURES` and `WRITTEN` (None where nothing was asked; magnitudes with four
        decimals), score, count, and metric, see `RequestScore`; None without any request.
    """
    if not scores:
        return None
    means = {name: _mean([getattr(score, name) for score in scores]) for name in MEASURES}
    for name in _PROBABILITIES:
        means[name] = None if means[name] is None else round(means[name], _DIGITS)
    parts = [means[name] for name in SCORE_PARTS if means[name] is not None]
    return {
        **means,
        **(written or dict.fromkeys(WRITTEN)),
        "score": harmonic_mean(parts),
        "count": len(scores),
        "metric": common_metric(score.metric for score in scores),
    }


def common_metric(metrics: Iterable[Metric]) -> Metric:
    """The metric that all shares have in common, "mixed" if they have none."""
    found = set(metrics)
    return found.pop() if len(found) == 1 else "mixed"


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of shares; 0 as soon as one of them is 0."""
    if min(values) == 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
