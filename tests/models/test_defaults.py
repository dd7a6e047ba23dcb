"""Known models have their papers' settings, every other model usable ones."""

import pytest

from fedit_app.models.defaults import model_defaults


@pytest.mark.parametrize(
    ("model", "shape", "layers", "weight", "rate", "steps", "clamp"),
    [
        ("GPT2-XL", ("gpt2", 48, 1600), (13, 17), 20000, 0.5, 20, 0.75),
        ("GPT-J-6B", ("gptj", 28, 4096), (3, 8), 15000, 0.5, 25, 0.75),
        ("GPT-NeoX-20B", ("gpt_neox", 44, 6144), (6, 10), 20000, 0.5, 20, 0.3),
        ("Llama-2-7B", ("llama", 32, 4096), (4, 8), 15000, 0.1, 25, 0.75),
        ("Llama-3-8B", ("llama", 32, 4096), (4, 8), 15000, 0.1, 25, 0.75),
        ("Llama-3.2-3B", ("llama", 28, 3072), (4, 8), 15000, 0.1, 25, 0.75),
        ("Mistral-7B", ("mistral", 32, 4096), (4, 8), 15000, 0.1, 25, 0.75),
        ("Qwen2.5-7B", ("qwen2", 28, 3584), (7, 11), 15000, 0.1, 25, 0.75),
        ("SmolLM2-135M", ("llama", 30, 576), (4, 8), 1000, 1.0, 25, 0.75),
    ],
)
def test_known_models(model, shape, layers, weight, rate, steps, clamp):
    found = model_defaults(*shape)
    assert found.values.layers == tuple(range(layers[0], layers[1] + 1))
    assert (found.values.covariance_weight, found.values.learning_rate) == (weight, rate)
    assert (found.values.steps, found.values.clamp) == (steps, clamp)
    assert model in found.source


@pytest.mark.parametrize("n_layers", [2, 3, 5, 12, 80])
def test_other_models_get_layers_with_one_above(n_layers):
    found = model_defaults("llama", n_layers, 64)
    layers = found.values.layers
    assert 0 <= layers[0] <= layers[-1] <= n_layers - 2
    assert found.source == "not measured for this model"
