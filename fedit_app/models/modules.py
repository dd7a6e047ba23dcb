"""Finding the modules of a model by the names that are known or given for its family."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedit_app.models.architectures import Architecture, module_key
from fedit_app.models.quantised import QUANTISED_REMEDY
from fedit_app.support.errors import FedEditError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def find_module(root: nn.Module, field: str, path: str) -> nn.Module:
    """A module by its path.

    Args:
        root: where the path starts: the model, or a decoder layer.
        field: the field of `Architecture` that the path is of.
        path: names joined by dots.

    Raises:
        FedEditError: there is no such module; names those with the most similar paths.
    """
    try:
        return root.get_submodule(path)
    except AttributeError:
        paths = [name for name, _ in root.named_modules() if name]
        if field == "layers":
            paths = [name for name, part in root.named_modules() if isinstance(part, nn.ModuleList)]
        closest = difflib.get_close_matches(path, paths, n=3, cutoff=0.0)
        raise FedEditError(
            f"model: {module_key(field)} = {path!r} is not a module of {type(root).__name__}; "
            f"the closest are {', '.join(map(repr, closest)) or 'none: it has no modules'}"
        ) from None


def find_layers(model: nn.Module, architecture: Architecture) -> nn.ModuleList:
    """The decoder layers of a model whose other modules have been found to be there as well.

    Args:
        model: the causal language model; its weights may be on the meta device.
        architecture: the module paths.

    Raises:
        FedEditError: a path leads nowhere, or the one of the layers not to a list.
    """
    layers = find_module(model, "layers", architecture.layers)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise FedEditError(
            f"model: module-layers = {architecture.layers!r} is of type "
            f"{type(layers).__name__}, not a list of decoder layers"
        )
    find_module(model, "final_norm", architecture.final_norm)
    find_module(layers[0], "mlp_output", architecture.mlp_output)
    if architecture.attention_output:
        find_module(layers[0], "attention_output", architecture.attention_output)
    if architecture.post_norm:
        find_module(layers[0], "post_norm", architecture.post_norm)
    return layers


def projection_weight(module: nn.Module) -> Tensor:
    """The weight of an output projection as (outputs, inputs), a view.

    Raises:
        FedEditError: the module is neither a plain Linear nor a Conv1D, or it is quantised.
    """
    if isinstance(module, (nn.Linear, Conv1D)):
        weight = module.weight
        plain = type(weight) is nn.Parameter and type(weight.data) is Tensor
        if plain and weight.dtype in _FLOATS:
            return weight.T if isinstance(module, Conv1D) else weight
    raise FedEditError(
        f"model: the MLP's output projection is a {type(module).__module__}."
        f"{type(module).__name__}, which FedEdit cannot write to; it edits Linear and Conv1D "
        "modules in float32, bfloat16 or float16. Merge an adapter into the weights. Of quantised "
        f"weights: {QUANTISED_REMEDY}"
    )


def projection_shape(module: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of an output projection, which may be quantised.

    Raises:
        FedEditError: see `projection_weight`.
    """
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    outputs, inputs = projection_weight(module).shape
    return outputs, inputs


def on_device_of(tensor: Tensor, module: nn.Module) -> Tensor:
    """A tensor where a module computes; as it is if the module has no weights in memory."""
    for parameter in module.parameters():
        if not parameter.is_meta:
            return tensor.to(parameter.device)
    return tensor
