"""Hyperparameters that depend on the model: the one table of them, each with its source.

A run config that leaves them unset takes them from here. Models of the same family and shape share
a line; what a line does not say is MEMIT's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelDefaults:
    """The hyperparameters that depend on the model; `config.editing` documents them.

    The values are those of MEMIT (arXiv 2210.07229), and of AlphaEdit (ICLR 2025) for
    `null_space_threshold` and `l2`.
    """

    layers: tuple[int, ...]
    covariance_weight: float = 15000.0
    learning_rate: float = 0.5
    steps: int = 25
    kl_weight: float = 0.0625
    clamp: float = 0.75
    null_space_threshold: float = 0.02
    l2: float = 10.0


@dataclass(frozen=True)
class Sourced:
    """Defaults and where they come from.

    Attributes:
        source: the model, and the paper or measurement.
        values: the hyperparameters.
    """

    source: str
    values: ModelDefaults


def _layers(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


_MEMIT = "MEMIT, arXiv 2210.07229"
_ALPHAEDIT = "AlphaEdit, ICLR 2025"
_PMET = "PMET, AAAI 2024"
_ENCORE = "ENCORE, EMNLP Findings 2025"
_BETAEDIT = "BetaEdit, IJCAI 2026"

# (model_type, number of layers, d_model) -> defaults.
_BY_SHAPE: dict[tuple[str, int, int], Sourced] = {
    ("llama", 30, 576): Sourced(
        "SmolLM2-135M: measured on CounterFact: lambda 100 to 15000, step sizes 0.5 and 1.0, of "
        "which the larger needs fewer passes (`fedit tune` compares their scores)",
        ModelDefaults(layers=_layers(4, 8), covariance_weight=1000.0, learning_rate=1.0),
    ),
    ("gpt2", 48, 1600): Sourced(
        f"GPT2-XL: {_MEMIT}",
        ModelDefaults(layers=_layers(13, 17), covariance_weight=20000.0, steps=20),
    ),
    ("gptj", 28, 4096): Sourced(f"GPT-J-6B: {_MEMIT}", ModelDefaults(layers=_layers(3, 8))),
    ("gpt_neox", 44, 6144): Sourced(
        f"GPT-NeoX-20B: {_MEMIT}",
        ModelDefaults(layers=_layers(6, 10), covariance_weight=20000.0, steps=20, clamp=0.3),
    ),
    ("llama", 32, 4096): Sourced(
        f"Llama-3-8B: {_ALPHAEDIT}; also for Llama-2-7B, which has the same shape: not measured",
        ModelDefaults(layers=_layers(4, 8), learning_rate=0.1),
    ),
    ("llama", 28, 3072): Sourced(
        "Llama-3.2-3B: as Llama-3-8B", ModelDefaults(layers=_layers(4, 8), learning_rate=0.1)
    ),
    ("mistral", 32, 4096): Sourced(
        "Mistral-7B: as Llama-3-8B, which has the same shape: not measured",
        ModelDefaults(layers=_layers(4, 8), learning_rate=0.1),
    ),
    ("qwen2", 28, 3584): Sourced(
        f"Qwen2.5-7B: {_ALPHAEDIT}", ModelDefaults(layers=_layers(7, 11), learning_rate=0.1)
    ),
}

# Where an editor's own paper departs from that.
_BY_EDITOR: dict[tuple[str, str, int, int], Sourced] = {
    ("pmet", "gptj", 28, 4096): Sourced(
        f"GPT-J-6B: {_PMET}",
        ModelDefaults(
            layers=_layers(3, 8),
            covariance_weight=6000.0,
            learning_rate=0.2,
            steps=30,
            kl_weight=1.0,
        ),
    ),
    ("encore", "gpt2", 48, 1600): Sourced(
        f"GPT2-XL: {_ENCORE}",
        ModelDefaults(layers=_layers(13, 17), covariance_weight=20000.0, steps=20),
    ),
    ("encore", "llama", 32, 4096): Sourced(
        f"Llama-3-8B: {_ENCORE}", ModelDefaults(layers=_layers(4, 8), l2=20.0)
    ),
    ("betaedit", "llama", 32, 4096): Sourced(
        f"Llama-3-8B: {_BETAEDIT}",
        ModelDefaults(layers=_layers(4, 8), learning_rate=0.1, covariance_weight=3000.0),
    ),
    ("betaedit", "qwen2", 28, 3584): Sourced(
        f"Qwen2.5-7B: {_BETAEDIT}",
        ModelDefaults(layers=_layers(7, 11), learning_rate=0.1, covariance_weight=3000.0),
    ),
    ("pmet", "gpt_neox", 44, 6144): Sourced(
        f"GPT-NeoX-20B: {_PMET}",
        ModelDefaults(layers=_layers(6, 10), steps=30, clamp=0.8, kl_weight=0.8),
    ),
}


def model_defaults(model_type: str, n_layers: int, d_model: int, editor: str = "memit") -> Sourced:
    """Hyperparameters for a model of this shape.

    A model that is not in the table gets the layers between 1/8 and 1/4 of its depth, where the
    known models have theirs.

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
    return Sourced("not measured for this model", ModelDefaults(layers=_layers(first, last)))
