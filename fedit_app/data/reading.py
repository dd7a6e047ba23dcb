"""What all readers of data files share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedit_app.errors import FedEditError

_MOST_PROBLEMS = 5


def read_text(file: Path) -> str:
    """The text of a data file.

    Raises:
        FedEditError: it cannot be read or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FedEditError(f"data file {file.name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise FedEditError(f"data file {file.name}: not UTF-8 text (byte {error.start})") from None


def refuse_faulty(file: Path, problems: Sequence[str], unit: str) -> None:
    """Raise an error that lists what is wrong with a data file, the first five places.

    Args:
        file: the file.
        problems: what is wrong, a place each; nothing happens if there are none.
        unit: what a place is called in the plural, "lines".

    Raises:
        FedEditError: there is a problem.
    """
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        shown = [*problems[:_MOST_PROBLEMS], *([f"and {more} more {unit}"] if more > 0 else [])]
        raise FedEditError(f"data file {file.name}: " + "; ".join(shown))
