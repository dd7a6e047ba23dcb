"""Metrics of one request, and their means over requests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedit_app.protocol.metrics import Metric, Metrics, SharedSubject, common_metric, score_of

# Further digits of a probability depend on the other rows of its batch.
_DIGITS = 4


@dataclass(frozen=True)
class RequestScore:
    """The metrics of one request; shares from 0 to 1.

    With a true target, the metrics are CounterFact's (Meng et al. 2022), which compare two targets;
    without one, zsRE's (Mitchell et al. 2022), which count correct tokens. Neighborhood prompts
    with their own targets are always scored as in zsRE.

    Attributes:
        efficacy: 1 if the new target is more likely than the true one after the prompt; without a
            true target, the share of its tokens that are correct.
        paraphrase: mean of the same over the paraphrase prompts; None without any.
        neighborhood: share of neighborhood prompts after which the true target is more likely; with
            their own targets, mean share of their tokens that are correct; None without prompts or
            without targets.
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
        other_relations: share of the subject prompts after which the most likely next token is that
            of the unedited model; None without any.
        subject_fidelity: share of the prompts that ask to repeat the subject, of those to which the
            unedited model gives it whole, to which the model still does, see
            `evaluation.scores.still_given`; None if the unedited model gives it to none.
        portability: mean share of the tokens of the portability targets that are correct; None
            without such prompts.
        reversal: 1 if the subject is more likely after the reversed prompt with the new target than
            with the true one; without a true target, the share of its tokens that are correct; None
            without a reversed prompt.
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
    other_relations: float | None = None
    subject_fidelity: float | None = None
    portability: float | None = None
    reversal: float | None = None


MEASURES = tuple(field.name for field in dataclasses.fields(RequestScore) if field.name != "metric")
"""The metrics that are averaged over requests."""


def aggregate(
    scores: Sequence[RequestScore],
    written: Mapping[str, float | None] | None = None,
    shared: Sequence[RequestScore] = (),
    drawn_from: int = 0,
) -> Metrics | None:
    """Means over requests; the score is the harmonic mean of efficacy, paraphrase, neighborhood.

    Args:
        scores: one per request.
        written: figures of text that the model generates, by their names in `Metrics`, see
            `evaluation.generation`; None if none was generated.
        shared: those of the requests that share a subject with another one.
        drawn_from: number of requests of which these are a sample, if it is larger than theirs.

    Returns:
        The means; None without requests.
    """
    if not scores:
        return None
    means = {name: _finite_mean([getattr(score, name) for score in scores]) for name in MEASURES}
    for name, value in means.items():
        if name.endswith("magnitude") and value is not None:
            means[name] = round(value, _DIGITS)
    return Metrics(
        **means,
        **(written or {}),
        score=score_of(means),
        count=len(scores),
        metric=common_metric(score.metric for score in scores),
        shared_subject=_shared_subject(shared),
        drawn_from=drawn_from if drawn_from > len(scores) else None,
    )


def _shared_subject(scores: Sequence[RequestScore]) -> SharedSubject | None:
    if not scores:
        return None
    return SharedSubject(
        count=len(scores),
        hold=sum(score.accuracy == 1 for score in scores),
        efficacy=_finite_mean([score.efficacy for score in scores]),
    )


def mean(values: Sequence[float]) -> float | None:
    """The mean; None without values."""
    return sum(values) / len(values) if values else None


def _finite_mean(values: Sequence[float | None]) -> float | None:
    """The mean of the known values; None if it is not finite."""
    found = mean([value for value in values if value is not None])
    return found if found is not None and math.isfinite(found) else None
