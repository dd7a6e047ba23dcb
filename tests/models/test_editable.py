"""Reading, writing and partly running a model of every family."""

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, OPTConfig

from fedit_app.errors import FedEditError
from fedit_app.models.architectures import ARCHITECTURES, architecture_of
from fedit_app.models.editable import EditableModel, at_least_float32
from fedit_app.models.partial import fixed_cache, projection_inputs, trace

TEXTS = ["The head office of Reuters is in the city of", "The Royal Mint"]


@pytest.fixture(params=tiny.FAMILIES)
def model(request):
    return tiny.editable(request.param)


@pytest.fixture
def inputs(model):
    model.tokenizer.padding_side = "right"
    return dict(model.tokenizer(TEXTS, return_tensors="pt", padding=True))


def random_deltas(model, layers, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (model.d_model, model.d_ff)
    return {layer: torch.randn(shape, dtype=torch.float64, generator=generator) for layer in layers}


def snapshot(model):
    return {name: parameter.clone() for name, parameter in model.model.named_parameters()}


def assert_unchanged(model, before):
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_every_known_family_is_tested():
    assert set(ARCHITECTURES) == set(tiny.FAMILIES)


def test_weights_are_d_model_by_d_ff(model):
    assert (model.n_layers, model.d_model, model.d_ff) == (tiny.LAYERS, tiny.D_MODEL, tiny.D_FF)
    for layer in range(model.n_layers):
        assert model.weight(layer).shape == (tiny.D_MODEL, tiny.D_FF)


def test_a_weight_maps_keys_to_outputs(model, inputs):
    outputs = []
    handle = model.mlp_output(2).register_forward_hook(lambda _, __, output: outputs.append(output))
    with projection_inputs(model, [2]) as keys:
        model.model(**inputs)
    handle.remove()
    bias = model.mlp_output(2).bias
    expected = keys[2] @ model.weight(2).T + (0 if bias is None else bias)
    assert torch.allclose(outputs[0], expected, atol=1e-4)


def test_edited_adds_inside_and_restores_every_bit_outside(model, inputs):
    before = snapshot(model)
    logits = model.model(**inputs).logits
    deltas = random_deltas(model, (1, 3))
    weights = {layer: model.weight(layer).clone() for layer in range(model.n_layers)}
    with model.edited(deltas) as write:
        for layer in range(model.n_layers):
            expected = weights[layer].double() + deltas.get(layer, 0)
            assert torch.equal(model.weight(layer), expected.float())
        assert not torch.allclose(model.model(**inputs).logits, logits, atol=1e-3)
        write(3, 2 * deltas[3])
        assert torch.equal(model.weight(3), (weights[3].double() + 2 * deltas[3]).float())
    assert_unchanged(model, before)
    assert torch.equal(model.model(**inputs).logits, logits)


def test_edited_restores_after_an_exception(model):
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), model.edited(random_deltas(model, (0, 2))):
        raise ZeroDivisionError
    assert_unchanged(model, before)


def test_edited_restores_when_a_delta_does_not_fit(model):
    before = snapshot(model)
    deltas = random_deltas(model, (0, 2))
    deltas[2] = deltas[2][:, :3]
    with pytest.raises(RuntimeError), model.edited(deltas):
        pass
    assert_unchanged(model, before)


def test_edited_can_be_nested(model):
    before = snapshot(model)
    outer, inner = random_deltas(model, (1, 2)), random_deltas(model, (2, 3), seed=1)
    with model.edited(outer):
        between = snapshot(model)
        with model.edited(inner):
            assert not torch.equal(model.weight(2), before_weight(model, between, 2))
        assert_unchanged(model, between)
    assert_unchanged(model, before)


def before_weight(model, saved, layer):
    weight = model.mlp_output(layer).weight
    name = next(name for name, p in model.model.named_parameters() if p is weight)
    return saved[name] if saved[name].shape == model.weight(layer).shape else saved[name].T


@torch.no_grad()
def test_the_head_gives_the_models_own_logits(model, inputs):
    states = []
    handle = model.layers[-1].register_forward_hook(
        lambda _, __, output: states.append(output[0] if isinstance(output, tuple) else output)
    )
    logits = model.model(**inputs).logits
    handle.remove()
    assert torch.allclose(model.logits(states[0]), logits, atol=1e-5)
    assert torch.allclose(model.log_probabilities(states[0]), logits.log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize("first", [0, 2, tiny.LAYERS - 1])
@torch.no_grad()
def test_a_trace_run_again_is_the_full_pass(model, inputs, first):
    logits = model.model(**inputs).logits
    last = model.n_layers - 1
    traced = trace(model, first, last, use_cache=False, **inputs)
    found = model.logits(traced.run(traced.hidden, first, last))
    real = inputs["attention_mask"].bool()
    assert torch.allclose(found[real], logits[real], atol=1e-4)


@torch.no_grad()
def test_a_trace_of_some_rows_is_the_pass_of_those_rows(model, inputs):
    last = model.n_layers - 1
    traced = trace(model, 1, last, use_cache=False, **inputs).select(torch.tensor([1]))
    found = model.logits(traced.run(traced.hidden, 1, last))
    alone = model.tokenizer(TEXTS[1], return_tensors="pt")["input_ids"]
    logits = model.model(alone).logits
    assert torch.allclose(found[:, : alone.shape[1]], logits, atol=1e-4)


@torch.no_grad()
def test_a_trace_stops_after_its_last_layer_and_leaves_no_hooks(model, inputs):
    reached = []
    handle = model.layers[3].register_forward_hook(lambda *_: reached.append(3))
    trace(model, 1, 2, **inputs)
    assert not reached
    model.model(**inputs)
    assert reached == [3], "a forgotten hook would leave the pass early"
    handle.remove()
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.layers)


@torch.no_grad()
def test_a_fixed_cache_serves_many_passes(model):
    ids = model.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    logits = model.model(ids).logits
    cache = fixed_cache(model.model(ids[:, :4], use_cache=True).past_key_values)
    for _ in range(2):
        positions = torch.arange(4, ids.shape[1])[None]
        rest = model.model(ids[:, 4:], past_key_values=cache, position_ids=positions).logits
        assert torch.allclose(rest, logits[:, 4:], atol=1e-4)
        assert cache.get_seq_length() == 4


def test_the_parameters_are_frozen_and_the_model_evaluates(model):
    assert not model.model.training
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_an_unknown_family_says_what_to_do():
    with pytest.raises(FedEditError, match="family 'opt' is not known.*llama.*ARCHITECTURES"):
        architecture_of("opt")
    config = OPTConfig(
        vocab_size=20,
        hidden_size=8,
        ffn_dim=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        word_embed_proj_dim=8,
    )
    with pytest.raises(FedEditError, match="family 'opt'"):
        EditableModel(AutoModelForCausalLM.from_config(config), tiny.make_tokenizer(), "o", "0")


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    model = tiny.editable()
    with pytest.raises(FedEditError, match="'mine'.*needs a fast tokenizer"):
        EditableModel(model.model, Slow(), "mine", "0")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_promoted_and_double_kept(dtype, expected):
    assert at_least_float32(torch.zeros(2, dtype=dtype)).dtype == expected
