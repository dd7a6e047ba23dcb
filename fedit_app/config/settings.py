"""The mechanism of all settings: typed classes that check and document themselves.

Field `a_b` of a `Settings` class is the key `a-b` of a TOML file or of Flower's run configuration.
Parsing is forgiving where the meaning of a value is certain (the text "4" for an integer), and an
error names every key that is wrong.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from fedit_app.support.errors import FedEditError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Part = TypeVar("Part", bound="Settings")
NAME_RULE = "1 to 64 letters, digits, ., _ and -, the first a letter or digit"


def is_name(text: str) -> bool:
    """Whether a text can be the name of a node or federation, and of its folder: `NAME_RULE`."""
    return bool(_NAME.fullmatch(text))


def key(
    default: Any,
    doc: str,
    *,
    absent: str = "",
    source: str = "",
    unit: str = "",
    example: Any = None,
    path: Literal["always", "existing", ""] = "",
    **limits: float,
) -> Any:
    """A field of a `Settings` class.

    Args:
        default: its default; None for "not given".
        doc: one line on what it means, including what special values mean.
        absent: what holds if the key is not given.
        source: the paper or measurement behind the default.
        unit: the unit of the value.
        example: the value that a commented file shows where the key is not given.
        path: whether a command line reads the value as a path relative to the current folder:
            "always" but for URIs, or if it is an "existing" one, where it may also be a name.
        limits: `ge`, `gt` and `le`, as in `pydantic.Field`.
    """
    extra = {"absent": absent, "source": source, "unit": unit, "example": example, "path": path}
    bounds: dict[str, Any] = dict(limits)
    return Field(default, description=doc, json_schema_extra=extra, **bounds)


def key_name(field_name: str) -> str:
    """The key of a field: `a-b` for `a_b`."""
    return field_name.replace("_", "-")


def about(field: FieldInfo, what: Literal["absent", "source", "unit", "example", "path"]) -> Any:
    """What `key` says of a field beside its meaning."""
    extra = field.json_schema_extra
    return extra.get(what) if isinstance(extra, dict) else None


class Settings(BaseModel):
    """Base class of all settings: immutable, hashable, without unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=key_name,
        validate_by_name=True,
        validate_by_alias=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> object:
        """Read "" as "not given", and refuse true and false as numbers."""
        field = cls.model_fields[str(info.field_name)]
        if value == "" and is_optional(field):
            return None
        if isinstance(value, bool) and value_type(field) in (int, float):
            raise PydanticCustomError("not_a_number", "must be a number")
        return value

    @classmethod
    def checked(cls, values: Mapping[str, Any], place: str) -> Self:
        """Read settings from keys and values.

        Args:
            values: key -> value; a key that is absent takes its default.
            place: where the values stand, for the error.

        Raises:
            FedEditError: names every unknown key and every invalid value.
        """
        try:
            return cls.model_validate(dict(values), by_alias=True, by_name=False)
        except ValidationError as error:
            problems = dict.fromkeys(_problem(cls, values, part) for part in error.errors())
            raise FedEditError(f"{place}: " + "; ".join(problems)) from None

    def part(self, kind: type[Part]) -> Part:
        """These settings reduced to the fields of one of their base classes."""
        return kind.model_construct(**{name: getattr(self, name) for name in kind.model_fields})


def is_optional(field: FieldInfo) -> bool:
    """Whether a key may be absent, so that its field is None."""
    return NoneType in get_args(field.annotation)


def value_type(field: FieldInfo) -> Any:
    """The type of a field's value where there is one."""
    kind: Any = field.annotation
    if is_optional(field):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def expected(field: FieldInfo) -> str:
    """Type and range of a key in words, such as "a number from 0 to 1"."""
    kind = value_type(field)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if kind is tuple or get_origin(kind) is tuple:
        return "a list of strings" if str in get_args(kind) else 'layers such as "4-8" or "4,6,8"'
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    return f"{names[kind]}{_range(field)}"


def _range(field: FieldInfo) -> str:
    limits: dict[type, Any] = {type(limit): limit for limit in field.metadata}
    low, above, high = limits.get(Ge), limits.get(Gt), limits.get(Le)
    if low and high:
        return f" from {low.ge} to {high.le}"
    bounds = [f">= {low.ge}"] if low else []
    bounds += [f"> {above.gt}"] if above else []
    bounds += [f"<= {high.le}"] if high else []
    return f" {' and '.join(bounds)}" if bounds else ""


def _problem(kind: type[Settings], values: Mapping[str, Any], error: Any) -> str:
    """One problem of a validation in words: key, value found, and what is right."""
    if not error["loc"]:
        return str(error["ctx"]["error"])
    name = str(error["loc"][0])
    fields = {key_name(field_name): field for field_name, field in kind.model_fields.items()}
    if name not in fields:
        close = difflib.get_close_matches(name, fields, n=1)
        return f"unknown key {name!r}" + (f", did you mean {close[0]!r}?" if close else "")
    field = fields[name]
    if error["type"] == "value_error":
        return f"{name} = {values[name]!r} {error['ctx']['error']}"
    problem = f"{name} = {values[name]!r} must be {expected(field)}"
    absent = about(field, "absent")
    return f"{problem}; leave it out for {absent}" if absent else problem


def _absolute(path: str) -> str:
    if not Path(path).expanduser().is_absolute():
        raise ValueError("must be an absolute path (Flower runs the app in a folder of its own)")
    return path


AbsolutePath = Annotated[str, AfterValidator(_absolute)]
