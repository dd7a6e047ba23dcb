"""A node's edited model as a folder for other software."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from fedit_app.editing.workbench import Workbench
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.lora import Adapter, adapter, write_adapter
from fedit_app.ledger.model_card import model_card
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import new_folder

FORMS = ("hf", "lora", "delta")


def write_export(
    bench: Workbench, ledger: Ledger, form: str, output: Path, rank: int | None = None
) -> Adapter | None:
    """Write the model that a ledger makes, with a model card; the folder is complete or absent.

    Args:
        bench: the model and the settings of the edits.
        ledger: the accepted MKVs.
        form: hf, a folder that transformers loads; lora, an adapter that PEFT loads onto the base
            model; delta, the changes of the weights.
        output: the folder to make.
        rank: of the adapter; None: exact.

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
        found = _write(form, bench, ledger, folder, rank)
        more = f"{found.described}:\n\n{found.error_table().markdown()}" if found else ""
        (folder / "README.md").write_text(model_card(form, bench, ledger, more), encoding="utf-8")
    return found


def check_export(form: str, output: Path, rank: int | None = None) -> None:
    """Check what can be checked of an export before the ledger is read.

    Args:
        form, output, rank: see `write_export`.

    Raises:
        FedEditError: no such form, the form has no rank, or the folder is there already.
    """
    if form not in FORMS:
        raise FedEditError(f"format {form!r}: unknown; choose one of {', '.join(FORMS)}")
    if rank is not None and (form != "lora" or rank < 1):
        raise FedEditError(f"--rank {rank}: is for --format lora, and at least 1")
    if output.exists():
        raise FedEditError(f"--output {output}: exists already; name a folder that does not")


def _write(
    form: str, bench: Workbench, ledger: Ledger, folder: Path, rank: int | None
) -> Adapter | None:
    """Write all but the model card."""
    if form == "hf":
        with bench.edited(ledger) as model:
            model.model.save_pretrained(folder)
            model.tokenizer.save_pretrained(folder)
        return None
    deltas = bench.deltas(ledger)
    if form == "lora":
        found = adapter(deltas, bench.vectors(ledger)[1], rank)
        write_adapter(found, bench.model, folder)
        return found
    names = bench.model.module_names(deltas)
    tensors = {}
    for layer, delta in deltas.items():
        transposed = isinstance(bench.model.mlp_output(layer), Conv1D)
        tensors[f"{names[layer]}.weight"] = (delta.T if transposed else delta).float().cpu()
    about = {"fingerprint": ledger.fingerprint, "journal": ledger.head}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "deltas.safetensors", metadata=about)
    return None
