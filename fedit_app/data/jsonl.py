"""Edit requests as JSON lines, the format in which organisations write down their corrections."""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any

from fedit_app.data.reading import read_text, refuse_faulty
from fedit_app.editing.requests import EditRequest
from fedit_app.errors import FedEditError

_FIELDS = tuple(field.name for field in dataclasses.fields(EditRequest))
_REQUIRED = ("id", "subject", "prompt", "target_new")
_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "neighborhood_targets")


def read_requests(file: Path) -> list[EditRequest]:
    """Read and check a file of edit requests.

    Args:
        file: one JSON object a line; blank lines are skipped. `id`, `subject`, `prompt` and
            `target_new` are required, the other fields of an `EditRequest` optional.

    Returns:
        The requests in the order of the file.

    Raises:
        FedEditError: the file cannot be read or holds no request; or naming every faulty line
            with what is wrong (the first five). No text of a request is quoted: the message may
            travel to the server.
    """
    requests: list[EditRequest] = []
    problems: list[str] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            request = _parse(line)
            if request.id in first_line:
                raise FedEditError(f"its id was used in line {first_line[request.id]}")
        except FedEditError as error:
            problems.append(f"line {number}: {error}")
            continue
        first_line[request.id] = number
        requests.append(request)
    refuse_faulty(file, problems, "lines")
    if not requests:
        raise FedEditError(
            f"data file {file.name}: holds no edit request; write one JSON object a line"
        )
    return requests


def _parse(line: str) -> EditRequest:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise FedEditError(f"not JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(record, dict):
        raise FedEditError(f"a JSON object is needed, found {type(record).__name__}")
    missing = [name for name in _REQUIRED if name not in record]
    if missing:
        raise FedEditError(f"field {', '.join(missing)} is missing")
    return EditRequest(**{name: _value(name, value) for name, value in record.items()})


def _value(name: str, value: Any) -> Any:
    if name not in _FIELDS:
        close = difflib.get_close_matches(name, _FIELDS, n=1)
        hint = f", did you mean {close[0]}?" if close else f"; known are {', '.join(_FIELDS)}"
        raise FedEditError(f"unknown field {name!r}{hint}")
    if name in _LISTS:
        if not isinstance(value, list) or not all(_is_text(part) for part in value):
            raise FedEditError(f"{name} must be a list of non-empty strings")
        return tuple(value)
    if name == "slot":
        if value is not None and type(value) is not int:
            found = value if isinstance(value, float) else type(value).__name__
            raise FedEditError(f"slot must be a whole number from 1, found {found}")
        return value
    if name in ("target_true", "relation") and value is None:
        return None
    if not isinstance(value, str):
        raise FedEditError(f"{name} must be a string, found {type(value).__name__}")
    if name == "target_true" and not _is_text(value):
        raise FedEditError("target_true is empty; leave the field out if it is not known")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
