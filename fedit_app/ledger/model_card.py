"""The model card of an export: what it is, how to load it, and where every MKV in it comes from."""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import UTC, datetime

from fedit_app.config.editing import layers_text
from fedit_app.editing.workbench import Workbench
from fedit_app.ledger.ledger import Ledger
from fedit_app.support.formats import plural
from fedit_app.support.tables import Cell, Table, markdown_escape

_LIBRARIES = {"hf": "transformers", "lora": "peft", "delta": "safetensors"}
_LOADING = {
    "hf": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)""",
    "lora": """\
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE_MODEL), FOLDER)""",
    "delta": """\
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(BASE_MODEL)
for name, delta in load_file(f"{FOLDER}/deltas.safetensors").items():
    model.get_parameter(name).data += delta.to(model.dtype)""",
}
_BASE = "from_pretrained(BASE_MODEL)"
_WHAT = {
    "hf": "The whole model with the edits in its weights.",
    "lora": "A LoRA adapter that adds the edits to the base model.",
    "delta": "The changes of the edited weights, each in the layout of its parameter.",
}


def model_card(form: str, bench: Workbench, ledger: Ledger, more: str = "") -> str:
    """The README.md of an export. It contains no text and no id of an edit request.

    Args:
        form: hf, lora or delta.
        bench: the model and the settings of the edits.
        ledger: what was exported.
        more: a paragraph about this form.
    """
    mkvs = ledger.holding
    overruled = len(ledger.entries) - len(mkvs)
    entries = [ledger.entries[mkv.id] for mkv in mkvs]
    counts = Counter((entry.mkv.node, entry.slot) for entry in entries)
    settings = {**_settings(bench), **bench.components}
    name = markdown_escape(bench.model.name)
    provenance: list[tuple[str, Cell]] = [
        ("base model", bench.model.name),
        ("written", datetime.now(UTC).strftime("%Y-%m-%d")),
        ("weights and tokenizer of the base model (hash)", bench.model.fingerprint),
        ("fingerprint of model and settings", ledger.fingerprint),
        ("MKVs in the weights", len(mkvs)),
        ("of this node's own requests they fulfil", sum(len(entry.requests) for entry in entries)),
        ("overruled by one of these, not in the weights", overruled),
        ("head of the ledger's journal", ledger.head),
    ]
    tables = {
        "Provenance": Table(("", "value"), provenance, code=("value",)),
        "Origin": Table(
            ("computed by", "accepted in slot", "MKVs"),
            [(node, slot, count) for (node, slot), count in sorted(counts.items())],
        ),
        "Settings": Table(("", "value"), [(key, str(value)) for key, value in settings.items()]),
        "MKVs": Table(
            ("id", "computed by", "accepted in slot"),
            [(entry.mkv.id, entry.mkv.node, entry.slot) for entry in entries],
            code=("id",),
        ),
    }
    loading = _LOADING[form]
    if form == "delta" and bench.model.quantised:
        loading = loading.replace(_BASE, f"{_BASE}.dequantize()")
    parts = [
        f"---\nlibrary_name: {_LIBRARIES[form]}\npipeline_tag: text-generation\n"
        "tags:\n- fedit\n- knowledge-editing\n---",
        f"# {name}, edited with {plural(len(mkvs), 'MKV')}",
        f"{_WHAT[form]} Exported by FedEdit: each MKV is a corrected fact, or several about one "
        "subject, as vectors without their texts.",
        f"```python\n{loading}\n```",
        more,
    ]
    for title, table in tables.items():
        parts += [f"## {title}", table.markdown()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _settings(bench: Workbench) -> dict[str, object]:
    given = {
        field.name.replace("_", "-"): getattr(bench.settings, field.name)
        for field in dataclasses.fields(bench.settings)
    }
    given["layers"] = layers_text(bench.settings.layers)
    return {key: value for key, value in given.items() if value is not None}
