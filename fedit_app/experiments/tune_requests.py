"""The edit requests that a search is made on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedit_app.config.run_config import RunConfig
from fedit_app.facts.counterfact import read_counterfact
from fedit_app.facts.jsonl import read_requests
from fedit_app.facts.reading import read_text
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.facts.sources import read_data
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)


def requests_for(config: RunConfig, data: Path | None, count: int) -> list[EditRequest]:
    """Some requests of a file, or of the data of a run configuration.

    Args:
        config: names the data if no file is given, and the seed of the choice.
        data: edit requests as JSON lines, or CounterFact records; which of the two, its content
            says.
        count: how many to choose; all, with a warning, if there are fewer.

    Raises:
        FedEditError: count is not positive, or the data cannot be read; no text is quoted.
    """
    if count < 1:
        raise FedEditError(f"--requests {count} must be at least 1")
    skip_bad = config.on_bad_request == "skip"
    if data is None:
        found = read_data(config)
    elif _is_counterfact(data):
        found = read_counterfact(data, skip_bad=skip_bad)
    else:
        found = read_requests(data, skip_bad=skip_bad)
    return _spread(_with_own_keys(found), count, config.seed)


def _is_counterfact(file: Path) -> bool:
    """Whether the first line opens a JSON array, or is a record with `requested_rewrite`."""
    try:
        text = read_text(file).lstrip()
        return text.startswith("[") or "requested_rewrite" in json.loads(text.split("\n", 1)[0])
    except (FedEditError, ValueError, TypeError):
        return False  # `read_requests` says what is wrong


def _with_own_keys(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The first request of every text up to the subject: others have its key and contend with it.

    No settings can fulfil two requests with one key, so they would only hide differences.
    """
    by_start: dict[str, EditRequest] = {}
    for request in requests:
        by_start.setdefault(request.prompt.partition(SLOT)[0] + request.subject, request)
    return list(by_start.values())


def _spread(requests: Sequence[EditRequest], count: int, seed: int) -> list[EditRequest]:
    """One request, drawn with the seed, of each of `count` equal parts of the data."""
    if len(requests) < count:
        logger.warning(
            "tune: %d requests are asked for, the data has %d different ones: all are used",
            count,
            len(requests),
        )
        return list(requests)
    generator = np.random.default_rng(seed)
    parts = np.array_split(np.arange(len(requests)), count)
    return [requests[generator.choice(part)] for part in parts]
