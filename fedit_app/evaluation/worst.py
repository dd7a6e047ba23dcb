"""Which facts a model says worst, and what it says in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedit_app.evaluation.scores import score_targets
from fedit_app.facts.request import EditRequest
from fedit_app.models.answers import answer
from fedit_app.models.editable import EditableModel


@dataclass(frozen=True)
class WorstFact:
    """A fact, and what the model says now.

    Attributes:
        fact: the fact.
        correct: share of the target's tokens that are the argmax, given the ones before.
        probability: geometric mean of the probabilities of the target's tokens.
        says: the greedy continuation of its prompt.
    """

    fact: EditRequest
    correct: float
    probability: float
    says: str


def worst_facts(model: EditableModel, facts: Sequence[EditRequest], most: int) -> list[WorstFact]:
    """The facts with the least of their target said, the worst first.

    Args:
        model: the model, edited.
        facts: the facts.
        most: how many are wanted.
    """
    scores = score_targets(model, [fact.asked_new for fact in facts])
    ranked = sorted(
        zip(facts, scores, strict=True), key=lambda pair: (pair[1].correct, -pair[1].nll)
    )
    return [
        WorstFact(fact, score.correct, score.probability, answer(model, fact.text).text)
        for fact, score in ranked[:most]
    ]
