"""What all readers of data share: where records come from, and how faulty ones are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError
from fedit_app.support.hub import PREFIX, load_rows

_MOST_PROBLEMS = 5

Source = Path | str
"""A data file, or the name of a hub data set: "hub:..."."""

Record = TypeVar("Record")


def is_hub(source: Source) -> bool:
    """Whether a source is the name of a hub data set."""
    return isinstance(source, str) and source.startswith(PREFIX)


def label(source: Source) -> str:
    """What a source is called in errors, which may travel to the server: no folder is named."""
    return f"data set {source}" if is_hub(source) else f"data file {Path(source).name}"


def read_text(file: Path) -> str:
    """The text of a data file.

    Raises:
        FedEditError: it cannot be read or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FedEditError(f"{label(file)}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise FedEditError(f"{label(file)}: not UTF-8 text (byte {error.start})") from None


def json_records(source: Source) -> list[Any]:
    """The records of a file, one JSON array or one JSON object a line, or of a hub data set.

    Raises:
        FedEditError: it cannot be read, or the file is not JSON.
    """
    if is_hub(source):
        return hub_records(str(source))
    file = Path(source)
    text = read_text(file)
    if text.lstrip().startswith("["):
        records: list[Any] = _json(file, text)
        return records
    lines = enumerate(text.split("\n"), start=1)
    return [_json(file, line, number) for number, line in lines if line.strip()]


def hub_records(name: str) -> list[dict[str, Any]]:
    """The rows of a hub data set; what is null there is absent.

    Raises:
        FedEditError: see `load_rows`.
    """
    return [
        {field: value for field, value in row.items() if value is not None}
        for row in load_rows("data-path", name)
    ]


def _json(file: Path, text: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise FedEditError(
            f"{label(file)}: not JSON ({error.msg}, line {line}, column {error.colno}); "
            "it must be one JSON array, or one JSON object a line"
        ) from None


def parse_records(
    source: Source,
    records: Iterable[tuple[int, Record]],
    parse: Callable[[Record], EditRequest],
    place: str = "record",
    identity: str = "id",
) -> list[EditRequest]:
    """Make requests of records.

    Args:
        source: where the records are from.
        records: (number, record): the number says where it stands.
        parse: makes a request of a record, or raises a FedEditError that quotes no text of it.
        place: what a number counts: "record", "line".
        identity: what the records call the id.

    Returns:
        One request a record, in their order.

    Raises:
        FedEditError: naming every faulty record by its number (the first five) with what is wrong.
    """
    requests: list[EditRequest] = []
    problems: list[str] = []
    first_use: dict[str, int] = {}
    for number, record in records:
        try:
            request = parse(record)
            if request.id in first_use:
                raise FedEditError(f"its {identity} was used in {place} {first_use[request.id]}")
        except FedEditError as error:
            problems.append(f"{place} {number}: {error}")
            continue
        first_use[request.id] = number
        requests.append(request)
    _refuse_faulty(source, problems, f"{place}s")
    return requests


def _refuse_faulty(source: Source, problems: Sequence[str], places: str) -> None:
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        shown = [*problems[:_MOST_PROBLEMS], *([f"and {more} more {places}"] if more > 0 else [])]
        raise FedEditError(f"{label(source)}: " + "; ".join(shown))


def member(record: Any, path: str) -> Any:
    """What stands in nested objects at a dotted path.

    Raises:
        FedEditError: it is missing, or something on the way is no object.
    """
    value, passed = record, "the record"
    for name in path.split("."):
        if not isinstance(value, dict):
            raise FedEditError(f"{passed} must be a JSON object, found {type(value).__name__}")
        if name not in value:
            raise FedEditError(f"{path} is missing")
        value = value[name]
        passed = name if passed == "the record" else f"{passed}.{name}"
    return value


def text_at(record: Any, path: str) -> str:
    """The non-empty string at a dotted path.

    Raises:
        FedEditError: it is missing or something else.
    """
    value = member(record, path)
    if not isinstance(value, str) or not is_text(value):
        found = "an empty one" if isinstance(value, str) else type(value).__name__
        raise FedEditError(f"{path} must be a non-empty string, found {found}")
    return value


def is_text(value: Any) -> bool:
    """Whether a value is a string with more than spaces in it."""
    return isinstance(value, str) and bool(value.strip())
