"""Hyperparameters per known model, each with its source.

A run config that leaves them unset takes them from here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EditDefaults:
    """Hyperparameters that depend on the model.

    Attributes:
        layers: first and last edited layer, as in a run config.
        covariance_weight: lambda, the weight of the covariance in the normal equations.
        learning_rate: Adam's step size for the value v*.
        source: where the numbers come from.
        steps: most steps of the optimisation of v*.
        clamp: largest norm of v* - h0, in norms of h0.
        kl_weight: weight of the KL term that keeps the essence.
        null_space_threshold: AlphaEdit: eigenvalues of C below it belong to the null space.
        l2: AlphaEdit: weight of |Delta|^2.
    """

    layers: str
    covariance_weight: float
    learning_rate: float
    source: str
    steps: int = 25
    clamp: float = 0.75
    kl_weight: float = 0.0625
    null_space_threshold: float = 0.02
    l2: float = 10.0


_MEMIT = "MEMIT, arXiv 2210.07229"
_ALPHAEDIT = "AlphaEdit, ICLR 2025"
_PMET = "PMET, AAAI 2024"

# Models of the same family and shape share a line.
_BY_SHAPE: dict[tuple[str, int, int], EditDefaults] = {
    ("llama", 30, 576): EditDefaults(
        "4-8",
        1000.0,
        1.0,
        "SmolLM2-135M: measured on CounterFact: lambda 100 to 15000, step sizes 0.5 and 1.0, of "
        "which the larger needs fewer passes (`fedit tune` compares their scores)",
    ),
    ("gpt2", 48, 1600): EditDefaults("13-17", 20000.0, 0.5, f"GPT2-XL: {_MEMIT}", steps=20),
    ("gptj", 28, 4096): EditDefaults("3-8", 15000.0, 0.5, f"GPT-J-6B: {_MEMIT}"),
    ("gpt_neox", 44, 6144): EditDefaults(
        "6-10", 20000.0, 0.5, f"GPT-NeoX-20B: {_MEMIT}", steps=20, clamp=0.3
    ),
    ("llama", 32, 4096): EditDefaults(
        "4-8",
        15000.0,
        0.1,
        f"Llama-3-8B: {_ALPHAEDIT}; also for Llama-2-7B, which has the same shape: not measured",
    ),
    ("llama", 28, 3072): EditDefaults("4-8", 15000.0, 0.1, "Llama-3.2-3B: as Llama-3-8B"),
    ("mistral", 32, 4096): EditDefaults(
        "4-8", 15000.0, 0.1, "Mistral-7B: as Llama-3-8B, which has the same shape: not measured"
    ),
    ("qwen2", 28, 3584): EditDefaults("7-11", 15000.0, 0.1, f"Qwen2.5-7B: {_ALPHAEDIT}"),
}

# Where an editor's own paper departs from that.
_BY_EDITOR: dict[tuple[str, str, int, int], EditDefaults] = {
    ("pmet", "gptj", 28, 4096): EditDefaults(
        "3-8", 6000.0, 0.2, f"GPT-J-6B: {_PMET}", steps=30, kl_weight=1.0
    ),
    ("pmet", "gpt_neox", 44, 6144): EditDefaults(
        "6-10", 15000.0, 0.5, f"GPT-NeoX-20B: {_PMET}", steps=30, clamp=0.8, kl_weight=0.8
    ),
}


def edit_defaults(
    model_type: str, n_layers: int, d_model: int, editor: str = "memit"
) -> EditDefaults:
    """Hyperparameters for a model of this shape.

    A model that is not in the table gets the layers between 1/8 and 1/4 of its depth, where the
    known models have theirs, and MEMIT's lambda, step size, steps and clamp.

    Args:
        model_type: `config.model_type`.
        n_layers: number of decoder layers.
        d_model: width of the residual stream.
        editor: name of the editor.
    """
    shape = (model_type, n_layers, d_model)
    known = _BY_EDITOR.get((editor, *shape)) or _BY_SHAPE.get(shape)
    if known is not None:
        return known
    first = min(n_layers - 1, n_layers // 8)
    last = max(first, min(n_layers - 2, n_layers // 4))
    return EditDefaults(f"{first}-{last}", 15000.0, 0.5, "not measured for this model")
