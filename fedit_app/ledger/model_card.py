"""The model card of an export: what it is, how to load it, and where every MKV in it comes from."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from fedit_app.editing.workbench import Workbench
from fedit_app.ledger.ledger import Ledger
from fedit_app.support.formats import plural, printable

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
_WHAT = {
    "hf": "The whole model with the edits in its weights.",
    "lora": "A LoRA adapter that adds the edits to the base model.",
    "delta": "The changes of the edited weights, each as its parameter lies in the base model.",
}


def model_card(form: str, bench: Workbench, ledger: Ledger, more: str = "") -> str:
    """The README.md of an export. No text and no id of an edit request is in it.

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
    by_origin = [(_cell(node), slot, count) for (node, slot), count in sorted(counts.items())]
    ids = [(f"`{entry.mkv.id}`", _cell(entry.mkv.node), entry.slot) for entry in entries]
    settings = {**_settings(bench), **bench.components}
    name = printable(bench.model.name)
    parts = [
        f"---\nlibrary_name: {_LIBRARIES[form]}\npipeline_tag: text-generation\n"
        "tags:\n- fedit\n- knowledge-editing\n---",
        f"# {_cell(name)}, edited with {plural(len(mkvs), 'MKV')}",
        f"{_WHAT[form]} Exported by FedEdit: each MKV is one corrected fact, computed by one of "
        "several organisations and shared as vectors, without its text.",
        f"```python\n{_LOADING[form]}\n```",
        more,
        "## Provenance",
        _table(
            ("", ""),
            [
                ("base model", _cell(name)),
                ("weights and tokenizer of the base model (hash)", f"`{bench.model.fingerprint}`"),
                ("fingerprint of model and settings", f"`{ledger.fingerprint}`"),
                ("MKVs in the weights", len(mkvs)),
                ("overruled by one of these, not in the weights", overruled),
                ("head of the ledger's journal", f"`{ledger.head}`"),
            ],
        ),
        _table(("computed by", "accepted in slot", "MKVs"), by_origin),
        "## Settings",
        _table(("", ""), [(key, _cell(str(value))) for key, value in settings.items()]),
        "## MKVs",
        _table(("id", "computed by", "accepted in slot"), ids),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _settings(bench: Workbench) -> dict[str, object]:
    return {
        field.name.replace("_", "-"): getattr(bench.settings, field.name)
        for field in dataclasses.fields(bench.settings)
    }


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text of another node as a cell of a Markdown table."""
    return "".join(f"\\{char}" if char in "\\|`*_[]<>#" else char for char in printable(text))
