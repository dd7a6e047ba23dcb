"""Scores that were asked for before, so that nobody asks the model the same twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fedit_app.editing.requests import EditRequest
from fedit_app.evaluation.scores import RequestScore, score_requests
from fedit_app.models.editable import EditableModel


class ScoreMemory:
    """Remembers the scores on the latest state of the weights, and on one that is kept.

    The nodes of a simulation share a process. The unedited model is the same for all of them, and
    so is a global model, or a ledger with the same MKVs.

    Args:
        keep: name of the state whose scores are never forgotten.
    """

    def __init__(self, keep: str) -> None:
        self._keep = keep
        self._known: dict[tuple[str, str], dict[EditRequest, RequestScore]] = {}

    def score(
        self, model: EditableModel, state: str, requests: Sequence[EditRequest]
    ) -> dict[EditRequest, RequestScore]:
        """Scores of requests on the model as it is.

        Args:
            model: the model, edited as `state` says.
            state: names the weights: equal names, equal weights.
            requests: what to score; requests that differ in id and slot only are the same.
        """
        now = (model.fingerprint + str(model.model.dtype), state)
        for other in [key for key in self._known if key != now and key[1] != self._keep]:
            del self._known[other]
        known = self._known.setdefault(now, {})
        plain = {request: dataclasses.replace(request, id="-", slot=None) for request in requests}
        missing = [request for request in dict.fromkeys(plain.values()) if request not in known]
        known.update(zip(missing, score_requests(model, missing), strict=True))
        return {request: known[same] for request, same in plain.items()}
