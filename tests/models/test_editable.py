"""Reading, writing and partly running a model of every family."""

import copy
import dataclasses

import pytest
import tiny
import torch
from transformers import DynamicCache

from fedit_app.config.model import ModuleNames
from fedit_app.models.architectures import ARCHITECTURES, Architecture, architecture_of
from fedit_app.models.editable import EditableModel, at_least_float32
from fedit_app.models.partial import fixed_cache, projection_inputs, trace
from fedit_app.support.errors import FedEditError

TEXTS = ["The head office of Reuters is in the city of", "The Royal Mint"]


@pytest.fixture(params=tiny.every(*tiny.FAMILIES, *tiny.VARIANTS))
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


def test_every_tiny_family_is_known():
    assert set(tiny.FAMILIES) <= set(ARCHITECTURES)


def test_weights_are_d_model_by_d_ff(model):
    d_ff = 4 * tiny.D_MODEL if model.model.config.model_type == "bloom" else tiny.D_FF
    assert (model.n_layers, model.d_model, model.d_ff) == (tiny.LAYERS, tiny.D_MODEL, d_ff)
    for layer in range(model.n_layers):
        assert model.weight(layer).shape == (tiny.D_MODEL, d_ff)


def test_a_weight_maps_keys_to_outputs(model, inputs):
    outputs = []
    handle = model.mlp_output(2).register_forward_hook(
        lambda _, __, output: outputs.append(output.clone())  # Falcon adds to it in place
    )
    with projection_inputs(model, [2]) as keys:
        model.model(**inputs)
    handle.remove()
    bias = model.mlp_output(2).bias
    expected = keys[2] @ model.weight(2).T + (0 if bias is None else bias)
    assert keys[2].shape == (*inputs["input_ids"].shape, model.d_ff)
    assert torch.allclose(outputs[0].view_as(expected), expected, atol=1e-4)


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


def test_the_unedited_model_can_be_asked_within_edits(model):
    before = snapshot(model)
    with model.edited(random_deltas(model, (1, 2))):
        outer = snapshot(model)
        with model.edited(random_deltas(model, (2, 3), seed=1)):
            inner = snapshot(model)
            with pytest.raises(ZeroDivisionError), model.unedited():
                assert_unchanged(model, before)
                assert model.edits_hash() == ""
                raise ZeroDivisionError
            assert_unchanged(model, inner)
        assert_unchanged(model, outer)
    with model.unedited():
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_restored_to_the_bit(model, dtype):
    half = EditableModel(copy.deepcopy(model.model).to(dtype), model.tokenizer, "half", "0")
    before = snapshot(half)
    with pytest.raises(ZeroDivisionError), half.edited(random_deltas(half, (0, 3))) as write:
        assert not torch.equal(half.weight(3), before_weight(half, before, 3))
        write(3, random_deltas(half, (3,), seed=1)[3])
        raise ZeroDivisionError
    assert_unchanged(half, before)
    assert {parameter.dtype for parameter in before.values()} == {dtype}


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
    traced = trace(model, first, last, inputs)
    found = model.logits(traced.run(traced.hidden, first, last))
    real = inputs["attention_mask"].bool()
    assert torch.allclose(found[real], logits[real], atol=1e-4)


@torch.no_grad()
def test_a_dry_trace_is_the_same(model, inputs):
    last, logits = model.n_layers - 1, model.model(**inputs).logits
    whole = trace(model, 1, last, inputs)
    dry = trace(model, 1, last, inputs, dry=True)
    assert torch.equal(dry.hidden, whole.hidden)
    assert torch.equal(dry.run(dry.hidden, 1, last), whole.run(whole.hidden, 1, last))
    assert torch.equal(model.model(**inputs).logits, logits), "a layer stayed passed over"


@torch.no_grad()
def test_a_trace_of_some_rows_is_the_pass_of_those_rows(model, inputs):
    last = model.n_layers - 1
    traced = trace(model, 1, last, inputs).select(torch.tensor([1]))
    found = model.logits(traced.run(traced.hidden, 1, last))
    alone = model.tokenizer(TEXTS[1], return_tensors="pt")["input_ids"]
    logits = model.model(alone).logits
    assert torch.allclose(found[:, : alone.shape[1]], logits, atol=1e-4)


@torch.no_grad()
def test_a_trace_stops_after_its_last_layer_and_leaves_no_hooks(model, inputs):
    reached = []
    handle = model.layers[3].register_forward_hook(lambda *_: reached.append(3))
    trace(model, 1, 2, inputs)
    assert not reached
    model.model(**inputs)
    assert reached == [3], "a forgotten hook would leave the pass early"
    handle.remove()
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.layers)


@torch.no_grad()
def test_a_fixed_cache_serves_many_passes(model):
    ids = model.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    logits = model.model(ids).logits
    growing, last = DynamicCache(), model.n_layers - 1
    trace(model, last, last, {"input_ids": ids[:, :4]}, cache=growing)
    cache = fixed_cache(growing)
    rest = {"input_ids": ids[:, 4:], "position_ids": torch.arange(4, ids.shape[1])[None]}
    for _ in range(2):
        traced = trace(model, 0, last, rest, cache=cache)
        found = model.logits(traced.run(traced.hidden, 0, last))
        assert torch.allclose(found, logits[:, 4:], atol=1e-4)
        assert cache.get_seq_length() == 4


def test_the_parameters_are_frozen_and_the_model_evaluates(model):
    assert not model.model.training
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


@torch.no_grad()
def test_layers_that_are_called_by_keyword(inputs_of_llama):
    class ByKeyword(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, hidden, **others):
            return self.layer(hidden_states=hidden, **others)

    plain = tiny.editable()
    model = EditableModel(copy.deepcopy(plain.model), plain.tokenizer, "by keyword", "0")
    inner = model.layers
    model.model.model.layers = torch.nn.ModuleList(ByKeyword(layer) for layer in inner)
    traced = trace(model, 1, 3, inputs_of_llama)
    with projection_inputs(model, [2]) as keys:
        found = traced.run(traced.hidden, 1, 3)
    expected = trace(plain, 1, 3, inputs_of_llama)
    with projection_inputs(plain, [2]) as expected_keys:
        assert torch.equal(found, expected.run(expected.hidden, 1, 3))
    assert torch.equal(keys[2], expected_keys[2])


@pytest.fixture
def inputs_of_llama():
    return dict(tiny.editable().tokenizer(TEXTS, return_tensors="pt", padding=True))


def test_the_attentions_output_projection_is_found(model, inputs):
    outputs = []
    for layer in (0, 2):
        handle = model.attention_output(layer).register_forward_hook(
            lambda _, __, output: outputs.append(output)
        )
        model.model(**inputs)
        handle.remove()
    shape = (*inputs["input_ids"].shape, model.d_model)
    assert [output.shape for output in outputs] == [shape, shape]


def test_an_unknown_attention_says_what_to_do():
    names = ModuleNames("model.layers", "mlp.down_proj", "model.norm")
    model = EditableModel(unknown("granite"), tiny.make_tokenizer(), "mine", "0", names)
    with pytest.raises(FedEditError, match="'mine'.*give module-attention-output"):
        model.attention_output(0)
    names = dataclasses.replace(names, attention_output="self_attn.o_proj")
    model = EditableModel(model.model, model.tokenizer, "mine", "0", names)
    assert model.attention_output(1) is model.layers[1].self_attn.o_proj


@pytest.mark.parametrize("family", tiny.every(*tiny.FAMILIES, *tiny.VARIANTS))
@torch.no_grad()
def test_a_projection_shift_moves_the_residual_stream_as_wanted(family):
    model, layer = tiny.editable(family, double=True), 2
    ids = model.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    traced = trace(model, layer, layer, {"input_ids": ids})
    projected, shifts = [], [0]

    def hook(_, __, output):
        projected.append(output.clone().view(ids.shape[1], -1))
        return output + shifts[-1]

    handle = model.mlp_output(layer).register_forward_hook(hook)
    before = traced.run(traced.hidden, layer, layer)[0]
    m = projected[0]
    across = torch.randn(m.shape, dtype=m.dtype, generator=torch.Generator().manual_seed(0))
    across -= (across * m).sum(1, keepdim=True) / m.square().sum(1, keepdim=True) * m
    gain = model.post_norm(layer, torch.ones_like(m)) if model.architecture.post_norm else 1.0
    change = 1e-6 * gain * across
    shift = model.projection_shift(layer, m, change)
    shifts.append(shift)
    after = traced.run(traced.hidden, layer, layer)[0]
    handle.remove()
    assert shift.dtype == torch.float64
    assert torch.equal(shift, change) == (model.architecture.post_norm is None)
    assert (after - before - change).norm() < 1e-5 * change.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_projection_shift_is_at_least_single_precision(dtype):
    for family in ("llama", "gemma2", "olmo2"):
        plain = tiny.editable(family)
        model = EditableModel(copy.deepcopy(plain.model).to(dtype), plain.tokenizer, "m", "0")
        output = torch.ones(2, model.d_model, dtype=dtype)
        assert model.projection_shift(1, output, output).dtype == torch.float32
        double = model.projection_shift(1, output, output.double())
        assert double.dtype == torch.float64 and double.isfinite().all()


def test_a_post_norm_without_gain_moves_nothing():
    plain = tiny.editable("olmo2")
    model = EditableModel(copy.deepcopy(plain.model), plain.tokenizer, "m", "0")
    model.layers[1].post_feedforward_layernorm.weight[3] = 0
    ones = torch.ones(1, model.d_model)
    shift = model.projection_shift(1, ones, ones)
    assert shift[0, 3] == 0 and shift.isfinite().all() and (shift != 0).sum() == 15


@pytest.mark.parametrize(
    "norm",
    [torch.nn.LayerNorm(tiny.D_MODEL), torch.nn.Identity(), torch.nn.MultiheadAttention(2, 1)],
)
def test_a_post_norm_of_another_kind_is_refused(norm):
    plain = tiny.editable("olmo2")
    model = EditableModel(copy.deepcopy(plain.model), plain.tokenizer, "m", "0")
    model.layers[1].post_feedforward_layernorm = norm
    ones = torch.ones(1, model.d_model)
    with pytest.raises(FedEditError, match="module-post-norm = .* is not an RMS norm"):
        model.projection_shift(1, ones, ones)


def unknown(family):
    return tiny.random_model(family, tiny.make_tokenizer())


def test_an_unknown_family_says_which_names_to_give():
    with pytest.raises(
        FedEditError,
        match="'granite' is not known.*llama.*run config: module-layers.*module-mlp-output.*"
        "module-final-norm",
    ):
        architecture_of("granite")
    with pytest.raises(FedEditError, match="family 'granite'"):
        EditableModel(unknown("granite"), tiny.make_tokenizer(), "o", "0")


def test_given_names_win_over_the_table():
    names = ModuleNames("a", "b", "c")
    assert architecture_of("granite", names) == Architecture("a", "b", "c")
    assert architecture_of("gemma2", names) == Architecture(
        "a", "b", "c", "self_attn.o_proj", "post_feedforward_layernorm"
    )
    one = architecture_of("gemma2", ModuleNames(post_norm="d"))
    assert one == dataclasses.replace(ARCHITECTURES["gemma2"], post_norm="d")


def test_two_of_three_names_are_refused():
    with pytest.raises(FedEditError, match="module-mlp-output not given.*together or not at all"):
        architecture_of("llama", ModuleNames(layers="a", final_norm="c"))


@pytest.mark.parametrize(
    ("field", "path", "closest"),
    [
        ("layers", "model.layer", "'model.layers'"),
        ("mlp_output", "mlp.down", ".*'mlp.down_proj'"),
        ("final_norm", "model.ln_f", ".*'model.norm'"),
        ("attention_output", "attn.o_proj", ".*'self_attn.o_proj'"),
        ("post_norm", "post_attention_norm", ".*'post_attention_layernorm'"),
    ],
)
def test_a_name_that_the_model_does_not_have_is_named_with_the_closest(field, path, closest):
    model = tiny.editable()
    names = ModuleNames("model.layers", "mlp.down_proj", "model.norm")
    names = dataclasses.replace(names, **{field: path})
    key = field.replace("_", "-")
    with pytest.raises(FedEditError, match=f"module-{key} = '{path}' is not.*closest.*{closest}"):
        EditableModel(model.model, model.tokenizer, "m", "0", names)


def test_layers_that_are_no_list_are_refused():
    model = tiny.editable()
    names = ModuleNames("model", "mlp.down_proj", "model.norm")
    with pytest.raises(FedEditError, match="module-layers = 'model' is of type LlamaModel"):
        EditableModel(model.model, model.tokenizer, "m", "0", names)


class OtherModule(torch.nn.Module):
    weight = torch.zeros(tiny.D_MODEL, tiny.D_FF)


def quantised():
    linear = torch.nn.Linear(tiny.D_FF, tiny.D_MODEL, bias=False)
    weight = linear.weight.detach().to(torch.int8)
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return linear


def float8():
    linear = torch.nn.Linear(tiny.D_FF, tiny.D_MODEL, bias=False)
    return linear.requires_grad_(False).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("make", [OtherModule, quantised, float8])
def test_a_projection_that_cannot_be_written_is_refused(make):
    plain = tiny.editable()
    model = EditableModel(copy.deepcopy(plain.model), plain.tokenizer, "m", "0")
    model.layers[2].mlp.down_proj = make()
    model.require_editable([1, 3])
    with pytest.raises(FedEditError, match="cannot write to.*Linear and Conv1D.*quantised"):
        model.require_editable([1, 2, 3])


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
