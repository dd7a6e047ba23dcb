"""What a node measures on its model, edited or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fedit_app.evaluation.generation import WRITTEN
from fedit_app.evaluation.memory import AnswerMemory, ScoreMemory, write_scores
from fedit_app.evaluation.metrics import RequestScore, aggregate
from fedit_app.evaluation.neutral import neutral_scores, own_text
from fedit_app.facts.federation_facts import drawn, that_share_a_subject
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.protocol.metrics import Metrics, Neutral

_memory, _answers = ScoreMemory(), AnswerMemory()


def measure(
    model: EditableModel,
    deltas: dict[int, Tensor],
    scopes: Mapping[str, list[EditRequest]],
    known: Sequence[EditRequest],
    metrics: str,
    folder: Path | None,
    by_fact: Path | None = None,
    most: int = 0,
) -> dict[str, Metrics | None]:
    """Metrics of the edited model by scope.

    Args:
        model: the model, unedited.
        deltas: edit by these: layer -> (d_model, d_ff).
        scopes: name -> requests.
        known: the facts of the run that the node knows, among which some share a subject.
        metrics: the run config's, see `generation.WRITTEN`.
        folder: where scores and answers are kept for other processes; None: nowhere.
        by_fact: file for the scores of each fact of the last scope, see `write_scores`; None: none.
        most: how many facts of a scope are asked, see `drawn`; 0: all.
    """
    sizes = {scope: len(requests) for scope, requests in scopes.items()}
    scopes = {scope: drawn(requests, most) for scope, requests in scopes.items()}
    with model.edited(deltas):
        everything = [request for requests in scopes.values() for request in requests]
        scores = _memory.score(model, everything, folder)
        write = WRITTEN.get(metrics)
        written = write(model, scopes, ask=_answers.ask(folder)) if write else {}

    if by_fact is not None:
        *_, last = scopes.values()
        write_scores(by_fact, {request: scores[request] for request in last})

    def scores_of(requests: Sequence[EditRequest]) -> list[RequestScore]:
        return [scores[request] for request in requests]

    return {
        scope: aggregate(
            scores_of(requests),
            written.get(scope),
            scores_of(that_share_a_subject(requests, known)),
            sizes[scope],
        )
        for scope, requests in scopes.items()
    }


def measure_neutral(model: EditableModel, deltas: dict[int, Tensor]) -> Neutral:
    """What edits change in text that no request is about, see `neutral_scores`."""
    return neutral_scores(model, deltas, own_text(model))
