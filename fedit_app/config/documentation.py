"""What documents and files say of the settings, from the one place where they are written.

`python -m fedit_app.config.documentation` brings `docs/run-config.md` and the defaults in
`pyproject.toml` up to date; run it after a change of a run-config key.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic.fields import FieldInfo

from fedit_app.config.run_config import SUBJECTS, RunConfig
from fedit_app.config.settings import Settings, about, expected, key_name
from fedit_app.support.tables import Table

_WIDTH = 98
_SECTION = "[tool.flwr.app.config]\n"
_PAGE_HEAD = """\
# Run configuration

All keys of a run, by subject. Give them in a preset (`fedit run --config FILE.toml`) or one by one
(`-c KEY=VALUE`). A key without a default value is left out, or written as `""`; the column says
what holds then.

`python -m fedit_app.config.documentation` writes this page from the classes in `fedit_app/config/`.
"""


def key_table(kinds: Sequence[type[Settings]] = SUBJECTS) -> Table:
    """A row for every key: key, default, values, meaning.

    Args:
        kinds: the settings classes, by default all of the run configuration; a key that several
            of them have stands at the first.
    """
    fields = {name: field for kind in reversed(kinds) for name, field in kind.model_fields.items()}
    names = dict.fromkeys(name for kind in kinds for name in kind.model_fields)
    rows = [_row(name, fields[name]) for name in names]
    return Table(("key", "default", "values", "meaning"), rows, code=("key",))


def _row(name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    absent, unit, source = (about(field, what) for what in ("absent", "unit", "source"))
    default = absent if field.default is None else _toml(field.default)
    values = f"{expected(field)}, in {unit}" if unit else expected(field)
    meaning = f"{field.description} ({source})" if source else str(field.description)
    return key_name(name), default, values, meaning


def run_config_page() -> str:
    """The text of docs/run-config.md: a section per subject."""
    sections, shown = [_PAGE_HEAD], set[str]()
    for kind in SUBJECTS:
        table = key_table([kind])
        rows = [row for row in table.rows if row[0] not in shown]
        shown |= {str(row[0]) for row in rows}
        title = (kind.__doc__ or "").splitlines()[0].rstrip(".")
        sections.append(f"## {title}\n\n{replace(table, rows=rows).markdown()}\n")
    return "\n".join(sections)


def flower_defaults() -> str:
    """The lines of pyproject.toml that give Flower every key with its default."""
    return tomli_w.dumps(RunConfig().as_dict())


def with_flower_defaults(pyproject: str) -> str:
    """The text of a pyproject.toml with these lines in the place of its own."""
    before, section, after = pyproject.partition(_SECTION)
    rest = re.search(r"^\s*\[", after, flags=re.MULTILINE)
    return before + section + flower_defaults() + (after[rest.start() :] if rest else "")


def commented_keys(settings: Settings) -> str:
    """Settings as TOML, every key below its explanation; an optional key without value commented.

    Args:
        settings: the settings.
    """
    parts = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        example, absent = about(field, "example"), about(field, "absent")
        comment = textwrap.fill(
            _sentence(field.description or "") + (f" Empty: {absent}." if absent else ""),
            _WIDTH,
            initial_indent="# ",
            subsequent_indent="# ",
        )
        is_comment = value is None and example is not None
        shown = example if is_comment else "" if value is None else value
        parts.append(f"{comment}\n{'# ' if is_comment else ''}{key_name(name)} = {_toml(shown)}\n")
    return "\n".join(parts)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"value": value}).partition(" = ")[2].strip()


def main() -> None:
    """Write docs/run-config.md and the defaults in pyproject.toml of the source folder."""
    root = Path(__file__).parents[2]
    pyproject = root / "pyproject.toml"
    text = pyproject.read_text(encoding="utf-8")
    pyproject.write_text(with_flower_defaults(text), encoding="utf-8")
    (root / "docs" / "run-config.md").write_text(run_config_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
