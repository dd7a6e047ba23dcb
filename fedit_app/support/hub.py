"""Data sets of the Hugging Face hub by name, or of a folder with the same layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedit_app.support.errors import FedEditError

PREFIX = "hub:"


def load_rows(key: str, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set.

    Args:
        key: the run-config key that names it, for the error.
        name: hub:DATASET[:CONFIG[:SPLIT]], DATASET an OWNER/NAME or a folder; without a split
            "train". CONFIG may be empty.

    Raises:
        FedEditError: it cannot be loaded or read.
    """
    from datasets import load_dataset  # takes a second, and few runs need it

    dataset, config, split, *more = [*name.removeprefix(PREFIX).split(":"), "", ""]
    if any(more) or not dataset:
        raise FedEditError(f"{key}: {name!r} is not a data set; write hub:DATASET[:CONFIG[:SPLIT]]")
    try:
        yield from load_dataset(dataset, config or None, split=split or "train", streaming=True)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise FedEditError(
            f"{key}: cannot load {name!r} ({type(error).__name__}: {reason}); "
            "write hub:DATASET[:CONFIG[:SPLIT]]"
        ) from error
