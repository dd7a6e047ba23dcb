"""Scores on disk: one file for each state of a model, without any text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedit_app.evaluation.metrics import RequestScore
from fedit_app.facts.request import EditRequest
from fedit_app.mkv.numerics import NUMERICS_VERSION
from fedit_app.models.editable import EditableModel
from fedit_app.support.files import write_json_atomic

logger = logging.getLogger(__name__)

SCORES_VERSION = 1
"""The version of the arithmetic of `evaluation.scores`; see `tests/mkv/test_numerics.py`."""


class ScoreFile:
    """The scores of requests on a model in its present state, by the requests' hashes.

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
        kept = self._kept.get(_hash(request))
        return None if kept is None else RequestScore(**kept)

    def add(self, scores: Mapping[EditRequest, RequestScore]) -> None:
        """Add scores to the file; a score with a value that is not finite is dropped."""
        self._kept |= {
            _hash(request): vars(score)
            for request, score in scores.items()
            if all(math.isfinite(v) for v in vars(score).values() if isinstance(v, float))
        }
        write_json_atomic(self._file, self._kept)


def _hash(request: EditRequest) -> str:
    """Hash of a request without its id, slot and relation."""
    asked = dataclasses.asdict(dataclasses.replace(request, id="-", slot=None, relation=None))
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
