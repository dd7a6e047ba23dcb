"""The folder of an edited model: what other software loads, and beside it the ledger it is made of.

    DIR/                    the export: a Hugging Face folder, an adapter, or the changes alone
        ledger/             the MKVs, the journal, and requests.jsonl with the texts of the requests

With the base model and this ledger the model can be edited further, asked before and after, and
rolled back. What is handed on without it is the same model, and tells of no request's text.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from fedit_app.editing.workbench import Workbench
from fedit_app.ledger.export import check_export, write_parts
from fedit_app.ledger.index import INDEX, current_head
from fedit_app.ledger.ledger import SUMS, Ledger
from fedit_app.ledger.lora import ADAPTER_CONFIG, Adapter
from fedit_app.ledger.weights import WEIGHTS, record_weights
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import new_folder

LEDGER, TEXTS = "ledger", "requests.jsonl"

# What FedEdit writes in one form and not in another, or as more or fewer files.
_WRITTEN = (
    *(LEDGER, "config.json", "generation_config.json", ADAPTER_CONFIG),
    *WEIGHTS,
)


def ledger_in(folder: Path) -> Path | None:
    """Where the ledger of an edited model is; None if the folder is not that of one."""
    found = folder / LEDGER
    return found if (found / INDEX).exists() else None


def form_of(folder: Path) -> str:
    """As what an edited model is written in its folder: hf, lora or delta."""
    if (folder / ADAPTER_CONFIG).exists():
        return "lora"
    return "hf" if (folder / "config.json").exists() else "delta"


def write_edited_model(
    bench: Workbench,
    ledger: Ledger,
    output: Path,
    form: str = "hf",
    rank: int | None = None,
    dtype: str = "",
    replace: bool = False,
    seen: str | None = None,
) -> Adapter | None:
    """Write an edited model with its ledger; the folder is complete or absent.

    Args:
        bench: the model and the settings of the edits.
        ledger: one with a folder, which is copied.
        output: the folder to make.
        form, rank, dtype: see `export.write_export`.
        replace: whether it takes the place of the edited model that is there; other files in its
            folder are kept.
        seen: head of the ledger of that one, as it was when this ledger was copied from it; None:
            whatever is there is replaced.

    Returns:
        The adapter of the form lora; None of the others.

    Raises:
        FedEditError: see `export.check_export`; an adapter or changes would hold no edit; or the
            model that is there has changed since it was seen.
    """
    output = output.expanduser().absolute()
    check_export(form, None if replace else output, rank)
    if not len(ledger) and form != "hf":
        raise FedEditError(
            f"{output}: no fact would be left, and {form} holds edits alone; delete the folder"
        )
    if ledger.folder is None:
        raise ValueError("a ledger in memory has no journal to copy")
    with new_folder(output, replace, _as_seen(output, seen)) as folder:
        found = write_parts(form, bench, ledger, folder, rank, dtype)
        left_out = shutil.ignore_patterns(".lock", SUMS)
        shutil.copytree(ledger.folder, folder / LEDGER, ignore=left_out)
        record_weights(folder, folder / LEDGER, ledger.head)
        if output.exists():
            _keep_others(output, folder)
    return found


def _keep_others(old: Path, new: Path) -> None:
    """Take what somebody else has put into the old folder of a model along into the new one."""
    there = {part.name for part in new.iterdir()}
    for part in old.iterdir():
        if part.name in there or any(fnmatch.fnmatch(part.name, name) for name in _WRITTEN):
            continue
        if part.is_dir() and not part.is_symlink():
            shutil.copytree(part, new / part.name, symlinks=True, copy_function=_link)
        else:
            _link(part, new / part.name)


def _link(old: Path | str, new: Path | str) -> None:
    """Give a file a second name; a copy where the disk has none."""
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:
        shutil.copy2(old, new, follow_symlinks=False)


@contextmanager
def _as_seen(folder: Path, head: str | None) -> Iterator[None]:
    """Keep other processes from an edited model, if it is still the one that was seen.

    Raises:
        FedEditError: it is not.
    """
    if head is None or not folder.exists():
        yield
        return
    ledger = ledger_in(folder) or folder
    with filelock.FileLock(ledger / ".lock"):
        if ledger_in(folder) is None or current_head(ledger).hash != head:
            raise FedEditError(
                f"{folder}: another process has changed it in the meantime, and nothing was "
                "written; repeat the command, or begin again with Editor.from_pretrained"
            )
        yield
