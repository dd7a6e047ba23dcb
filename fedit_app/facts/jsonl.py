"""The format of edit requests: JSON lines, or a table in a CSV file."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedit_app.facts.reading import (
    Source,
    is_hub,
    label,
    parse_records,
    read_records,
    read_text,
    texts_of,
)
from fedit_app.facts.request import LISTS, EditRequest
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import replace_file

TABLES = (".csv", ".tsv")
SUFFIXES = (".jsonl", *TABLES)
"""Suffixes of files of edit requests, before a ".gz"."""

_FIELDS = tuple(field.name for field in dataclasses.fields(EditRequest))
_REQUIRED = ("id", "prompt", "target_new")
_KIND = "edit request; write one JSON object a line, or one row each"

_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*[\r\n]+')
_EMPTY = ("nan", "NaN", "<NA>", "#N/A")
_WHOLE = re.compile(r"([0-9]{1,9})(\.0+)?")


def suffix_of(file: Path) -> str:
    """The suffix that says the format of a file, in lower case, whether it is compressed or not."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")


def read_requests(source: Source, skip_bad: bool = False) -> list[EditRequest]:
    """Read and check edit requests.

    Args:
        source: a file of one JSON object a line (blank lines are skipped) or one JSON array, a
            `.csv` or `.tsv` file, or a hub data set; a file may be compressed (`.gz`). `id`,
            `prompt` and `target_new` are required, the other fields of an `EditRequest` optional,
            and so is `subject` where the prompt has no `{}`. The first row of a table names its
            columns; a column of a list may occur several times; an empty cell is an absent field.
            Its separator is that by which the first row has the most names of fields, or what a
            line `sep=;` before it says.
        skip_bad: leave out invalid requests, and name them in the log.

    Returns:
        The requests in the order of the file.

    Raises:
        FedEditError: the source cannot be read or holds no request; or some are invalid: names the
            first five by line, row or record. No text of a request is quoted, because the message
            may travel to the server.
    """
    if not is_hub(source) and suffix_of(Path(source)) in TABLES:
        rows = _rows(source)
        return parse_records(source, rows, _request_of_row, _KIND, "id", "row", skip_bad)
    return read_records(source, _request, _KIND, skip_bad=skip_bad)


def write_requests(file: Path, requests: Sequence[EditRequest]) -> None:
    """Write requests as JSON lines that `read_requests` reads, in one atomic step."""
    with replace_file(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for request in requests:
            values = {name: getattr(request, name) for name in _FIELDS}
            filled = {name: value for name, value in values.items() if value not in (None, ())}
            stream.write(json.dumps(filled, ensure_ascii=False) + "\n")


def _rows(source: Source) -> Iterator[tuple[int, dict[str, Any] | FedEditError]]:
    """The number, from 1 for the header, and the filled cells of every row, or what is wrong."""
    text = read_text(source)
    said = _SEPARATOR_LINE.match(text)
    text = text[said.end() :] if said else text
    separator = said[1] if said else _separator(text)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
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
                yield number, _too_wide(row, header)
            else:
                yield number, _record(header, row)
    except csv.Error as error:
        what = "a quote is not closed" if "unexpected end" in str(error) else str(error)
        yield number + 1, FedEditError(f"not CSV ({what}); later rows were not read")


def _too_wide(row: Sequence[str], header: Sequence[str]) -> FedEditError:
    return FedEditError(
        f"{len(row)} cells, but {len(header)} columns; put text with a separator in double quotes"
    )


def _separator(text: str) -> str:
    """What separates the names of fields in the first row; the comma if there is one name."""
    first = re.split("[\r\n]", text.lstrip(), maxsplit=1)[0]
    names = {mark: [name.strip('" ') for name in first.split(mark)] for mark in _SEPARATORS}
    return max(_SEPARATORS, key=lambda mark: sum(name in _FIELDS for name in names[mark]))


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
        if name not in LISTS and names.count(name) > 1:
            raise FedEditError(
                f"{label(source)}: several columns are named {name}; keep one of them"
            )
    return names


def _record(header: Sequence[str], row: Sequence[str]) -> dict[str, Any] | FedEditError:
    record: dict[str, Any] = {}
    for name, cell in zip(header, row, strict=False):
        if not cell.strip():
            continue
        if cell in _EMPTY:
            return FedEditError(
                f"{name} is {cell}, as programs write for an empty cell; leave the cell empty"
            )
        if name in LISTS:
            record.setdefault(name, []).append(cell)
        else:
            record[name] = cell
    return record


def _request_of_row(row: dict[str, Any], index: int) -> EditRequest:
    whole = _WHOLE.fullmatch(row.get("slot", "").strip())
    return _request(row | {"slot": int(whole[1])} if whole else row, index)


def _request(record: Any, _index: int) -> EditRequest:
    if not isinstance(record, dict):
        raise FedEditError(f"a JSON object is needed, found {type(record).__name__}")
    missing = [name for name in _REQUIRED if name not in record]
    if missing:
        raise FedEditError(f"field {', '.join(missing)} is missing")
    for place, name in enumerate(record, start=1):
        if name not in _FIELDS:  # not quoted: it may be text of a request
            raise FedEditError(f"field {place} of the object has no known name; {_hint(name)}")
    given = {"subject": ""} | record
    return EditRequest(**{name: _value(name, value) for name, value in given.items()})


def _value(name: str, value: Any) -> Any:
    if value is None and name not in (*_REQUIRED, "subject"):
        return () if name in LISTS else None
    if name in LISTS:
        return texts_of(name, value)
    if name == "slot":
        whole = type(value) is int or (type(value) is float and value.is_integer())
        if not whole:
            raise FedEditError(f"slot must be a whole number from 1, found {_found(value)}")
        return int(value)
    if not isinstance(value, str):
        raise FedEditError(f"{name} must be a string, found {_found(value)}")
    return value


def _found(value: Any) -> str:
    return str(value) if isinstance(value, float) else type(value).__name__


def _hint(name: str) -> str:
    close = difflib.get_close_matches(name, _FIELDS, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(_FIELDS)}"
