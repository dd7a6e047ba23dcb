"""A table as data, and the formats that it is written in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

from fedit_app.support.formats import NOT_MEASURED, display_width, printable

_MARKDOWN = {char: f"\\{char}" for char in r"\`*_[]<>|"}
_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    NOT_MEASURED: "--",
}


@dataclass(frozen=True)
class Figure:
    """A measured number in a cell of a table.

    Attributes:
        value: the number; None where nothing was measured.
        digits: decimals that people see.
        spread: its sample standard deviation; None without one.
        percent: whether people see a ratio as a whole percentage.
    """

    value: float | None
    digits: int = 2
    spread: float | None = None
    percent: bool = False

    def __str__(self) -> str:
        """The number as people read it, such as `0.75 ± 0.07`; a dash where it is None."""
        if self.value is None:
            return NOT_MEASURED
        if self.percent:
            return f"{self.value * 100:.0f} %"
        spread = "" if self.spread is None else f" ± {self.spread:.{self.digits}f}"
        return f"{self.value:.{self.digits}f}{spread}"


Cell = str | int | Figure


@dataclass(frozen=True)
class Table:
    """Rows under headings.

    Attributes:
        title: what the table shows; may be empty.
        columns: one heading a column.
        rows: one cell a column. Text may come from other nodes: every format escapes it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def texts(self) -> list[list[str]]:
        """The cells as people read them, without control characters."""
        return [[_text(cell) for cell in row] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers and is aligned to the right, for every column."""
        return [
            any(isinstance(row[place], int | Figure) for row in self.rows)
            for place in range(len(self.columns))
        ]

    def text(self) -> str:
        """Monospaced text without a trailing line break; the title is left out."""
        texts = self.texts
        columns = zip(self.columns, *texts, strict=True)
        widths = [max(map(display_width, column)) for column in columns]
        lines = [list(self.columns), ["-" * width for width in widths], *texts]
        numeric = self.numeric
        return "\n".join(
            "  ".join(
                _padded(cell, width, right)
                for cell, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in lines
        )

    def markdown(self) -> str:
        """A Markdown table without a trailing line break, the title above it."""
        rule = ["---:" if right else "---" for right in self.numeric]
        lines = [
            [_escaped(name, _MARKDOWN) for name in self.columns],
            rule,
            *([_escaped(cell, _MARKDOWN) for cell in row] for row in self.texts),
        ]
        title = f"{_escaped(self.title, _MARKDOWN)}\n\n" if self.title else ""
        return title + "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def latex(self) -> str:
        """A LaTeX `tabular` that needs the package booktabs, without a trailing line break."""
        alignment = "".join("r" if right else "l" for right in self.numeric)
        head, *body = (
            rf"{' & '.join(_escaped(cell, _LATEX) for cell in row)} \\"
            for row in [self.columns, *self.texts]
        )
        lines = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", head, r"\midrule", *body]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

    def csv(self) -> str:
        """CSV with a line of headings; numbers are not rounded, an empty cell has none."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_plain(cell) for cell in row] for row in self.rows)
        return stream.getvalue()

    def json(self) -> str:
        """A JSON array with an object per row: heading -> cell; numbers are not rounded."""
        rows = [dict(zip(self.columns, map(_plain, row), strict=True)) for row in self.rows]
        return json.dumps(rows, indent=2, ensure_ascii=False)


def _text(cell: Cell) -> str:
    return f"{cell:,}" if isinstance(cell, int) else printable(str(cell)).strip()


def _plain(cell: Cell) -> str | int | float | None:
    return cell.value if isinstance(cell, Figure) else cell


def _escaped(text: str, signs: dict[str, str]) -> str:
    return "".join(signs.get(char, char) for char in printable(text))


def _padded(text: str, width: int, right: bool) -> str:
    gap = " " * (width - display_width(text))
    return gap + text if right else text + gap


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """See `Table.text`."""
    return Table("", columns, rows).text()
