"""Settings whose every key is documented once: dataclass fields that check and explain themselves.

A field `a_b` made by `key` is the key `a-b` of a TOML file or of Flower's run configuration.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import tomli_w

from fedit_app.support.errors import FedEditError

_WIDTH = 98
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "1 to 64 letters, digits, ., _ and -, the first a letter or digit"


def key(
    default: Any,
    doc: str,
    *,
    kind: type | None = None,
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    example: Any = None,
) -> Any:
    """A dataclass field that is a key of a configuration.

    Args:
        default: its default; None for a key that has no value unless it is given.
        doc: what it means.
        kind: its type, str, int, float, bool or tuple (of strings); None for that of the default.
        choices: the values it may have, if they are few.
        at_least: smallest number.
        at_most: largest number.
        example: what to show in a file where the key is not given.
    """
    metadata = {
        "doc": doc,
        "kind": kind or type(default),
        "choices": choices,
        "at_least": at_least,
        "at_most": at_most,
        "example": example,
    }
    return dataclasses.field(default=default, metadata=metadata)


def key_name(field: dataclasses.Field[Any]) -> str:
    """The key of a field."""
    return field.name.replace("_", "-")


def is_name(text: str) -> bool:
    """Whether a text can be the name of a node or federation, and of its folder: `NAME_RULE`."""
    return bool(_NAME.fullmatch(text))


def check_keys(kind: type, values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Check the values of a configuration against a dataclass of `key` fields.

    Args:
        kind: the dataclass.
        values: key -> value.
        place: where they stand, for the error.

    Returns:
        Field name -> value, of the keys that are given.

    Raises:
        FedEditError: naming every unknown key, wrong type, wrong choice or value out of range.
    """
    fields = {key_name(field): field for field in dataclasses.fields(kind)}
    problems = [_unknown(name, list(fields)) for name in values if name not in fields]
    checked = {}
    for name, field in fields.items():
        if name in values:
            value, problem = _check(name, field, values[name])
            checked[field.name] = value
            problems += [problem] if problem else []
    if problems:
        raise FedEditError(f"{place}: " + "; ".join(problems))
    return checked


def key_range(field: dataclasses.Field[Any]) -> str:
    """Type and range, or choices, of a key in words."""
    if field.metadata["choices"]:
        return " | ".join(field.metadata["choices"])
    low, high = field.metadata["at_least"], field.metadata["at_most"]
    bounds = [f">= {low}"] if low is not None else []
    bounds += [f"<= {high}"] if high is not None else []
    return ", ".join([field.metadata["kind"].__name__, *bounds])


def commented_keys(settings: Any, leave_out: tuple[str, ...] = ()) -> str:
    """Settings as TOML, every key below its explanation; a key without value as a comment.

    Args:
        settings: an instance of a dataclass of `key` fields.
        leave_out: names of fields that do not go into the file.
    """
    parts = []
    for field in dataclasses.fields(settings):
        if field.name in leave_out:
            continue
        value = getattr(settings, field.name)
        comment = textwrap.fill(
            field.metadata["doc"], _WIDTH, initial_indent="# ", subsequent_indent="# "
        )
        shown = field.metadata["example"] if value is None else value
        line = f"{key_name(field)} = {_toml(shown)}"
        parts.append(f"{comment}\n{'# ' if value is None else ''}{line}\n")
    return "\n".join(parts)


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"value": value}).partition(" = ")[2].strip()


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown key {name!r}" + (f", did you mean {close[0]!r}?" if close else "")


def _check(name: str, field: dataclasses.Field[Any], value: Any) -> tuple[Any, str | None]:
    expected = field.metadata["kind"]
    if expected is float and type(value) is int:
        value = float(value)
    if expected is tuple:
        if type(value) is list and all(isinstance(part, str) and part for part in value):
            return tuple(value), None
        return value, f"{name} = {value!r} must be a list of strings"
    if type(value) is not expected:
        return value, f"{name} = {value!r} must be {_article(expected.__name__)}"
    if expected is float and not math.isfinite(value):
        return value, f"{name} = {value} must be a finite number"
    choices = field.metadata["choices"]
    if choices and value not in choices:
        return value, f"{name} = {value!r} must be one of {', '.join(choices)}"
    low, high = field.metadata["at_least"], field.metadata["at_most"]
    if low is not None and not value >= low:
        return value, f"{name} = {value} must be at least {low}"
    if high is not None and not value <= high:
        return value, f"{name} = {value} must be at most {high}"
    return value, None


def _article(type_name: str) -> str:
    return f"an {type_name}" if type_name[0] in "aeiou" else f"a {type_name}"
