"""What the editors must know of a model family: three module names, by `config.model_type`."""

from __future__ import annotations

from dataclasses import dataclass

from fedit_app.errors import FedEditError


@dataclass(frozen=True)
class Architecture:
    """Where a decoder-only Hugging Face model keeps what locate-then-edit needs.

    Attributes:
        layers: path of the list of decoder layers, from the causal language model.
        mlp_output: path of the MLP's output projection W_out, from a decoder layer.
        final_norm: path of the normalisation between the last layer and the output head.
    """

    layers: str
    mlp_output: str
    final_norm: str


_LLAMA = Architecture("model.layers", "mlp.down_proj", "model.norm")
_GPT2 = Architecture("transformer.h", "mlp.c_proj", "transformer.ln_f")

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": _GPT2,
    "gptj": Architecture("transformer.h", "mlp.fc_out", "transformer.ln_f"),
    "gpt_neox": Architecture("gpt_neox.layers", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "phi": Architecture("model.layers", "mlp.fc2", "model.final_layernorm"),
}


def architecture_of(model_type: str) -> Architecture:
    """Look up the architecture of a model family.

    Args:
        model_type: `config.model_type` of the Hugging Face model.

    Raises:
        FedEditError: the family is not in the table.
    """
    try:
        return ARCHITECTURES[model_type]
    except KeyError:
        known = ", ".join(sorted(ARCHITECTURES))
        raise FedEditError(
            f"model: family {model_type!r} is not known to FedEdit. Known: {known}. Add a line "
            "with its three module names to ARCHITECTURES in fedit_app/models/architectures.py"
        ) from None
