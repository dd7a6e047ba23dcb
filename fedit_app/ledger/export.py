"""`fedit export`: a node's edited model as a folder for other software."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from fedit_app.cli.places import Place
from fedit_app.editing.workbench import Workbench
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.lora import Adapter, adapter, write_adapter
from fedit_app.ledger.model_card import model_card
from fedit_app.models.loading import resolve_model, stored_dtype
from fedit_app.report.table import plain_table
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import new_folder
from fedit_app.support.formats import plural

FORMS = ("hf", "lora", "delta")


def export(place: Place, form: str, output: Path, rank: int | None = None) -> str:
    """Write the model that a ledger makes, with a model card; the folder is complete or absent.

    Args:
        place: where the ledger is.
        form: hf, a folder that transformers loads; lora, an adapter that PEFT loads onto the base
            model; delta, the changes of the weights.
        output: the folder to make.
        rank: of the adapter; None: exact.

    Returns:
        What was written, for the user.

    Raises:
        FedEditError: the ledger is empty, its model is not there, or `output` is.
    """
    _check(form, output, rank)
    ledger = place.open()
    if form == "hf" and place.config is not None:
        bench = place.workbench(ledger, dtype=stored_dtype(resolve_model(place.config.model)))
    else:
        bench = place.workbench(ledger)
    return write_export(bench, ledger, form, output, rank)


def write_export(
    bench: Workbench, ledger: Ledger, form: str, output: Path, rank: int | None = None
) -> str:
    """Write the model that a ledger makes of the model of a workbench; see `export`."""
    _check(form, output, rank)
    if not len(ledger):
        where = f"ledger {ledger.folder}" if ledger.folder else "ledger"
        raise FedEditError(f"{where}: no MKV in it holds, so there is no edit to export")
    with new_folder(output.expanduser().absolute()) as folder:
        said = _write(form, bench, ledger, folder, rank)
        card = model_card(form, bench, ledger, f"```text\n{said}\n```" if said else "")
        (folder / "README.md").write_text(card, encoding="utf-8")
    lines = [f"{output}: {plural(len(ledger), 'MKV')} as {form}", *([said] if said else [])]
    return "\n".join(lines) + "\n"


def _check(form: str, output: Path, rank: int | None) -> None:
    if form not in FORMS:
        raise FedEditError(f"format {form!r}: unknown; choose one of {', '.join(FORMS)}")
    if rank is not None and (form != "lora" or rank < 1):
        raise FedEditError(f"--rank {rank}: is for --format lora, and at least 1")
    if output.exists():
        raise FedEditError(f"--output {output}: exists already; name a folder that does not")


def _write(form: str, bench: Workbench, ledger: Ledger, folder: Path, rank: int | None) -> str:
    """Write all but the model card; what is to be said about it."""
    if form == "hf":
        with bench.edited(ledger) as model:
            model.model.save_pretrained(folder)
            model.tokenizer.save_pretrained(folder)
        return ""
    deltas = bench.deltas(ledger)
    if form == "lora":
        found = adapter(deltas, bench.vectors(ledger)[1], rank)
        write_adapter(found, bench.model, folder)
        return _errors(found)
    names = bench.model.module_names(deltas)
    tensors = {}
    for layer, delta in deltas.items():
        transposed = isinstance(bench.model.mlp_output(layer), Conv1D)
        tensors[f"{names[layer]}.weight"] = (delta.T if transposed else delta).float().cpu()
    about = {"fingerprint": ledger.fingerprint, "journal": ledger.head}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "deltas.safetensors", metadata=about)
    return ""


def _errors(found: Adapter) -> str:
    exact = "exact but for rounding to float32" if found.exact else "truncated"
    rows = [(layer, f"{error:.2e}") for layer, error in found.errors.items()]
    table = plain_table(("layer", "relative error"), [*rows, ("all", f"{found.error:.2e}")])
    return f"Rank {found.rank}, {exact}:\n\n{table}"
