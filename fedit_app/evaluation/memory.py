"""A cache of scores and answers, in memory and on disk, so that none is computed twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fedit_app.evaluation.generation import Ask, Said, say
from fedit_app.evaluation.metrics import RequestScore
from fedit_app.evaluation.scores import Before, nothing, score_requests
from fedit_app.facts.request import EditRequest
from fedit_app.mkv.numerics import NUMERICS_VERSION
from fedit_app.models.editable import EditableModel
from fedit_app.support.files import write_json_atomic

logger = logging.getLogger(__name__)

SCORES_VERSION = 3
"""The version of the arithmetic of `evaluation.scores`; see `tests/mkv/test_numerics.py`."""
ANSWERS_VERSION = 1
"""That of `evaluation.generation` and `models.chat`."""


_T = TypeVar("_T")

_IMPLIED = ("portability_prompts", "portability_targets", "reversed_prompt")


@dataclass(frozen=True)
class _Kind(Generic[_T]):
    """What is found about a request on a state of a model.

    Attributes:
        version: what stands for the code that finds it.
        no_part: the request's fields that make no difference, as they are without their value.
        find: finds it.
        read: makes it of its fields in a file.
        name: the request in a file.
    """

    version: tuple[int | str, ...]
    no_part: Mapping[str, Any]
    find: Callable[[EditableModel, Sequence[EditRequest]], Sequence[_T]]
    read: Callable[..., _T]
    name: Callable[[EditRequest], str]


class _Memory(Generic[_T]):
    """Caches what was found on the unedited model and on the latest state of the weights.

    The nodes of a simulation share a process. The unedited model is the same for all nodes, as are
    a global model and the model of ledgers with the same MKVs.
    """

    def __init__(self, kind: _Kind[_T]) -> None:
        self._kind = kind
        self._known: dict[tuple[str, str], dict[EditRequest, _T]] = {}

    def _recall(
        self, model: EditableModel, requests: Sequence[EditRequest], folder: Path | None
    ) -> dict[EditRequest, _T]:
        now = (model.fingerprint + str(model.model.dtype), model.edits_hash())
        for other in [key for key in self._known if key != now and key[1]]:
            del self._known[other]
        known = self._known.setdefault(now, {})
        no_part = self._kind.no_part
        plain = {request: dataclasses.replace(request, **no_part) for request in requests}
        missing = [request for request in dict.fromkeys(plain.values()) if request not in known]
        if folder is not None and missing:
            file = _File(self._kind, folder, model)
            kept = {request: file.get(request) for request in missing}
            known.update({request: one for request, one in kept.items() if one is not None})
            missing = [request for request in missing if request not in known]
        found = dict(zip(missing, self._kind.find(model, missing), strict=True))
        known.update(found)
        if folder is not None and found:
            file.add(found)
        return {request: known[same] for request, same in plain.items()}


class ScoreMemory(_Memory[RequestScore]):
    """Caches scores."""

    def __init__(self) -> None:
        super().__init__(_SCORES)

    def score(
        self, model: EditableModel, requests: Sequence[EditRequest], folder: Path | None = None
    ) -> dict[EditRequest, RequestScore]:
        """Scores of requests on the model in its present state.

        Args:
            model: the model, edited or not.
            requests: the requests; those that differ in id, slot and questions only are the same.
            folder: folder of the scores for other processes; None: no folder.
        """
        return self._recall(model, requests, folder)


class AnswerMemory(_Memory[Said]):
    """Caches what a model says itself."""

    def __init__(self) -> None:
        super().__init__(_ANSWERS)

    def ask(self, folder: Path | None = None) -> Ask:
        """`generation.say` that remembers, unless something is read before the prompts.

        Args:
            folder: folder of the answers for other processes; None: no folder.
        """

        def ask(
            model: EditableModel, requests: Sequence[EditRequest], before: Before = nothing
        ) -> Sequence[Said]:
            if before is not nothing:
                return say(model, requests, before)
            found = self._recall(model, requests, folder)
            return [found[request] for request in requests]

        return ask


class _File(Generic[_T]):
    """What is known on disk of one state of a model, by the requests' hashes, without any text.

    Args:
        kind: what.
        folder: folder of the files of all states.
        model: the model, edited or not.
    """

    def __init__(self, kind: _Kind[_T], folder: Path, model: EditableModel) -> None:
        self._kind = kind
        state = [
            *kind.version,
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

    def get(self, request: EditRequest) -> _T | None:
        """What was found about a request; None if nothing was yet."""
        kept = self._kept.get(self._kind.name(request))
        return None if kept is None else self._kind.read(**kept)

    def add(self, found: Mapping[EditRequest, _T]) -> None:
        """Add to the file; what has a value that is not finite is dropped."""
        self._kept |= {
            self._kind.name(request): vars(one) for request, one in found.items() if _is_finite(one)
        }
        write_json_atomic(self._file, self._kept)


def _is_finite(found: object) -> bool:
    return all(math.isfinite(v) for v in vars(found).values() if isinstance(v, float))


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


def _whole_hash(request: EditRequest) -> str:
    """Hash of everything in a request."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(request)).encode()).hexdigest()


_SCORES = _Kind(
    (SCORES_VERSION,),
    {"id": "-", "slot": None, "question": None, "paraphrase_questions": ()},
    lambda model, requests: score_requests(model, requests),
    RequestScore,
    _asked_hash,
)
_ANSWERS = _Kind(
    ("answers", ANSWERS_VERSION),
    {"id": "-", "slot": None},
    lambda model, requests: say(model, requests),
    Said,
    _whole_hash,
)


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
