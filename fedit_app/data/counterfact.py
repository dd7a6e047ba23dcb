"""CounterFact (Meng et al., arXiv 2202.05262) in the form in which it is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedit_app.data.reading import read_text, refuse_faulty
from fedit_app.editing.requests import EditRequest
from fedit_app.errors import FedEditError


def read_counterfact(file: Path, limit: int | None = None) -> list[EditRequest]:
    """Read the edits and the evaluation prompts of CounterFact records.

    Args:
        file: `counterfact.json` or `multi_counterfact.json` (one JSON array), or JSON lines with
            one record a line. `case_id`, `requested_rewrite` with `prompt`, `subject`,
            `target_new.str` and `target_true.str` are required; `relation_id` (there, too),
            `paraphrase_prompts` and `neighborhood_prompts` may be absent. Other fields are left
            aside.
        limit: read the first records only; None for all.

    Returns:
        One request a record, in the order of the file; its id is the `case_id`.

    Raises:
        FedEditError: the file cannot be read or holds no record; or naming every faulty record by
            its number from 1, with what is wrong (the first five). No text of a record is quoted:
            the message may travel to the server.
    """
    requests: list[EditRequest] = []
    problems: list[str] = []
    first_use: dict[str, int] = {}
    for number, record in enumerate(_records(file)[:limit], start=1):
        try:
            request = _request(record)
            if request.id in first_use:
                raise FedEditError(f"its case_id was used in record {first_use[request.id]}")
        except FedEditError as error:
            problems.append(f"record {number}: {error}")
            continue
        first_use[request.id] = number
        requests.append(request)
    refuse_faulty(file, problems, "records")
    if not requests:
        raise FedEditError(f"data file {file.name}: holds no record of CounterFact")
    return requests


def _records(file: Path) -> list[Any]:
    text = read_text(file)
    if text.lstrip().startswith("["):
        return _json(file, text)
    lines = enumerate(text.split("\n"), start=1)
    return [_json(file, line, number) for number, line in lines if line.strip()]


def _json(file: Path, text: str, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise FedEditError(
            f"data file {file.name}: not JSON ({error.msg}, line {line}, column {error.colno}); "
            "it must be one JSON array, or one JSON object a line"
        ) from None


def _request(record: Any) -> EditRequest:
    identity = _member(record, "case_id")
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise FedEditError(
            f"case_id must be a whole number or a string, found {type(identity).__name__}"
        )
    return EditRequest(
        id=str(identity),
        subject=_text(record, "requested_rewrite.subject"),
        prompt=_text(record, "requested_rewrite.prompt"),
        target_new=_text(record, "requested_rewrite.target_new.str").strip(),
        target_true=_text(record, "requested_rewrite.target_true.str").strip(),
        paraphrase_prompts=_prompts(record, "paraphrase_prompts"),
        neighborhood_prompts=_prompts(record, "neighborhood_prompts"),
        relation=_relation(record),
    )


def _member(record: Any, path: str) -> Any:
    """What stands in nested objects at a dotted path."""
    value, passed = record, "the record"
    for name in path.split("."):
        if not isinstance(value, dict):
            raise FedEditError(f"{passed} must be a JSON object, found {type(value).__name__}")
        if name not in value:
            raise FedEditError(f"{path} is missing; CounterFact records have it")
        value = value[name]
        passed = name if passed == "the record" else f"{passed}.{name}"
    return value


def _text(record: Any, path: str) -> str:
    value = _member(record, path)
    if not _is_text(value):
        found = "an empty one" if isinstance(value, str) else type(value).__name__
        raise FedEditError(f"{path} must be a non-empty string, found {found}")
    return value


def _relation(record: dict[str, Any]) -> str | None:
    if record["requested_rewrite"].get("relation_id") is None:
        return None
    return _text(record, "requested_rewrite.relation_id")


def _prompts(record: dict[str, Any], name: str) -> tuple[str, ...]:
    prompts = record.get(name, [])
    if not isinstance(prompts, list) or not all(_is_text(prompt) for prompt in prompts):
        raise FedEditError(f"{name} must be a list of non-empty strings")
    return tuple(prompts)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
