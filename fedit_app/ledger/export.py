"""A node's edited model as a folder for other software."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import Parameter
from transformers import PreTrainedModel

from fedit_app.editing.workbench import Workbench
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.lora import Adapter, adapter, write_adapter
from fedit_app.ledger.model_card import model_card
from fedit_app.models.checkpoint import DTYPES, weight_files
from fedit_app.models.editable import EditableModel
from fedit_app.models.loading import resolve_model
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import free_bytes, new_folder
from fedit_app.support.formats import byte_size

FORMS = ("hf", "lora", "delta")


def write_export(
    bench: Workbench,
    ledger: Ledger,
    form: str,
    output: Path,
    rank: int | None = None,
    dtype: str = "",
) -> Adapter | None:
    """Write the model that a ledger makes, with a model card; the folder is complete or absent.

    Args:
        bench: the model and the settings of the edits.
        ledger: the accepted MKVs.
        form: hf, a folder that transformers loads; lora, an adapter that PEFT loads onto the base
            model; delta, the changes of the weights.
        output: the folder to make.
        rank: of the adapter; None: exact.
        dtype: of the weights of a whole model, one of `loading.DTYPES`; "": as in memory.

    Returns:
        The adapter of the form lora; None of the others.

    Raises:
        FedEditError: see `check_export`, or the ledger is empty.
    """
    check_export(form, output, rank)
    if not len(ledger):
        where = f"ledger {ledger.folder}" if ledger.folder else "ledger"
        raise FedEditError(f"{where}: no MKV in it holds, so there is no edit to export")
    with new_folder(output.expanduser().absolute()) as folder:
        return write_parts(form, bench, ledger, folder, rank, dtype)


def check_export(form: str, output: Path | None, rank: int | None = None) -> None:
    """Check what can be checked of an export before the ledger is read.

    Args:
        form, output, rank: see `write_export`; no output: the folder that is there is replaced.

    Raises:
        FedEditError: no such form, the form has no rank, or the folder is there already.
    """
    if form not in FORMS:
        raise FedEditError(f"format {form!r}: unknown; choose one of {', '.join(FORMS)}")
    if rank is not None and (form != "lora" or rank < 1):
        raise FedEditError(f"--rank {rank}: is for --format lora, and at least 1")
    if output is not None and output.exists():
        raise FedEditError(f"--output {output}: exists already; name a folder that does not")


def check_space(form: str, output: Path, model: str) -> None:
    """Check, before anything is computed, that the disk has room for a whole model.

    Args:
        form: see `write_export`; the other forms are small.
        output: the folder to make, or to replace, which stays until the new one is complete.
        model: name of the base model, whose weights take as much.

    Raises:
        FedEditError: it has not.
    """
    if form != "hf":
        return
    needed = sum(file.stat().st_size for file in weight_files(resolve_model(model)))
    free = free_bytes(output.expanduser().absolute())
    if free < needed:
        raise FedEditError(
            f"{output}: no space on its disk for the model, which takes {byte_size(needed)} where "
            f"{byte_size(free)} are free; nothing was changed. Free some space there"
        )


def write_parts(
    form: str,
    bench: Workbench,
    ledger: Ledger,
    folder: Path,
    rank: int | None = None,
    dtype: str = "",
) -> Adapter | None:
    """Write the files of an export into a folder that exists; see `write_export`."""
    found = _write(form, bench, ledger, folder, rank, dtype)
    more = f"{found.described}:\n\n{found.error_table().markdown()}" if found else ""
    (folder / "README.md").write_text(model_card(form, bench, ledger, more), encoding="utf-8")
    usual = (folder / "README.md").stat().st_mode
    for file in folder.iterdir():  # safetensors makes files that only their owner can read
        file.chmod(usual)
    return found


def _write(
    form: str, bench: Workbench, ledger: Ledger, folder: Path, rank: int | None, dtype: str
) -> Adapter | None:
    """Write all but the model card."""
    if form == "hf":
        with bench.edited(ledger) as model:
            _write_model(model, folder, dtype)
            model.tokenizer.save_pretrained(folder)
        return None
    deltas = bench.deltas(ledger)
    if form == "lora":
        found = adapter(deltas, bench.pairs(ledger).shifts, rank)
        write_adapter(found, bench.model, folder)
        return found
    names = bench.model.module_names(deltas)
    tensors = {}
    for layer, delta in deltas.items():
        shown = delta.T if bench.model.is_transposed(layer) else delta
        tensors[f"{names[layer]}.weight"] = shown.float().cpu()
    about = {"fingerprint": ledger.fingerprint, "journal": ledger.head}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "deltas.safetensors", metadata=about)
    return None


def _write_model(edited: EditableModel, folder: Path, dtype: str) -> None:
    """Write a model; one that is in memory in another type than its checkpoint in the latter's."""
    model = edited.model
    with _in_type(model, DTYPES.get(dtype, model.dtype)):
        # transformers cannot give quantised weights back the names that a checkpoint may have had.
        model.save_pretrained(folder, save_original_format=not edited.quantised)


@contextmanager
def _in_type(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """A model in another type inside the block, but for its quantised weights."""
    noted, plain = model.config.dtype, [p for p in model.parameters() if type(p) is Parameter]
    kept = [] if dtype == model.dtype else [(p, p.data) for p in plain if p.is_floating_point()]
    try:
        for parameter, data in kept:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
        model.config.dtype = noted  # transformers notes the one that it has written
