"""Edit requests as organisations write them down: JSON lines, or a table in a CSV file."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedit_app.facts.csv_table import read_table
from fedit_app.facts.reading import (
    Source,
    hub_records,
    is_hub,
    is_text,
    label,
    parse_records,
    read_text,
)
from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import replace_file

SUFFIXES = (".jsonl", ".csv")
"""How files of edit requests end."""

_FIELDS = tuple(field.name for field in dataclasses.fields(EditRequest))
_REQUIRED = ("id", "subject", "prompt", "target_new")
_LISTS = (
    *("paraphrase_prompts", "neighborhood_prompts", "neighborhood_targets"),
    "generation_prompts",
)


def read_requests(source: Source) -> list[EditRequest]:
    """Read and check edit requests.

    Args:
        source: a file of one JSON object a line (blank lines are skipped), a `.csv` file, or a hub
            data set. `id`, `subject`, `prompt` and `target_new` are required, the other fields of
            an `EditRequest` optional.

    Returns:
        The requests in the order of the file.

    Raises:
        FedEditError: the source cannot be read or holds no request; or naming every faulty line,
            row or record with what is wrong (the first five). No text of a request is quoted: the
            message may travel to the server.
    """
    if is_hub(source):
        records = enumerate(hub_records(str(source)), start=1)
        requests = parse_records(source, records, _request)
    elif Path(source).suffix.lower() == ".csv":
        rows = read_table(Path(source), _FIELDS, _LISTS)
        requests = parse_records(source, rows, _request_of_row, "row")
    else:
        lines = enumerate(read_text(Path(source)).split("\n"), start=1)
        filled = ((number, line) for number, line in lines if line.strip())
        requests = parse_records(source, filled, _request_of_line, "line")
    if not requests:
        raise FedEditError(
            f"{label(source)}: holds no edit request; write one JSON object a line, or one row each"
        )
    return requests


def write_requests(file: Path, requests: Sequence[EditRequest]) -> None:
    """Write requests as JSON lines that `read_requests` reads back; the file appears when whole."""
    with replace_file(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for request in requests:
            filled = {name: value for name, value in vars(request).items() if value}
            stream.write(json.dumps(filled, ensure_ascii=False) + "\n")


def _request_of_line(line: str) -> EditRequest:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise FedEditError(f"not JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(record, dict):
        raise FedEditError(f"a JSON object is needed, found {type(record).__name__}")
    return _request(record)


def _request_of_row(row: dict[str, Any]) -> EditRequest:
    slot = row.get("slot", "")
    return _request(row | {"slot": int(slot)} if slot.isdecimal() else row)


def _request(record: dict[str, Any]) -> EditRequest:
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
        if not isinstance(value, list) or not all(map(is_text, value)):
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
    if name == "target_true" and not is_text(value):
        raise FedEditError("target_true is empty; leave the field out if it is not known")
    return value
