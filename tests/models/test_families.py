"""Which families of the installed transformers can be edited: each is built tiny and asked.

What was found is recorded in `tests/data/families.json` and in docs/models.md. After a change of
the table of architectures, or with another transformers:

    PYTHONPATH=tests .venv/bin/python -m tests.models.test_families
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from editing.cases import EASY
from editing.test_prefixes import rows_of_groups
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

from fedit_app import Editor
from fedit_app.config.model import ModuleNames
from fedit_app.editing.prefixes import trace_from_lookup
from fedit_app.models.architectures import ARCHITECTURES
from fedit_app.models.editable import EditableModel
from fedit_app.models.name_check import verify_model
from fedit_app.support.errors import FedEditError

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests" / "data" / "families.json"
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"

# Families of which other tables of transformers say that they are no decoders alone.
_OTHERS = (
    "MASKED_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "TEXT_TO_WAVEFORM",
)
_ENCODERS = {"bert-generation", "trocr", "musicgen", "musicgen_melody", "moshi", "git", "cpmant"}

_LAYERS, _WIDTH, _HIDDEN = 4, 16, 32
_SIZES: dict[str, object] = (
    dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim"), _WIDTH)
    | dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), _LAYERS)
    | dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 2)
    | dict.fromkeys(("attention_heads", "num_key_value_heads", "num_kv_heads"), 2)
    | dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size"), _HIDDEN)
    | dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 256)
    | dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4)
    | dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2)
    | dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group"), 1)
    | dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), _WIDTH)
    | dict.fromkeys(("shared_intermediate_size", "lru_width"), _WIDTH)
    | dict.fromkeys(("kv_lora_rank", "q_lora_rank", "head_dim", "v_head_dim"), 8)
    | {"rotary_dim": 4}
    | dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8)
    | dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 2)
    | dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8)
    | dict.fromkeys(("mamba_d_state", "mamba_d_head", "mamba_head_dim", "ssm_state_size"), 8)
    | dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 4)
    | {"mamba_d_ssm": _HIDDEN, "mamba_n_groups": 1, "state_size": 8, "sliding_window": 128}
    | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": tiny.VOCABULARY}
    | {"vocab_size": tiny.VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    | {"dropout": 0.0}
)
_HEADS_OF_8 = {"head_dim": 8}
_SMALL: dict[str, dict[str, object]] = {
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": _HEADS_OF_8,
    "hunyuan_v1_moe": _HEADS_OF_8,
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "ministral": _HEADS_OF_8,
    "nemotron": _HEADS_OF_8 | {"num_key_value_heads": 2},
    "mamba2": {"num_heads": 4, "head_dim": 8},
    "zaya": {"num_experts_per_tok": 1},
    "gemma3": {
        "vision_config": {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 8,
            "patch_size": 4,
        },
        "mm_tokens_per_image": 4,
    },
}
"""Settings of a family without which it cannot be made small."""
_SCALE = re.compile(r"multiplier|logits?_scal|scale_(emb|depth)")
_LARGEST = 3_000_000  # parameters


def families() -> list[str]:
    """The decoder-only families of the installed transformers."""
    others = set(_ENCODERS)
    for kind in _OTHERS:
        others |= set(getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES"))
    known = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return sorted(f for f in known if f in CONFIG_MAPPING and f not in others)


def small_config(family):
    """A configuration of a family with small sizes, and with scales that are not 1.

    Checkpoints have such scales where the family knows them.
    """
    default = CONFIG_MAPPING[family]()
    more = dict(_SMALL.get(family, {}))
    text = default.get_text_config()
    small = _small_values(text.to_dict())
    if text is default:
        return type(default)(**small | more)
    (key,) = [key for key in default.sub_configs if getattr(default, key, None) is text]
    return type(default)(**{key: type(text)(**small)}, **more)


def _small_values(known):
    small = {key: value for key, value in _SIZES.items() if known.get(key) is not None}
    small |= {key: _SIZES[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for key, value in known.items():
        if _SCALE.search(key) and isinstance(value, float):
            small[key] = 1.5
        if key in ("layer_types", "mlp_layer_types") and isinstance(value, list):
            kinds = list(dict.fromkeys(value))
            small[key] = (kinds * _LAYERS)[:_LAYERS]
    return small


@torch.no_grad()
def small_model(family):
    """A tiny model whose norms and scalars are not all 1, as those of a checkpoint."""
    config = small_config(family)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > _LARGEST:
        raise ValueError(f"has {size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name and "wte" not in name:
            parameter.mul_(4)
        elif parameter.dim() < 2:
            parameter.add_(torch.rand_like(parameter) - 0.5)
    for buffer in model.buffers():
        if buffer.numel() == 1 and buffer.is_floating_point():
            buffer.mul_(1.5)
    model(torch.arange(8)[None], use_cache=False)
    return model


def candidates(model) -> Iterator[ModuleNames]:
    """Module names that may be right for a model."""
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == _LAYERS
    ]
    for path, layers in lists[:2]:
        norms = [
            name
            for name, module in model.named_modules()
            if re.search(r"(norm\w*|ln_f|ln)$", name.split(".")[-1], re.I)
            and not name.startswith(f"{path}.")
            and not list(module.children())
        ]
        behind = [
            name for name, _ in layers[-1].named_modules() if re.search("post.*norm", name) and name
        ]
        for projection in _projections(model, layers):
            for norm in norms[::-1][:3]:
                for post_norm in ("", *behind):
                    yield ModuleNames(path, projection, norm, "", post_norm)


def _projections(model, layers):
    """Linear modules to the residual stream that every layer has, outside attention."""
    width = model.get_input_embeddings().weight.shape[-1]
    found = [
        path
        for path, module in layers[-1].named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and not re.search(r"attn|attention|mixer|mamba|\.experts\b|router|per_layer", path)
        and module.weight.shape[isinstance(module, Conv1D)] == width
    ]
    return [p for p in found[::-1] if all(p in dict(one.named_modules()) for one in layers)]


def classify(family) -> dict[str, object]:
    """Whether a family works, needs names, or cannot be edited, and why."""
    try:
        model = small_model(family)
    except Exception as error:  # whatever a family's code does with small sizes
        return {"state": "untried", "why": str(error).strip().splitlines()[-1].strip()[:120]}
    known = model.config.model_type in ARCHITECTURES
    refusals = []
    for names in [ModuleNames()] if known else candidates(model):
        try:
            editable = EditableModel(model, tiny.make_tokenizer(), family, "0", names)
            verify_model(editable)
        except FedEditError as error:
            refusals.append(str(error))
            continue
        except Exception as error:
            refusals.append(f"the check fails in its code ({type(error).__name__})")
            continue
        if not prefixes_agree(editable):
            return {"state": "no", "why": "texts computed in parts differ"}
        given = {field.replace("_", "-"): path for field, path in names.given().items()}
        return {"state": "works"} if known else {"state": "names", "names": given}
    return {"state": "no", "why": _reason(model, refusals)}


_REASONS = {
    "its logits are": "does more to its logits than its norm and head",
    "does not reach the residual stream": "changes what the MLP puts out before adding it",
    "keep more of earlier tokens": "keeps more of earlier tokens than keys and values",
    "no row per text": "its layers take arguments without a row per text",
}
_EXPERTS = "mixture of experts"


def _reason(model, refusals):
    found = [why for sign, why in _REASONS.items() if any(sign in text for text in refusals)]
    if any(path.endswith("experts") for path, _ in model.named_modules()):
        return _EXPERTS
    if not refusals:
        return "has no norm before the head, or no output projection in every layer"
    return found[-1] if found else refusals[0][:120]


@torch.no_grad()
def prefixes_agree(model):
    """Whether states are the same with and without a prefix cache."""
    rows, groups = rows_of_groups((0, (0, 7, 1, 3)), (5, (0, 9, 2, 4)))
    last = model.n_layers - 1
    found = trace_from_lookup(model, rows, groups, 1)
    final = found.run(found.hidden, 1, last)
    for number, row in enumerate(rows):
        states = []

        def keep(_module, _inputs, output, states=states):
            states.append(output[0] if isinstance(output, tuple) else output)

        with model.layers[last].register_forward_hook(keep):
            model.model(torch.tensor([row.ids]))
        width = len(row.ids) - row.lookup - (row.target < len(row.ids))
        wanted = states[0][0, row.lookup : row.lookup + width]
        if (final[number, :width] - wanted).norm() > 1e-3 * wanted.norm():
            return False
    return True


def table(record) -> str:
    """The families of a record as they stand in docs/models.md."""
    kinds = {
        state: [f for f, found in record.items() if found["state"] == state] for state in _SAID
    }
    lines = [BEGIN]
    for state, said in _SAID.items():
        lines += ["", said, ""]
        if state == "works":
            lines += _wrapped(kinds[state])
        elif state == "names":
            columns = ["layers", "mlp-output", "final-norm", "post-norm"]
            lines += [f"| family | {' | '.join(f'`module-{key}`' for key in columns)} |"]
            lines += ["|---" * (len(columns) + 1) + "|"]
            for family in kinds[state]:
                given = record[family]["names"]
                paths = [f"`{given[key]}`" if key in given else "" for key in columns]
                lines += [f"| {family} | {' | '.join(paths)} |"]
        else:
            reasons = sorted({record[family]["why"] for family in kinds[state]})
            for reason in reasons if state == "no" else []:
                of = [family for family in kinds[state] if record[family]["why"] == reason]
                lines += _wrapped(of, f"- {reason}: ", "  ")
            lines += _wrapped(kinds[state]) if state == "untried" else []
    return "\n".join([*lines, "", END])


_SAID = {
    "works": "Known, without names:",
    "names": "Editable with these names:",
    "no": "Not editable:",
    "untried": "Not tried, since no small model of them could be made here:",
}


def _wrapped(names, first="", indent=""):
    lines, line = [], first
    for number, name in enumerate(names):
        part = name + ("," if number < len(names) - 1 else "")
        if len(line) + len(part) > 118:
            lines.append(line.rstrip())
            line = indent
        line += part + " "
    return [*lines, line.rstrip()]


def _record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


def test_the_record_is_of_all_families_and_stands_in_the_documentation():
    record = _record()
    assert table(record["families"]) in PAGE.read_text(encoding="utf-8")
    if record["transformers"] != transformers.__version__:
        pytest.skip(f"recorded with transformers {record['transformers']}")
    assert sorted(record["families"]) == families()


def test_every_family_of_the_table_works():
    record = _record()["families"]
    works = {f for f, found in record.items() if found["state"] == "works"}
    assert set(ARCHITECTURES) <= works


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
def test_a_family_is_what_is_recorded(family):
    record = _record()
    if record["transformers"] != transformers.__version__:
        pytest.skip(f"recorded with transformers {record['transformers']}")
    assert classify(family) == record["families"][family]


def test_the_text_part_of_gemma_3_is_edited(tmp_path):
    """Its sizes stand in a config inside the config, its layers below `language_model`."""
    model = small_model("gemma3")
    model.save_pretrained(tmp_path / "base")
    tiny.make_tokenizer().save_pretrained(tmp_path / "base")
    settings = {key.replace("-", "_"): value for key, value in tiny.RUN_CONFIG.items()}
    editor = Editor.from_pretrained(tmp_path / "base", device="cpu", **settings)
    editor.edit(EASY[:1])
    editor.save_pretrained(tmp_path / "edited")

    ids = torch.arange(9)[None]
    before, after = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        for name in ("base", "edited")
    )
    changed = [
        name
        for name, weight in before.named_parameters()
        if not torch.equal(weight, after.get_parameter(name))
    ]
    assert changed == [f"model.language_model.layers.{n}.mlp.down_proj.weight" for n in (1, 2)]
    with torch.no_grad():
        assert not torch.allclose(before(ids).logits, after(ids).logits)


def main() -> int:
    """Record what is found, here and in the documentation."""
    found = {family: classify(family) for family in families()}
    record = {"transformers": transformers.__version__, "families": found}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{table(found)}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
