"""Names that a user gives for an unknown family are checked against what the model computes."""

import copy
import dataclasses

import pytest
import tiny
import torch

from fedit_app.config.model import ModuleNames
from fedit_app.models.architectures import ARCHITECTURES
from fedit_app.models.editable import EditableModel
from fedit_app.models.name_check import verify_model
from fedit_app.support.errors import FedEditError

NAMES = ModuleNames("model.layers", "mlp.down_proj", "model.norm")


def verify(family, names=NAMES, dtype=torch.float32):
    plain = tiny.random_model(family, tiny.make_tokenizer())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # norms that differ
    verify_model(EditableModel(plain.to(dtype), tiny.make_tokenizer(), "mine", "0", names))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", tiny.every(*tiny.FAMILIES, *tiny.VARIANTS))
def test_the_names_of_the_table_are_right(family, dtype):
    model = tiny.editable(family)
    paths = dataclasses.asdict(model.architecture)
    names = ModuleNames(**{field: path or "" for field, path in paths.items()})
    assert ARCHITECTURES[model.model.config.model_type] == model.architecture
    half = copy.deepcopy(model.model).to(dtype)
    verify_model(EditableModel(half, model.tokenizer, "mine", "0", names))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_names_of_unknown_families_are_accepted(dtype):
    verify("granite", dtype=dtype)
    post_norm = "post_norm2"
    verify("hyperclovax", dataclasses.replace(NAMES, post_norm=post_norm), dtype=dtype)


def test_a_wrong_norm_is_refused():
    names = dataclasses.replace(NAMES, final_norm="model.layers.0.input_layernorm")
    with pytest.raises(FedEditError, match="'mine'.*module-final-norm.*input_layernorm"):
        verify("llama", names)


def test_scaled_logits_are_refused():
    with pytest.raises(FedEditError, match="such as scaling the logits"):
        verify("granite-logits", NAMES)


def test_a_projection_to_another_width_is_refused():
    names = dataclasses.replace(NAMES, mlp_output="mlp.up_proj")
    with pytest.raises(FedEditError, match="'mlp.up_proj' puts out 32 numbers.* has 16"):
        verify("llama", names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["hyperclovax", "granite-residual"])
def test_an_output_that_is_changed_on_its_way_is_refused(family, dtype):
    with pytest.raises(FedEditError, match="does not reach the residual stream as it is"):
        verify(family, dtype=dtype)


@pytest.mark.parametrize("norm", ["post_attention_layernorm", "self_attn", "self_attn.q_norm"])
def test_a_wrong_post_norm_is_refused(norm):
    with pytest.raises(FedEditError, match=f"module-post-norm.*'{norm}'"):
        verify("qwen3", dataclasses.replace(NAMES, post_norm=norm))


def test_layers_whose_arguments_cannot_be_split_are_refused():
    names = ModuleNames("transformer.blocks", "ffn.down_proj", "transformer.norm_f")
    with pytest.raises(FedEditError, match=r"argument of shape \(2, 1, \d+\) that has no row"):
        verify("mpt", names)


def test_layers_that_keep_a_recurrent_state_are_refused():
    names = ModuleNames("model.layers", "feed_forward.w2", "model.embedding_norm")
    with pytest.raises(FedEditError, match="'mine': its layers keep more .*recurrent state"):
        verify("lfm2", names)
