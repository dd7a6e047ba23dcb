"""A cache of scores, in memory and on disk, so that no score is computed twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedit_app.evaluation.metrics import RequestScore
from fedit_app.evaluation.scores import score_requests
from fedit_app.facts.request import EditRequest
from fedit_app.mkv.numerics import NUMERICS_VERSION
from fedit_app.models.editable import EditableModel
from fedit_app.support.files import write_json_atomic

logger = logging.getLogger(__name__)

SCORES_VERSION = 3
"""The version of the arithmetic of `evaluation.scores`; see `tests/mkv/test_numerics.py`."""


# Fields that make no difference to a score, as they are without their value.
_NO_PART: dict[str, Any] = {"id": "-", "slot": None, "question": None, "paraphrase_questions": ()}
_IMPLIED = ("portability_prompts", "portability_targets", "reversed_prompt")


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
            requests: the requests; those that differ in id, slot and questions only are the same.
            folder: folder of the scores for other processes, see `ScoreFile`; None: no folder.
        """
        now = (model.fingerprint + str(model.model.dtype), model.edits_hash())
        for other in [key for key in self._known if key != now and key[1]]:
            del self._known[other]
        known = self._known.setdefault(now, {})
        plain = {request: dataclasses.replace(request, **_NO_PART) for request in requests}
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


class ScoreFile:
    """The scores on disk of one state of a model, by the requests' hashes, without any text.

    Args:
        folder: folder of the files of all states.
        model: the model, edited or not.
    """

    def __init__(self, folder: Path, model: EditableModel) -> None:
        state = [
            SCORES_VERSION,
            NUMERICS_VERSION,
            model.fingerprint,
            model.edits_hash(),
            str(model.model.dtype),
            model.device.type,
        ]
        name = hashlib.sha256(json.dumps(state).encode()).hexdigest()
        self._file = folder / f"{name}.json"
        self._kept: dict[str, dict[str, Any]] = {}
        try:
            self._kept = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            logger.warning("work-cache: %s cannot be read (%s) and is replaced", self._file, error)

    def get(self, request: EditRequest) -> RequestScore | None:
        """The score of a request; None if it has not been computed yet."""
        kept = self._kept.get(_asked_hash(request))
        return None if kept is None else RequestScore(**kept)

    def add(self, scores: Mapping[EditRequest, RequestScore]) -> None:
        """Add scores to the file; a score with a value that is not finite is dropped."""
        self._kept |= {
            _asked_hash(request): vars(score)
            for request, score in scores.items()
            if _is_finite(score)
        }
        write_json_atomic(self._file, self._kept)


def _is_finite(score: RequestScore) -> bool:
    return all(math.isfinite(v) for v in vars(score).values() if isinstance(v, float))


def request_hash(request: EditRequest) -> str:
    """Hash of a request without its id, slot, relation, questions and implications: 64 hex digits.

    So a fact keeps its hash whatever else is asked about it.
    """
    asked = dataclasses.asdict(dataclasses.replace(request, id="-", slot=None, relation=None))
    for name in ("question", "paraphrase_questions", *_IMPLIED):
        del asked[name]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _asked_hash(request: EditRequest) -> str:
    """The same of everything that a score depends on."""
    implied = [getattr(request, name) for name in _IMPLIED]
    further = hashlib.sha256(json.dumps(implied).encode()).hexdigest() if any(implied) else ""
    return request_hash(request) + further


def write_scores(file: Path, scores: Mapping[EditRequest, RequestScore]) -> None:
    """Write the score of each fact, without any text: JSON, `request_hash` -> its figures.

    A score with a value that is not finite is left out.
    """
    finite = {request: score for request, score in scores.items() if _is_finite(score)}
    write_json_atomic(file, {request_hash(r): vars(score) for r, score in finite.items()})


def read_scores(file: Path) -> dict[str, RequestScore]:
    """What `write_scores` has written.

    Raises:
        OSError, ValueError, TypeError: the file cannot be read, or is another one.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    return {name: RequestScore(**figures) for name, figures in found.items()}
