"""What commands print: drawn on a terminal, Markdown in a pipe or on demand, JSON on demand."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated

import typer

from fedit_app.support.formats import plural, printable
from fedit_app.support.tables import Cell, Json, Table, json_name, text_of, value_of

_MOST_FINDINGS = 20


class Format(StrEnum):
    """How a command prints its tables."""

    AUTO = "auto"
    MARKDOWN = "markdown"
    JSON = "json"


FormatOption = Annotated[
    Format,
    typer.Option(
        "--format", help="auto: drawn on a terminal, Markdown in a pipe; JSON is not rounded."
    ),
]

Part = str | Table | Mapping[str, Cell]


def write(parts: Mapping[str, Part], form: Format) -> None:
    """Print tables, fields and sentences, one after another.

    Args:
        parts: name -> a table, a mapping of fields, or a paragraph for people. JSON is one object:
            it has every table under its name and the fields of the mappings, and no paragraphs.
        form: how to print them.
    """
    if form is Format.JSON:
        write_json(_as_json(parts))
    elif form is Format.MARKDOWN or not sys.stdout.isatty():
        say("\n\n".join(text for text in map(_markdown, parts.values()) if text))
    else:
        _draw([part for part in parts.values() if part])


def say(text: str) -> None:
    """Print text with one line break at its end."""
    sys.stdout.write(text.rstrip("\n") + "\n")


def write_json(value: Json) -> None:
    """Print JSON."""
    say(json.dumps(value, indent=2, ensure_ascii=False))


def write_findings(findings: Sequence[str], what: str, form: Format, **more: Cell) -> int:
    """Print what a check has found, at most 20 lines of it.

    Args:
        findings: one sentence each; none if all is well.
        what: what was checked, "pool" or "ledger".
        form: how to print them.
        more: fields that go with them.

    Returns:
        Exit status: 1 if there is a finding.
    """
    if form is Format.JSON:
        write_json({"sound": not findings, "findings": list(findings), **_fields(more)})
        return int(bool(findings))
    shown = [printable(finding) for finding in findings[:_MOST_FINDINGS]]
    if len(findings) > _MOST_FINDINGS:
        shown.append(f"... and {len(findings) - _MOST_FINDINGS:,} more")
    if findings:
        shown.append(f"the {what} is damaged: {plural(len(findings), 'finding')}; restore a backup")
    else:
        shown.append(f"the {what} is sound")
    shown += [f"{name}: {text_of(cell)}" for name, cell in more.items() if cell not in ("", 0)]
    say("\n".join(shown))
    return int(bool(findings))


def _as_json(parts: Mapping[str, Part]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for name, part in parts.items():
        if isinstance(part, Table):
            found[name] = part.records()
        elif not isinstance(part, str):
            found |= _fields(part)
    return found


def _fields(part: Mapping[str, Cell]) -> dict[str, Json]:
    return {json_name(name): value_of(cell) for name, cell in part.items()}


def _markdown(part: Part) -> str:
    if isinstance(part, str):
        return part.strip("\n")
    if isinstance(part, Table):
        return part.markdown()
    return "\n".join(f"- {name}: {text_of(cell)}" for name, cell in part.items())


def _draw(parts: Sequence[Part]) -> None:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    console = Console(highlight=False)
    for i, part in enumerate(parts):
        if i:
            console.print()
        if isinstance(part, str):
            console.print(Text(part.strip("\n")), soft_wrap=True)
        elif isinstance(part, Table):
            console.print(part.drawn())
        else:
            grid = Grid.grid(padding=(0, 2))
            for name, cell in part.items():
                grid.add_row(Text(name, style="bold"), Text(text_of(cell)))
            console.print(grid)
