"""What all readers of data share: where records come from, and how invalid ones are reported."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import itertools
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fedit_app.facts.notices import Notices
from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import byte_size, plural, printable
from fedit_app.support.hub import PREFIX, load_rows

logger = logging.getLogger(__name__)

MOST_BYTES = 512_000_000
"""The largest data file, once it is decompressed; all of CounterFact has 45 MB."""

_CHUNK = 2**20
_MOST_PROBLEMS = 5
_MOST_LOGGED = 100
_seen: set[str] = set()

Source = Path | str
"""A data file, or the name of a hub data set: "hub:..."."""

Numbered = Iterable[tuple[int, Any]]
"""Records with their numbers; in the place of one that cannot be read, a FedEditError."""

Parse = Callable[[Any, int], EditRequest | list[EditRequest]]
"""Makes a request, or several, of a record and its place from 0; raises a FedEditError that quotes
no text."""

_GZIP = b"\x1f\x8b"
_OTHER_FORMATS = {
    b"PK\x03\x04": "a spreadsheet or ZIP archive; save it as CSV (UTF-8)",
    b"PAR1": "a Parquet file; name its folder as hub:FOLDER, or write it as JSON lines",
}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks, the longer ones first, and the encodings that they stand for."""


def is_hub(source: Source) -> bool:
    """Whether a source is the name of a hub data set."""
    return isinstance(source, str) and source.startswith(PREFIX)


def label(source: Source) -> str:
    """The name of a source in errors, which may travel to the server: without its folder."""
    return f"data set {source}" if is_hub(source) else f"data file {printable(Path(source).name)}"


def read_text(source: Source) -> str:
    """The text of a data file: UTF-8, or what its byte order mark says; compressed or not.

    Raises:
        FedEditError: the file cannot be read, is larger than `MOST_BYTES`, or is no text.
    """
    data = bytearray()
    try:
        with Path(source).open("rb") as file:
            compressed = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            text = gzip.GzipFile(fileobj=file) if compressed else file
            # No more memory is taken than there is text.
            while len(data) <= MOST_BYTES and (part := text.read(_CHUNK)):
                data += part
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise FedEditError(f"{label(source)}: not a complete gzip file; copy it again") from None
    except OSError as error:
        raise FedEditError(f"{label(source)}: cannot be read ({error.strerror})") from None
    if len(data) > MOST_BYTES:
        raise FedEditError(
            f"{label(source)}: more than {byte_size(MOST_BYTES)} of text; divide it into several"
        )
    for beginning, what in _OTHER_FORMATS.items():
        if data.startswith(beginning):
            raise FedEditError(f"{label(source)}: is {what}")
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:2]:
        raise FedEditError(f"{label(source)}: UTF-16 without a byte order mark; save it as UTF-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FedEditError(
            f"{label(source)}: line {line}: not {encoding.removesuffix('-sig').upper()} text "
            f"(byte {error.start} of the file); save it as UTF-8"
        ) from None


def read_records(
    source: Source,
    parse: Parse,
    kind: str,
    identity: str = "id",
    limit: int | None = None,
    skip_bad: bool = False,
) -> list[EditRequest]:
    """Read the records of a JSON file or of a hub data set as requests.

    Args:
        source: a file with one JSON array of records, or with one record a line (blank lines are
            skipped); or a hub data set, whose null fields count as absent.
        parse: makes a request of a record.
        kind: what a record is, for the error if there is none.
        identity: the field that holds the id.
        limit: read the first records only; None for all.
        skip_bad: see `parse_records`.

    Returns:
        The requests, in the order of the records.

    Raises:
        FedEditError: the source cannot be read, is not JSON or holds no record; or a record is
            invalid, see `parse_records`.
    """
    place, records = _records(source)
    records = itertools.islice(records, limit)
    return parse_records(source, records, parse, kind, identity, place, skip_bad)


def parse_records(
    source: Source,
    records: Numbered,
    parse: Parse,
    kind: str,
    identity: str,
    place: str,
    skip_bad: bool = False,
) -> list[EditRequest]:
    """Make requests of numbered records; the arguments are those of `read_records`.

    What was made plain in texts, and what is odd about requests, is logged.

    Args:
        records: (number, record); the number tells where the record is.
        place: what the number counts: "record", "line" or "row".
        skip_bad: leave out invalid records, and name them in the log.

    Raises:
        FedEditError: there is no record, or some are invalid; names the first five by number. The
            log names the first 100.
    """
    requests: list[EditRequest] = []
    problems: list[str] = []
    first_use: dict[str, int] = {}
    notices = Notices(place)
    for index, (number, record) in enumerate(records):
        try:
            if isinstance(record, FedEditError):
                raise record
            parsed = parse(record, index)
            made = parsed if isinstance(parsed, list) else [parsed]
            for request in made:
                if request.id in first_use:
                    used = first_use[request.id]
                    raise FedEditError(f"its {identity} was used in {place} {used}")
        except FedEditError as error:
            problems.append(f"{place} {number}: {error}")
            continue
        for request in made:
            first_use[request.id] = number
            requests.append(request)
            notices.see(number, request)
    skip = skip_bad and bool(requests)
    if not _told(source, skip):
        notices.log(label(source))
        _log(source, problems, place, skip)
    if problems and not skip:
        more = len(problems) - _MOST_PROBLEMS
        shown = problems[:_MOST_PROBLEMS]
        shown += [f"and {plural(more, f'more {place}')}, see the log"] if more > 0 else []
        raise FedEditError(f"{label(source)}: " + "; ".join(shown))
    if not requests:
        raise FedEditError(f"{label(source)}: holds no {kind}")
    return requests


def _told(source: Source, skip: bool) -> bool:
    """Whether this process has logged what there is to say of a file; a node reads it many times.

    A file that has changed since is another one.
    """
    key = f"{source} {skip}"
    if not is_hub(source):
        with contextlib.suppress(OSError):
            key = f"{Path(source).absolute()} {skip} {Path(source).stat().st_mtime_ns}"
    told = key in _seen
    _seen.add(key)
    return told


def _log(source: Source, problems: list[str], place: str, skip: bool) -> None:
    """Name invalid records in the log, if they are skipped or too many for the error."""
    if not skip and len(problems) <= _MOST_PROBLEMS:
        return
    for problem in problems[:_MOST_LOGGED]:
        logger.warning("%s: %s", label(source), problem)
    if len(problems) > _MOST_LOGGED:
        logger.warning("%s: and %d more", label(source), len(problems) - _MOST_LOGGED)
    if skip and problems:
        logger.warning("%s: %s left out", label(source), plural(len(problems), place))


def _records(source: Source) -> tuple[str, Iterator[tuple[int, Any]]]:
    """What numbers count, and the numbered records."""
    if is_hub(source):
        rows = load_rows("data-path", str(source))
        filled = ({name: v for name, v in row.items() if v is not None} for row in rows)
        return "record", enumerate(filled, start=1)
    text = read_text(source)
    if text.lstrip().startswith("["):
        line, records = _json(text)
        if isinstance(records, FedEditError):
            raise FedEditError(f"{label(source)}: line {line}: {records}")
        return "record", enumerate(records, start=1)
    lines = enumerate(re.split("\r\n|\r|\n", text), start=1)
    return "line", ((number, _json(line)[1]) for number, line in lines if line.strip())


def _json(text: str) -> tuple[int, Any]:
    """The value of a JSON text; if it is none, a FedEditError and the line of the fault."""
    line = 1
    try:
        return line, json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line, said = error.lineno, f"{error.msg}, column {error.colno}"
    except (ValueError, RecursionError):
        said = "a number or list is too long"
    remedy = "write one JSON array, or one JSON object a line"
    return line, FedEditError(f"not JSON ({said}); {remedy}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | FedEditError:
    """A JSON object; an error in its place if a field is in it, or in one of it, twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        place = next(i for i, name in enumerate(names, start=1) if name in names[: i - 1])
        return FedEditError(f"field {place} of an object has the name of one before; keep one")
    within = [v for value in found.values() for v in (value if type(value) is list else [value])]
    return next((value for value in within if isinstance(value, FedEditError)), found)


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
