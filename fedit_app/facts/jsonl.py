"""The format of edit requests: JSON lines, or a table in a CSV file."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedit_app.facts.reading import (
    Source,
    is_hub,
    is_text,
    label,
    parse_records,
    read_records,
    read_text,
    texts_of,
)
from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import replace_file

SUFFIXES = (".jsonl", ".csv")
"""Suffixes of files of edit requests."""

_FIELDS = tuple(field.name for field in dataclasses.fields(EditRequest))
_REQUIRED = ("id", "subject", "prompt", "target_new")
_OPTIONAL = ("target_true", "relation", "slot", "target_separator")
_LISTS = (
    *("paraphrase_prompts", "neighborhood_prompts", "neighborhood_targets"),
    *("subject_prompts", "generation_prompts"),
)
_KIND = "edit request; write one JSON object a line, or one row each"


def read_requests(source: Source) -> list[EditRequest]:
    """Read and check edit requests.

    Args:
        source: a file of one JSON object a line (blank lines are skipped), a `.csv` file, or a hub
            data set. `id`, `subject`, `prompt` and `target_new` are required, the other fields of
            an `EditRequest` optional. The first row of a `.csv` file names its columns; a column
            of a list may occur several times; an empty cell is an absent field. Its separator is
            the comma, or the semicolon if there is no comma in the first row.

    Returns:
        The requests in the order of the file.

    Raises:
        FedEditError: the source cannot be read or holds no request; or some are invalid: names the
            first five by line, row or record. No text of a request is quoted, because the message
            may travel to the server.
    """
    if not is_hub(source) and Path(source).suffix.lower() == ".csv":
        return parse_records(source, _rows(source), _request_of_row, _KIND, "id", "row")
    return read_records(source, _request, _KIND)


def write_requests(file: Path, requests: Sequence[EditRequest]) -> None:
    """Write requests as JSON lines that `read_requests` reads, in one atomic step."""
    with replace_file(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for request in requests:
            filled = {
                name: value for name, value in vars(request).items() if value not in (None, ())
            }
            stream.write(json.dumps(filled, ensure_ascii=False) + "\n")


def _rows(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number, from 1 for the header, and the filled cells of every row."""
    text = read_text(source)
    first = text.split("\n", 1)[0]
    delimiter = ";" if ";" in first and "," not in first else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            cells = list(map(str.strip, row))
            if not any(cells):
                continue
            if not header:
                header = _header(source, cells)
            elif any(cells[len(header) :]):
                raise FedEditError(
                    f"{label(source)}: row {number}: {len(row)} cells, but {len(header)} columns; "
                    "put text with a separator in double quotes"
                )
            else:
                yield number, _record(header, row)
    except csv.Error as error:
        raise FedEditError(f"{label(source)}: row {number + 1}: not CSV ({error})") from None


def _header(source: Source, names: list[str]) -> list[str]:
    """The checked names of the columns; none is quoted, because it may be text of a request."""
    while not names[-1]:
        names.pop()
    for column, name in enumerate(names, start=1):
        if name not in _FIELDS:
            raise FedEditError(
                f"{label(source)}: the first row must name the columns, and column {column} has no "
                f"known name; {_hint(name)}"
            )
        if name not in _LISTS and names.count(name) > 1:
            raise FedEditError(
                f"{label(source)}: several columns are named {name}; keep one of them"
            )
    return names


def _record(header: Sequence[str], row: Sequence[str]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, cell in zip(header, row, strict=False):
        if not cell.strip():
            continue
        if name in _LISTS:
            record.setdefault(name, []).append(cell)
        else:
            record[name] = cell
    return record


def _request_of_row(row: dict[str, Any]) -> EditRequest:
    slot = row.get("slot", "")
    return _request(row | {"slot": int(slot)} if slot.isdecimal() else row)


def _request(record: Any) -> EditRequest:
    if not isinstance(record, dict):
        raise FedEditError(f"a JSON object is needed, found {type(record).__name__}")
    missing = [name for name in _REQUIRED if name not in record]
    if missing:
        raise FedEditError(f"field {', '.join(missing)} is missing")
    return EditRequest(**{name: _value(name, value) for name, value in record.items()})


def _value(name: str, value: Any) -> Any:
    if name not in _FIELDS:
        raise FedEditError(f"unknown field {name!r}; {_hint(name)}")
    if name in _LISTS:
        return texts_of(name, value)
    if value is None and name in _OPTIONAL:
        return None
    if name == "slot":
        if type(value) is not int:
            found = value if isinstance(value, float) else type(value).__name__
            raise FedEditError(f"slot must be a whole number from 1, found {found}")
        return value
    if not isinstance(value, str):
        raise FedEditError(f"{name} must be a string, found {type(value).__name__}")
    if name == "target_true" and not is_text(value):
        raise FedEditError("target_true is empty; leave the field out if it is not known")
    return value


def _hint(name: str) -> str:
    close = difflib.get_close_matches(name, _FIELDS, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(_FIELDS)}"
