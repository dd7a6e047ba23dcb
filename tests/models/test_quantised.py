"""Models that bitsandbytes has quantised compute and learn as they are; what is edited is plain."""

import json
import shutil

import pytest
import tiny
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from editing.cases import EASY
from experiments.lessons import lesson
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fedit_app import Editor
from fedit_app.experiments.baselines import BASELINES
from fedit_app.models import loading
from fedit_app.models.checkpoint import check_checkpoint
from fedit_app.models.fingerprint import model_fingerprint
from fedit_app.models.quantised import is_quantised, prepare
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.long

pytest.importorskip("bitsandbytes", reason="the extra `quantised` is not installed")

IDS = torch.arange(35).view(7, 5)
WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module", params=["nf4", "fp4", "int8"])
def base(request, tmp_path_factory):
    return tiny.make_quantised(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def model(base):
    """One of its own: what is made plain stays plain."""
    return loaded(base)


def loaded(folder, device="cpu"):
    loading._load.cache_clear()
    return loading.load_model(str(folder), device)


def gradient(model, layer):
    """Of the logits by the output of a layer."""
    states = []

    def begin(_module, _inputs, output):
        states.append(output.detach().requires_grad_())
        return states[0]

    with model.layers[layer].register_forward_hook(begin):
        logits = model.model(IDS.to(model.device)).logits
    return torch.autograd.grad(logits.square().sum(), states[0])[0]


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_only_what_is_edited_is_made_plain(model):
    widths = model.d_model, model.d_ff
    assert widths == (64, 128) and all(is_quantised(model.mlp_output(n)) for n in range(5))
    with pytest.raises(FedEditError, match="cannot write to"):
        model.weight(1)

    model.require_editable([1, 3])

    assert [is_quantised(model.mlp_output(n)) for n in range(5)] == [True, False, True, False, True]
    assert model.weight(1).dtype == torch.float32 and model.weight(1).shape == widths


def test_what_is_made_plain_computes_the_same(model):
    with torch.no_grad():
        before = model.model(IDS).logits
        model.require_editable(range(5))
        after = model.model(IDS).logits
    assert relative(after, before) < 1e-4


def test_gradients_pass_through_quantised_layers_also_after_a_pass_without(model, base):
    with torch.no_grad():
        model.model(IDS)
    found = gradient(model, 1)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).dequantize()
    model.model, model.layers = plain, plain.model.layers
    assert relative(found, gradient(model, 1)) < 1e-4


@pytest.mark.gpu
def test_gradients_on_cuda_are_those_on_a_cpu(base):
    found = gradient(loaded(base, "cuda"), 1).cpu()
    assert relative(found, gradient(loaded(base), 1)) < 1e-2


def test_a_text_does_not_change_what_another_one_computes(model):
    with torch.no_grad():
        alone, beside = model.model(IDS[:1]).logits, model.model(IDS).logits[:1]
    assert relative(alone, beside) < 1e-4


class Counting(ModelHook):
    """What a device map hangs on a module."""

    passes = 0

    def pre_forward(self, module, *args, **kwargs):
        self.passes += 1
        return args, kwargs


def test_what_a_device_map_hangs_on_a_module_stays(model):
    with torch.no_grad():
        expected = model.model(IDS).logits
        hooks = {layer: Counting() for layer in (1, 2)}
        for layer, hook in hooks.items():
            vars(model.mlp_output(layer)).pop("forward", None)
            add_hook_to_module(model.mlp_output(layer), hook)
        prepare(model.model)
        model.require_editable([1])
        assert relative(model.model(IDS).logits, expected) < 1e-4
    assert [hook.passes for hook in hooks.values()] == [1, 1]


def test_the_fingerprint_is_that_of_the_quantised_base_also_where_a_layer_is_plain(model, base):
    model.require_editable([1])
    assert model.fingerprint == model_fingerprint(base)
    assert model.fingerprint != model_fingerprint(base.parent / "plain")


def test_a_quantised_model_in_memory_is_refused(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(FedEditError, match="is quantised.*save_pretrained.*from_pretrained"):
        Editor(model, tiny.make_tokenizer())


@pytest.mark.parametrize("name", ["ft-m", "lora", "lora-fedavg", "grace"])
def test_baselines_make_plain_what_they_train(model, base, name):
    if base.name == "nf4":
        with BASELINES[name](model, lesson([EASY[:1], EASY])):
            model.model(IDS)


def damage(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def no_scales(tensors):
    """Leave one weight without what tells its scales."""
    for name in [name for name in tensors if ".1.mlp.down_proj" in name and name != WEIGHT]:
        if not name.endswith("weight_format"):
            del tensors[name]


def no_weight(tensors):
    del tensors[WEIGHT]


def half_of_one(tensors):
    tensors[WEIGHT] = tensors[WEIGHT][: len(tensors[WEIGHT]) // 2].clone()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (no_scales, "down_proj"),
        (no_weight, "lacks 1 weight .model.layers.1.mlp.down_proj.weight"),
        (half_of_one, "down_proj.weight of shape"),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_a_weight_is_read(base, tmp_path, change, told):
    folder = shutil.copytree(base, tmp_path / "model")
    check_checkpoint(folder)
    damage(folder, change)
    with pytest.raises(FedEditError, match=told):
        check_checkpoint(folder)


def test_sizes_of_another_model_are_refused(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 192}))
    with pytest.raises(FedEditError, match="its config.json asks for .*192"):
        check_checkpoint(folder)


def test_scales_that_are_no_numbers_are_refused(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "model")
    scales = {"nf4": "weight.absmax", "fp4": "weight.nested_absmax", "int8": "SCB"}
    name = WEIGHT.removesuffix("weight") + scales[base.name]
    damage(folder, lambda tensors: tensors[name].fill_(float("nan")))
    with pytest.raises(FedEditError, match=rf"{name} in .*NaN"):
        loaded(folder)
