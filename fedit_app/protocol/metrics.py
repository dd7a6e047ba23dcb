"""What is measured of a node's model, as messages and `results.json` hold it, and its averages.

The node computes these records (`fedit_app.evaluation`), the server keeps them, reports show them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

Metric = Literal["likelihood", "tokens", "mixed"]
"""How shares are counted: targets compared by likelihood (CounterFact), correct tokens (zsRE)."""

MOST = 2**53
"""The largest count."""
# Sums and means of what is measured have to be finite, too.
_LARGEST = 1e100

Share = Annotated[float, Field(ge=0, le=1)] | None
Finite = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
Difference = Annotated[float, Field(ge=-1, le=1)] | None

SCORE_PARTS = ("efficacy", "paraphrase", "neighborhood")
"""The score is their harmonic mean."""


class _Measured(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class SharedSubject(_Measured):
    """What becomes of facts that begin like another one up to and including the subject.

    Attributes:
        count: number of these facts, at least 1.
        hold: of how many every token of the new target is the argmax after the prompt.
        efficacy: as in `Metrics`, over these facts.
    """

    count: Annotated[int, Field(ge=1, le=MOST)]
    hold: Annotated[int, Field(ge=0)]
    efficacy: Share

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> Self:
        if self.hold > self.count:
            raise ValueError(f"hold should be at most count, {self.count}")
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accuracy(self) -> float:
        """The share of these facts that hold."""
        return self.hold / self.count


class Metrics(_Measured):
    """Averages over the requests of one group, as messages and `results.json` hold them.

    Attributes:
        efficacy, paraphrase, neighborhood, accuracy: means over requests, see
            `evaluation.metrics.RequestScore`; None where nothing was asked.
        paraphrase_accuracy, neighborhood_accuracy: likewise.
        other_relations, subject_fidelity: likewise; None, too, in results of older versions.
        portability, reversal: likewise.
        magnitude, paraphrase_magnitude, neighborhood_magnitude: likewise, with four decimals.
        exact_match: share of requests whose target the model says, see `evaluation.generation`.
        wild_match: share of requests where it says the target and ends there, likewise.
        chat_match: share of requests whose question it answers with the target in a chat, likewise.
        paraphrase_chat_match: the same for questions in other words.
        generation_entropy: how varied the text is that the model writes freely, in bits.
        score: harmonic mean of efficacy, paraphrase and neighborhood, as far as they are known.
        count: number of requests.
        metric: how the shares are counted; results of older versions are of `likelihood`.
        shared_subject: of the requests that share a subject with another one; None without any.
        drawn_from: number of requests of which these are a sample; None: these are all.
    """

    efficacy: Share
    paraphrase: Share
    neighborhood: Share
    accuracy: Share
    paraphrase_accuracy: Share = None
    neighborhood_accuracy: Share = None
    other_relations: Share = None
    subject_fidelity: Share = None
    portability: Share = None
    reversal: Share = None
    magnitude: Difference = None
    paraphrase_magnitude: Difference = None
    neighborhood_magnitude: Difference = None
    exact_match: Share = None
    wild_match: Share = None
    chat_match: Share = None
    paraphrase_chat_match: Share = None
    generation_entropy: Annotated[float, Field(ge=0, le=_LARGEST)] | None = None
    score: Share
    count: Annotated[int, Field(ge=0, le=MOST)]
    metric: Metric = "likelihood"
    shared_subject: SharedSubject | None = None
    drawn_from: Annotated[int, Field(ge=1, le=MOST)] | None = None

    @property
    def all_requests(self) -> int:
        """Number of the requests for which the means stand."""
        return self.drawn_from or self.count

    @property
    def uncertainty(self) -> float:
        """Largest half width of the 95 % interval of a share of all requests; 0 without a sample.

        That of a share of 0.5 by the normal approximation, drawn without putting back.
        """
        n, every = self.count, self.all_requests
        if not 0 < n < every:
            return 0.0
        return 1.96 * math.sqrt(0.25 / n * (every - n) / (every - 1))

    def value(self, figure: str) -> float | None:
        """One of `FIGURES`, by its name."""
        found: float | None = getattr(self, figure)
        return found


_NO_FIGURES = ("count", "metric", "shared_subject", "drawn_from")
FIGURES = tuple(name for name in Metrics.model_fields if name not in _NO_FIGURES)
"""The measured numbers of `Metrics`."""


class Neutral(_Measured):
    """What edits do to ordinary text: the unedited and the edited model on the same tokens.

    Attributes:
        kl: mean over tokens of KL(p_base || p_edited) of the next-token distributions, in nats;
            0 for an edit that leaves the text alone.
        perplexity_before: exp of the mean negative log-likelihood per token, unedited.
        perplexity_after: the same, edited.
        tokens: number of tokens that were predicted; of several nodes, their mean number.
        top10_overlap: mean share of the 10 likeliest next tokens that are among the 10 likeliest
            of the other model, too.
        cloze_before: share of the items of `evaluation.cloze`, general knowledge that no edit is
            about, that the unedited model knows; None in results of older versions.
        cloze_after: the same, edited.
    """

    kl: Finite
    perplexity_before: Finite
    perplexity_after: Finite
    tokens: Annotated[int | float, Field(ge=0, le=MOST)]
    top10_overlap: Annotated[float, Field(ge=0, le=1)]
    cloze_before: Share = None
    cloze_after: Share = None


def mean_metrics(records: Iterable[Metrics | None]) -> Metrics | None:
    """Average the metrics of several nodes over their edit requests.

    Every figure is the mean of the nodes' figures, weighted by the nodes' numbers of requests; a
    node where a figure is None takes no part in it. The score is not averaged: as in the
    CounterFact evaluation (Meng et al., arXiv 2210.07229) it is the harmonic mean of the averaged
    efficacy, paraphrase and neighborhood shares, of those among them that were measured.

    Args:
        records: one per node, None for a node that was not evaluated.

    Returns:
        Metrics whose count is the sum of the counts, or None when no record was given.
    """
    measured = [record for record in records if record is not None]
    if not measured:
        return None
    means = {name: _weighted_mean(measured, name) for name in FIGURES}
    if means["score"] is not None:
        means["score"] = score_of(means)
    return Metrics(
        **means,
        count=_total(record.count for record in measured),
        metric=common_metric(record.metric for record in measured),
        shared_subject=_mean_shared(record.shared_subject for record in measured),
        drawn_from=_total(record.all_requests for record in measured)
        if any(record.drawn_from for record in measured)
        else None,
    )


def mean_neutral(records: Iterable[Neutral | None]) -> Neutral | None:
    """Average what several nodes' edits do to neutral text, each model counting once.

    Args:
        records: one per node, None for a node where it was not measured.

    Returns:
        None when no record was given.
    """
    measured = [record.model_dump() for record in records if record is not None]
    if not measured:
        return None
    means: dict[str, Any] = {}
    for name in Neutral.model_fields:
        known = [record[name] for record in measured if record[name] is not None]
        means[name] = sum(known) / len(known) if known else None
    return Neutral(**means)


def common_metric(metrics: Iterable[Metric]) -> Metric:
    """The metric that all shares have in common, "mixed" if they have none."""
    found = set(metrics)
    return found.pop() if len(found) == 1 else "mixed"


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of shares; 0 as soon as one of them is 0."""
    if min(values) == 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)


def score_of(means: Mapping[str, float | None]) -> float | None:
    """The score that belongs to the values of `SCORE_PARTS`; None if none is known."""
    parts = [value for name in SCORE_PARTS if (value := means[name]) is not None]
    return harmonic_mean(parts) if parts else None


def _total(counts: Iterable[int]) -> int:
    """The sum of counts, at most the largest that may stand in a record."""
    return min(MOST, sum(counts))


def _weighted_mean(records: Sequence[Metrics], figure: str) -> float | None:
    return _weighted((r.value(figure), r.all_requests) for r in records)


def _mean_shared(records: Iterable[SharedSubject | None]) -> SharedSubject | None:
    known = [record for record in records if record is not None]
    if not known:
        return None
    return SharedSubject(
        count=_total(record.count for record in known),
        hold=_total(record.hold for record in known),
        efficacy=_weighted((record.efficacy, record.count) for record in known),
    )


def _weighted(values: Iterable[tuple[float | None, int]]) -> float | None:
    """The mean of (value, weight), as far as values are known."""
    known = [(value, weight) for value, weight in values if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
