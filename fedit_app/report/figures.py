"""What figures are called, and what they mean in plain words."""

import re

from fedit_app.protocol.metrics import SCORE_PARTS, Metric, Metrics

SHARES = (*SCORE_PARTS, "score", "other_relations", "accuracy")
"""The figures that tables have a column for."""
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
METRICS: dict[Metric, str] = {
    "likelihood": _LIKELIHOOD,
    "tokens": _TOKENS,
    "mixed": f"Where a true target is known: {_LIKELIHOOD} Elsewhere: {_TOKENS}",
}
"""What the shares mean, by how they are counted."""


def words(figure: str) -> str:
    """What tables call a figure: "other_relations" -> "other relations"."""
    return re.sub(r"[._]", " ", figure)


def value_of(metrics: Metrics | None, figure: str) -> float | None:
    """One figure of metrics; None where the metrics or the figure were not measured."""
    return None if metrics is None else metrics.value(figure)


def metric_of(metrics: Metrics | None) -> Metric:
    """How shares are counted; where nothing was measured, as for most data."""
    return "likelihood" if metrics is None else metrics.metric
