"""Numbers and foreign text in the form that people read."""

import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path

NOT_MEASURED = "–"


def share(value: float | None) -> str:
    """A share in 0..1 with two decimals, a dash where nothing was measured."""
    return NOT_MEASURED if value is None else f"{value:z.2f}"  # -0.00 is 0.00


def percent(value: float) -> str:
    """A ratio as a whole percentage: `0.964 -> "96 %"`."""
    return f"{value * 100:.0f} %"


def byte_size(count: int) -> str:
    """A number of bytes in decimal units: `1_234_567 -> "1.2 MB"`."""
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def duration(seconds: float | None) -> str:
    """A time span in its two largest units: `754.2 -> "12 min 34 s"`."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def typed(path: Path | str) -> str:
    """A path or name as it is typed in a shell: `my server -> "'my server'"`."""
    return shlex.quote(str(path))


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """A count with its noun: `1 -> "1 node"`, `3 -> "3 nodes"`."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def listing(names: Sequence[str]) -> str:
    """Names as a phrase: `["a", "b", "c"] -> "a, b and c"`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def printable(text: str) -> str:
    """Make text of another node safe to show: control characters and line breaks become spaces.

    A node chooses its own name and error texts. A terminal would execute escape sequences in them,
    and XML cannot represent them.
    """
    return "".join(
        " " if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char
        for char in str(text)
    )


def shorten(text: str, width: int) -> str:
    """Printable text of at most `width` terminal columns, cut with an ellipsis if it is longer."""
    from rich.cells import cell_len

    text = printable(text)
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) > width - 1:
        text = text[:-1]
    return text.rstrip() + "…"
