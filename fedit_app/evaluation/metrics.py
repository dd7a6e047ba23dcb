"""Figures of one request, and their averages over requests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedit_app.protocol.metrics import Metric, Metrics, common_metric, score_of

WRITTEN = ("exact_match", "generation_entropy")
"""What is read off text that the model writes itself, see `evaluation.generation`."""

# Beyond them, a probability depends on what else was in its batch.
_DIGITS = 4


@dataclass(frozen=True)
class RequestScore:
    """What the metrics say of one request; shares in 0 .. 1.

    With a true target, CounterFact's (Meng et al. 2022), which compare two targets; with no target
    to compare with, zsRE's (Mitchell et al. 2022), which count correct tokens. Neighborhood prompts
    with targets of their own are always scored as zsRE's.

    Attributes:
        efficacy: 1 if the new target is likelier than the true one after the prompt; without a true
            target, the share of its tokens that are correct.
        paraphrase: mean of the same over the paraphrase prompts; None without any.
        neighborhood: share of neighborhood prompts after which the true target is likelier; with
            targets of their own, mean share of their tokens that are correct; None without any, or
            without such a target.
        accuracy: 1 if every token of the new target is the argmax after the prompt.
        metric: "likelihood" (two targets are compared), "tokens" (correct tokens), or "mixed".
        paraphrase_accuracy: the same as accuracy, over the paraphrase prompts.
        neighborhood_accuracy: share of neighborhood prompts after which every token of the true
            target, or of the prompt's own, is the argmax.
        magnitude: P(new) - P(true) after the prompt, P the geometric mean over the target's tokens;
            None without a true target.
        paraphrase_magnitude: mean of the same over the paraphrase prompts.
        neighborhood_magnitude: mean of P(true) - P(new) over the neighborhood prompts; None too if
            these have targets of their own.
    """

    efficacy: float
    paraphrase: float | None
    neighborhood: float | None
    accuracy: float
    metric: Metric
    paraphrase_accuracy: float | None = None
    neighborhood_accuracy: float | None = None
    magnitude: float | None = None
    paraphrase_magnitude: float | None = None
    neighborhood_magnitude: float | None = None


MEASURES = tuple(field.name for field in dataclasses.fields(RequestScore) if field.name != "metric")
"""What is averaged over requests."""


def aggregate(
    scores: Sequence[RequestScore], written: Mapping[str, float | None] | None = None
) -> Metrics | None:
    """Mean over requests; the score is the harmonic mean of efficacy, paraphrase, neighborhood.

    Args:
        scores: one per request.
        written: value of each of `WRITTEN`; None if nothing was written.

    Returns:
        None without any request.
    """
    if not scores:
        return None
    means = {name: _mean([getattr(score, name) for score in scores]) for name in MEASURES}
    for name, value in means.items():
        if name.endswith("magnitude") and value is not None:
            means[name] = round(value, _DIGITS)
    return Metrics(
        **means,
        **(written or {}),
        score=score_of(means),
        count=len(scores),
        metric=common_metric(score.metric for score in scores),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are known; None where it is not a finite number."""
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else math.nan
    return mean if math.isfinite(mean) else None
