"""A table as data, and the formats that it is written in."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedit_app.support.formats import NOT_MEASURED, printable, share

if TYPE_CHECKING:
    import rich.table

# What would end a cell, or begin markup; an underscore inside a word does neither.
_MARKDOWN = re.compile(r"[\\`*\[\]<|]|(?<!\w)_|_(?!\w)")
_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    NOT_MEASURED: "--",
}
_UNLIMITED = 10_000
_SHORT = 40

Value = str | int | float | bool | None
Json = Value | Sequence["Json"] | Mapping[str, "Json"]


@dataclass(frozen=True)
class Shown:
    """A cell that people read in another form than programs.

    Attributes:
        value: what JSON holds.
        text: what people read.
        right: whether its column is aligned to the right, as columns of numbers are.
    """

    value: Json
    text: str
    right: bool = True

    def __str__(self) -> str:
        """What people read."""
        return self.text


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


@dataclass(frozen=True)
class Change:
    """A share before and after, as one cell: `0.36 -> 0.87`."""

    before: float | None
    after: float | None

    @property
    def value(self) -> Json:
        """Both, unrounded."""
        return {"before": self.before, "after": self.after}

    def __str__(self) -> str:
        """Both as people read them; one dash where neither was measured."""
        if self.before is None and self.after is None:
            return NOT_MEASURED
        return f"{share(self.before)} -> {share(self.after)}"


Cell = Value | Shown | Figure | Change


@dataclass(frozen=True)
class Table:
    """Rows under headings.

    Attributes:
        columns: one heading a column.
        rows: one cell a column. None is shown as a dash, a bool as yes or no, a float with two
            decimals. Text may come from other nodes: every format escapes it.
        title: what the table shows; may be empty.
        code: headings of the columns that hold code: names of keys, ids.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    code: Sequence[str] = ()

    def only(self, columns: Sequence[str]) -> Table:
        """The table with those of its columns that are named, in the order of the names."""
        kept = [name for name in columns if name in self.columns]
        places = [self.columns.index(name) for name in kept]
        rows = [[row[i] for i in places] for row in self.rows]
        return dataclasses.replace(self, columns=kept, rows=rows)

    @property
    def texts(self) -> list[list[str]]:
        """The cells as people read them, without control characters."""
        return [[text_of(cell) for cell in row] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers and is aligned to the right, for every column."""
        return [any(_is_number(row[i]) for row in self.rows) for i in range(len(self.columns))]

    def markdown(self) -> str:
        """A Markdown table without a trailing line break, the title above it."""
        lines = [
            [markdown_escape(name) for name in self.columns],
            ["---:" if right else "---" for right in self.numeric],
        ]
        is_code = [name in self.code for name in self.columns]
        for row in self.texts:
            pairs = zip(row, is_code, strict=True)
            lines.append([_code(text) if code else markdown_escape(text) for text, code in pairs])
        title = f"{markdown_escape(self.title)}\n\n" if self.title else ""
        return title + "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def latex(self) -> str:
        """A LaTeX `tabular` that needs the package booktabs, without a trailing line break."""
        alignment = "".join("r" if right else "l" for right in self.numeric)
        head, *body = (
            rf"{' & '.join(_latex(cell) for cell in row)} \\" for row in [self.columns, *self.texts]
        )
        lines = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", head, r"\midrule", *body]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

    def csv(self) -> str:
        """Comma-separated values, unrounded; a change is two columns, before and after."""
        width = range(len(self.columns))
        changes = [any(isinstance(row[i], Change) for row in self.rows) for i in width]
        head: list[Json] = []
        for name, two in zip(self.columns, changes, strict=True):
            head += [f"{name} before", f"{name} after"] if two else [name]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(head)
        for row in self.rows:
            cells = zip(row, changes, strict=True)
            writer.writerow([value for cell, two in cells for value in _in_csv(cell, two)])
        return stream.getvalue()

    def records(self) -> list[Json]:
        """An object a row, for JSON: `json_name` of the heading -> value, unrounded."""
        names = list(map(json_name, self.columns))
        return [dict(zip(names, map(value_of, row), strict=True)) for row in self.rows]

    def drawn(self) -> rich.table.Table:
        """A table for rich to draw; no markup in its cells is obeyed."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        title = Text(printable(self.title)) if self.title else None
        grid = RichTable(
            title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
        )
        texts = self.texts
        for i, (name, right) in enumerate(zip(self.columns, self.numeric, strict=True)):
            code = name in self.code
            # Ids and keys stay in one line if they can; paths are folded, to be read whole.
            short = code and all(len(row[i]) <= _SHORT for row in texts)
            grid.add_column(
                Text(printable(name)),
                justify="right" if right else "left",
                overflow="ellipsis" if short else "fold",
                no_wrap=short,
                style="cyan" if code else None,
            )
        for row in texts:
            grid.add_row(*map(Text, row))
        return grid

    def text(self) -> str:
        """The table drawn in plain text, as wide as it needs to be, for a log."""
        from rich.console import Console

        stream = io.StringIO()
        Console(file=stream, width=_UNLIMITED, color_system=None, force_jupyter=False).print(
            self.drawn()
        )
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def text_of(cell: Cell) -> str:
    """A cell as people read it, without control characters."""
    if cell is None:
        return NOT_MEASURED
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.2f}" if isinstance(cell, float) else printable(str(cell)).strip()


def value_of(cell: Cell) -> Json:
    """A cell as programs read it."""
    return cell if cell is None or isinstance(cell, str | int | float) else cell.value


def _is_number(cell: Cell) -> bool:
    if isinstance(cell, Shown):
        return cell.right
    return isinstance(cell, int | float | Figure | Change) and not isinstance(cell, bool)


def _in_csv(cell: Cell, two: bool) -> list[Json]:
    """The values of a cell; None is an empty one."""
    if isinstance(cell, Change):
        return [cell.before, cell.after]
    value = value_of(cell)
    plain = printable(value) if isinstance(value, str) else value
    return [plain, None] if two else [plain]


def json_name(heading: str) -> str:
    """The key of a heading: `score on probes` -> `score_on_probes`."""
    return re.sub(r"\W+", "_", heading.lower()).strip("_")


def markdown_escape(text: str) -> str:
    """Text of anybody as Markdown that shows just this text, also in a cell of a table."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text)).strip()


def _code(text: str) -> str:
    """Text as code in a cell of a table; an empty cell stays empty."""
    inside = text.replace("`", "").replace("|", "\\|")
    return f"`{inside}`" if inside else ""


def _latex(text: str) -> str:
    parts = printable(text).split(" -> ")
    escaped = ("".join(_LATEX.get(char, char) for char in part) for part in parts)
    return r" $\to$ ".join(escaped)
