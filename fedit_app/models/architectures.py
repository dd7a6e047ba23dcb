"""What the editors must know of a model family: a few module names, by `config.model_type`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fedit_app.config.model import ModuleNames
from fedit_app.support.errors import FedEditError


@dataclass(frozen=True)
class Architecture:
    """Where a decoder-only Hugging Face model keeps what locate-then-edit needs.

    Attributes:
        layers: path of the list of decoder layers, from the causal language model.
        mlp_output: path of the MLP's output projection W_out, from a decoder layer.
        final_norm: path of the normalisation between the last layer and the output head.
        attention_output: path of the attention's output projection, from a decoder layer; only
            PMET needs it. None: not known.
        post_norm: path of the RMS norm between W_out and the residual stream, from a decoder
            layer. None: the output of W_out is added to the residual stream as it is.
    """

    layers: str
    mlp_output: str
    final_norm: str
    attention_output: str | None = None
    post_norm: str | None = None


NO_NAMES = ModuleNames()
_NEEDED = ("layers", "mlp_output", "final_norm")

_LLAMA = Architecture("model.layers", "mlp.down_proj", "model.norm", "self_attn.o_proj")
_POST_NORM = dataclasses.replace(_LLAMA, post_norm="post_feedforward_layernorm")
_GPT2 = Architecture("transformer.h", "mlp.c_proj", "transformer.ln_f", "attn.c_proj")
_GPTJ = Architecture("transformer.h", "mlp.fc_out", "transformer.ln_f", "attn.out_proj")
_BLOOM = Architecture(
    "transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f", "self_attention.dense"
)

_NEOX = Architecture(
    "gpt_neox.layers", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm", "attention.dense"
)

ARCHITECTURES: dict[str, Architecture] = {
    "apertus": _LLAMA,
    "arcee": _LLAMA,
    "biogpt": Architecture("biogpt.layers", "fc2", "biogpt.layer_norm", "self_attn.out_proj"),
    "bloom": _BLOOM,
    "codegen": _GPTJ,
    "cohere": _LLAMA,
    "cohere2": _LLAMA,
    "cwm": _LLAMA,
    "diffllama": _LLAMA,
    "doge": _LLAMA,
    "ernie4_5": _LLAMA,
    "exaone": _LLAMA,
    "exaone4": _POST_NORM,
    "falcon": _BLOOM,
    "gemma": _LLAMA,
    "gemma2": _POST_NORM,
    "gemma3": dataclasses.replace(
        _POST_NORM, layers="model.language_model.layers", final_norm="model.language_model.norm"
    ),
    "gemma3_text": _POST_NORM,
    "glm": _LLAMA,
    "glm4": dataclasses.replace(_LLAMA, post_norm="post_mlp_layernorm"),
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": dataclasses.replace(_GPT2, attention_output="attn.attention.out_proj"),
    "gpt_neox": _NEOX,
    "gpt_neox_japanese": dataclasses.replace(
        _NEOX, layers="gpt_neox_japanese.layers", final_norm="gpt_neox_japanese.final_layer_norm"
    ),
    "gptj": _GPTJ,
    "helium": _LLAMA,
    "hunyuan_v1_dense": _LLAMA,
    "internlm3": _LLAMA,
    "iquestcoder": _LLAMA,
    "jais2": _LLAMA,
    "llama": _LLAMA,
    "ministral": _LLAMA,
    "ministral3": _LLAMA,
    "mistral": _LLAMA,
    "nanochat": dataclasses.replace(_LLAMA, mlp_output="mlp.fc2"),
    "nemotron": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _POST_NORM,
    "olmo3": _POST_NORM,
    "opt": Architecture(
        "model.decoder.layers", "fc2", "model.decoder.final_layer_norm", "self_attn.out_proj"
    ),
    "persimmon": Architecture(
        "model.layers", "mlp.dense_4h_to_h", "model.final_layernorm", "self_attn.dense"
    ),
    "phi": Architecture("model.layers", "mlp.fc2", "model.final_layernorm", "self_attn.dense"),
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "seed_oss": _LLAMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": dataclasses.replace(_LLAMA, mlp_output="mlp.c_proj"),
    "vaultgemma": _LLAMA,
    "xglm": Architecture("model.layers", "fc2", "model.layer_norm", "self_attn.out_proj"),
}


def architecture_of(model_type: str, names: ModuleNames = NO_NAMES) -> Architecture:
    """The architecture of a model family; names that are given win over the table.

    Args:
        model_type: `config.model_type` of the Hugging Face model.
        names: what the run config gives; of layers, mlp_output and final_norm all or none.

    Raises:
        FedEditError: only one or two of those three are given, or none is and the family is not
            in the table.
    """
    given = names.given()
    missing = [module_key(field) for field in _NEEDED if field not in given]
    if 0 < len(missing) < len(_NEEDED):
        raise FedEditError(
            f"run config: {' and '.join(missing)} not given; "
            f"{', '.join(map(module_key, _NEEDED))} are given together or not at all"
        )
    if not missing:
        known = ARCHITECTURES.get(model_type, Architecture("", "", ""))
        return dataclasses.replace(known, **given)
    if model_type in ARCHITECTURES:
        return dataclasses.replace(ARCHITECTURES[model_type], **given)
    raise unknown_family(model_type)


def unknown_family(model_type: str, place: str = "") -> FedEditError:
    """The error that asks for the module names of a family that is not in the table.

    Args:
        model_type: `config.model_type`.
        place: the file that names it, if there is one, with ": " behind it.
    """
    families = ", ".join(sorted(ARCHITECTURES))
    return FedEditError(
        f"model: {place}family {model_type!r} is not known to FedEdit (known: {families}). Give "
        "its module names in the run config: module-layers, the list of decoder layers, such as "
        "'model.layers'; module-mlp-output, the MLP's output projection in a layer, such as "
        "'mlp.down_proj'; module-final-norm, the norm before the output head, such as 'model.norm'"
    )


def module_key(field: str) -> str:
    """The run-config key of a field of `Architecture`."""
    return f"module-{field.replace('_', '-')}"
