"""CSV files as spreadsheet programs write them, as records."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedit_app.facts.reading import label, read_text
from fedit_app.support.errors import FedEditError


def read_table(
    file: Path, fields: Sequence[str], lists: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table whose first row names its columns.

    Cells are separated by commas, or by semicolons if there is no comma in the first row. An empty
    cell is an absent field. Several columns may have the name of a list, each with one entry.

    Args:
        file: UTF-8, with or without a byte order mark.
        fields: names that a column may have.
        lists: those of them that hold lists.

    Returns:
        (number, record) for every row with a filled cell; the first row is number 1. Values are
        strings and lists of strings.

    Raises:
        FedEditError: the file cannot be read, is no such table, or has other columns.
    """
    text = read_text(file)
    first = text.split("\n", 1)[0]
    delimiter = ";" if ";" in first and "," not in first else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                header = _columns(file, row, fields, lists)
                continue
            if any(cell.strip() for cell in row[len(header) :]):
                raise FedEditError(
                    f"{label(file)}: row {number}: {len(row)} cells, but {len(header)} columns; "
                    "put text with a separator in double quotes"
                )
            yield number, _record(header, row, lists)
    except csv.Error as error:
        raise FedEditError(f"{label(file)}: row {number + 1}: not CSV ({error})") from None


def _columns(
    file: Path, row: Sequence[str], fields: Sequence[str], lists: Sequence[str]
) -> list[str]:
    """The names of the columns; what else stands there may be the text of a request."""
    names = [cell.strip() for cell in row]
    while not names[-1]:
        names.pop()
    for column, name in enumerate(names, start=1):
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(fields)}"
            raise FedEditError(
                f"{label(file)}: the first row must name the columns, and column {column} has no "
                f"known name; {hint}"
            )
        if name not in lists and names.count(name) > 1:
            raise FedEditError(f"{label(file)}: several columns are named {name}; keep one of them")
    return names


def _record(header: Sequence[str], row: Sequence[str], lists: Sequence[str]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, cell in zip(header, row, strict=False):
        if not cell.strip():
            continue
        if name in lists:
            record.setdefault(name, []).append(cell)
        else:
            record[name] = cell
    return record
