"""Strategies and editors on the command line: `NAME` or `NAME[KEY=VALUE,...]`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from fedit_app.config.overrides import toml_value
from fedit_app.config.run_config import ConfigValue
from fedit_app.support.errors import FedEditError

_VARIANT = re.compile(r"([^,\[\]]+)(?:\[([^\[\]]*)\])?")


@dataclass(frozen=True)
class Variant:
    """One strategy or editor in a comparison.

    Attributes:
        label: as given on the command line, and as tables show it.
        name: of the strategy or editor.
        changes: run-config keys in which it differs from the rest of the comparison.
    """

    label: str
    name: str
    changes: dict[str, ConfigValue] = field(default_factory=dict)


def parse_variants(text: str, option: str, taken: Collection[str]) -> list[Variant]:
    """Parse a list such as `fedit,fedit[selection=majority,centred=true],local`.

    Args:
        text: the list; a comma within brackets ends a value where `KEY=` follows.
        option: the option that the text is the value of, for errors.
        taken: run-config keys that a variant may not change.

    Raises:
        FedEditError: the list is malformed, or has a key of `taken` or a duplicate.
    """
    variants, rest = [], text
    while True:
        match = _VARIANT.match(rest.strip())
        if match is None:
            raise _malformed(option, text)
        variants.append(_variant(match, option, taken))
        rest = rest.strip()[match.end() :].strip()
        if not rest:
            break
        if not rest.startswith(","):
            raise _malformed(option, text)
        rest = rest[1:]
    labels = [variant.label for variant in variants]
    for label in labels:
        if labels.count(label) > 1:
            raise FedEditError(f"{option}: {label} is given twice")
    return variants


def _variant(match: re.Match[str], option: str, taken: Collection[str]) -> Variant:
    name, inside = match[1].strip(), match[2]
    if inside is None:
        return Variant(name, name)
    changes = {}
    for part in re.split(r",\s*(?=[a-z0-9-]+\s*=)", inside.strip()):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key:
            raise FedEditError(f"{option}: {match[0]}: write NAME[KEY=VALUE,...]")
        if key in taken:
            raise FedEditError(f"{option}: {match[0]}: {key} cannot be changed here")
        changes[key] = toml_value(value)
    return Variant(f"{name}[{inside.strip()}]", name, changes)


def _malformed(option: str, text: str) -> FedEditError:
    return FedEditError(
        f"{option}: {text!r} is not a list of names; write, for example, "
        "fedit,fedit[selection=majority],local"
    )
