"""A cache of scores, so that the same score is not computed twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fedit_app.evaluation.metrics import RequestScore
from fedit_app.evaluation.score_file import ScoreFile
from fedit_app.evaluation.scores import score_requests
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel


class ScoreMemory:
    """Caches the scores of the unedited model and of the latest state of the weights.

    The nodes of a simulation share a process. The unedited model is the same for all nodes, as are
    a global model and the model of ledgers with the same MKVs.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], dict[EditRequest, RequestScore]] = {}

    def score(
        self, model: EditableModel, requests: Sequence[EditRequest], folder: Path | None = None
    ) -> dict[EditRequest, RequestScore]:
        """Scores of requests on the model in its present state.

        Args:
            model: the model, edited or not.
            requests: the requests; those that differ in id and slot only are the same.
            folder: folder of the scores for other processes, see `ScoreFile`; None: no folder.
        """
        now = (model.fingerprint + str(model.model.dtype), model.edits_hash())
        for other in [key for key in self._known if key != now and key[1]]:
            del self._known[other]
        known = self._known.setdefault(now, {})
        plain = {request: dataclasses.replace(request, id="-", slot=None) for request in requests}
        missing = [request for request in dict.fromkeys(plain.values()) if request not in known]
        if folder is not None and missing:
            file = ScoreFile(folder, model)
            kept = {request: file.get(request) for request in missing}
            known.update({request: score for request, score in kept.items() if score is not None})
            missing = [request for request in missing if request not in known]
        scored = dict(zip(missing, score_requests(model, missing), strict=True))
        known.update(scored)
        if folder is not None and scored:
            file.add(scored)
        return {request: known[same] for request, same in plain.items()}
