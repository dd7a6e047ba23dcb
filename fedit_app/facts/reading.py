"""What all readers of data share: where records come from, and how invalid ones are reported."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError
from fedit_app.support.hub import PREFIX, load_rows

_MOST_PROBLEMS = 5

Source = Path | str
"""A data file, or the name of a hub data set: "hub:..."."""


def is_hub(source: Source) -> bool:
    """Whether a source is the name of a hub data set."""
    return isinstance(source, str) and source.startswith(PREFIX)


def label(source: Source) -> str:
    """The name of a source in errors, which may travel to the server: without its folder."""
    return f"data set {source}" if is_hub(source) else f"data file {Path(source).name}"


def read_text(source: Source) -> str:
    """The text of a data file.

    Raises:
        FedEditError: the file cannot be read or is not UTF-8.
    """
    try:
        return Path(source).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FedEditError(f"{label(source)}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise FedEditError(f"{label(source)}: not UTF-8 text (byte {error.start})") from None


def read_records(
    source: Source,
    parse: Callable[[Any], EditRequest],
    kind: str,
    identity: str = "id",
    limit: int | None = None,
) -> list[EditRequest]:
    """Read the records of a JSON file or of a hub data set as requests.

    Args:
        source: a file with one JSON array of records, or with one record a line (blank lines are
            skipped); or a hub data set, whose null fields count as absent.
        parse: makes a request of a record, or raises a FedEditError that quotes no text of it.
        kind: what a record is, for the error if there is none.
        identity: the field that holds the id.
        limit: read the first records only; None for all.

    Returns:
        One request a record, in their order.

    Raises:
        FedEditError: the source cannot be read, is not JSON or holds no record; or a record is
            invalid, see `parse_records`.
    """
    place, records = _records(source)
    records = itertools.islice(records, limit)
    return parse_records(source, records, parse, kind, identity, place)


def parse_records(
    source: Source,
    records: Iterable[tuple[int, Any]],
    parse: Callable[[Any], EditRequest],
    kind: str,
    identity: str,
    place: str,
) -> list[EditRequest]:
    """Make requests of numbered records; the arguments are those of `read_records`.

    Args:
        records: (number, record); the number tells where the record is.
        place: what the number counts: "record", "line" or "row".

    Raises:
        FedEditError: there is no record, or some are invalid; names the first five by number.
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
    if problems:
        shown, more = problems[:_MOST_PROBLEMS], len(problems) - _MOST_PROBLEMS
        shown += [f"and {more} more {place}s"] if more > 0 else []
        raise FedEditError(f"{label(source)}: " + "; ".join(shown))
    if not requests:
        raise FedEditError(f"{label(source)}: holds no {kind}")
    return requests


def _records(source: Source) -> tuple[str, Iterator[tuple[int, Any]]]:
    """What numbers count, and the numbered records."""
    if is_hub(source):
        rows = load_rows("data-path", str(source))
        filled = ({name: v for name, v in row.items() if v is not None} for row in rows)
        return "record", enumerate(filled, start=1)
    text = read_text(source)
    if text.lstrip().startswith("["):
        return "record", enumerate(_json(source, text), start=1)
    lines = enumerate(text.split("\n"), start=1)
    return "line", ((n, _json(source, line, n)) for n, line in lines if line.strip())


def _json(source: Source, text: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise FedEditError(
            f"{label(source)}: line {line}: not JSON ({error.msg}, column {error.colno}); "
            "write one JSON array, or one JSON object a line"
        ) from None


def member(record: Any, path: str) -> Any:
    """The value at a dotted path in nested objects.

    Raises:
        FedEditError: the value is missing, or a part of the path is not an object.
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
        FedEditError: the value is missing, empty or not a string.
    """
    value = member(record, path)
    if not isinstance(value, str) or not is_text(value):
        found = "an empty one" if isinstance(value, str) else type(value).__name__
        raise FedEditError(f"{path} must be a non-empty string, found {found}")
    return value


def texts_of(name: str, value: Any) -> tuple[str, ...]:
    """A list of non-empty strings.

    Raises:
        FedEditError: the value is something else.
    """
    if not isinstance(value, list) or not all(map(is_text, value)):
        raise FedEditError(f"{name} must be a list of non-empty strings")
    return tuple(value)


def is_text(value: Any) -> bool:
    """Whether a value is a string with a character other than spaces."""
    return isinstance(value, str) and bool(value.strip())
