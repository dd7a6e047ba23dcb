"""Whether a model computes what FedEdit takes it for.

A wrong module name, or a setting in config.json by which a family computes something else, would
not fail but edit wrongly. So the model is asked: a few tokens go through it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from fedit_app.models.editable import EditableModel
from fedit_app.models.partial import Trace, fixed_cache, trace
from fedit_app.support.errors import FedEditError

_ROWS, _TOKENS, _FIRST = 7, 5, 3  # primes: no size of a model is likely to be one by chance
_TOLERANCE, _ROUGH_TOLERANCE = 0.05, 0.2


@torch.no_grad()
def verify_model(model: EditableModel) -> None:
    """Compare what FedEdit reads by the module names with what the model computes.

    Args:
        model: the model, unedited.

    Raises:
        FedEditError: its logits are more than its norm and head, the output of W_out reaches the
            residual stream changed, its layers cannot be run for some rows of a batch, or not with
            the keys and values of earlier tokens.
    """
    ids = torch.arange(_ROWS * _TOKENS, device=model.device).view(_ROWS, _TOKENS)
    ids = ids % model.model.get_input_embeddings().weight.shape[0]
    last = model.n_layers - 1
    traced = trace(model, last, last, {"input_ids": ids})
    _verify_rows(model, traced)
    _verify_width(model, traced)
    final = traced.run(traced.hidden, last, last)
    logits = model.model(ids, use_cache=False).logits
    if _difference(model.logits(final), logits.to(final.device)) > _TOLERANCE:
        raise FedEditError(
            f"model {model.name!r}: its logits are not its output head on module-final-norm "
            f"({model.architecture.final_norm!r}) of the last layer; either the name is wrong, or "
            "the family does more (such as scaling the logits) and FedEdit cannot edit it"
        )
    _verify_projection(model, traced, final)
    _verify_cache(model, ids, final)


def _verify_rows(model: EditableModel, traced: Trace) -> None:
    """What a layer gets besides the states must have a row per text, or be the same for all."""
    args, kwargs = traced.calls[traced.last]
    for tensor in _tensors([args, {k: v for k, v in kwargs.items() if k != "alibi"}]):
        if tensor.dim() >= 2 and len(tensor) not in (1, _ROWS):
            raise FedEditError(
                f"model {model.name!r}: its layers take an argument of shape "
                f"{tuple(tensor.shape)} that has no row per text; FedEdit cannot edit this family"
            )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in _tensors(part)]
    return []


def _verify_width(model: EditableModel, traced: Trace) -> None:
    width = traced.hidden.shape[-1]
    if model.d_model != width:
        raise FedEditError(
            f"model {model.name!r}: module-mlp-output = {model.architecture.mlp_output!r} puts out "
            f"{model.d_model} numbers, the residual stream has {width}; name the projection that "
            "leads back to the residual stream"
        )


def _verify_projection(model: EditableModel, traced: Trace, final: Tensor) -> None:
    """What is added to the output of W_out must arrive at the end of the layer.

    As much is added as the layer puts out: small changes would be lost in half precision.
    """
    layer, projected = traced.last, []

    def add(_: Any, __: Any, output: Tensor) -> Tensor:
        projected.append(output.to(final.device, copy=True).view_as(final))
        return output + final.to(output.device).view_as(output)

    handle = model.mlp_output(layer).register_forward_hook(add)
    try:
        moved = traced.run(traced.hidden, layer, layer) - final
    finally:
        handle.remove()
    before, after = (model.post_norm(layer, m) for m in (projected[0], projected[0] + final))
    if _difference(moved, after - before) > _ROUGH_TOLERANCE:
        norm = model.architecture.post_norm
        through = f" through module-post-norm ({norm!r})" if norm else " as it is"
        raise FedEditError(
            f"model {model.name!r}: what module-mlp-output ({model.architecture.mlp_output!r}) "
            f"puts out does not reach the residual stream{through}. If an RMS norm stands between "
            "them, it is module-post-norm; else the name is wrong, or FedEdit cannot edit the "
            "family"
        )


def _verify_cache(model: EditableModel, ids: Tensor, final: Tensor) -> None:
    """Tokens behind others whose keys and values are kept must have the states they have with them.

    Not so in layers that keep a recurrent state, or that look at later tokens.
    """
    last, cache, places = model.n_layers - 1, DynamicCache(), torch.arange(_TOKENS).to(ids)
    mask = torch.ones_like(ids)
    try:
        for part in (slice(_FIRST), slice(_FIRST, _TOKENS)):
            inputs = {
                "input_ids": ids[:, part],
                "attention_mask": mask[:, : part.stop],
                "position_ids": places[part].expand(len(ids), -1),
            }
            kept = fixed_cache(cache) if part.start else cache
            traced = trace(model, last, last, inputs, cache=kept)
        found = traced.run(traced.hidden, last, last)
        right = _difference(found, final[:, _FIRST:]) <= _TOLERANCE
    except Exception:  # whatever a family does that expects another cache
        right = False
    if not right:
        raise FedEditError(
            f"model {model.name!r}: its layers keep more of earlier tokens than keys and values "
            "(such as a recurrent state), or look at later ones; FedEdit cannot edit it"
        )


def _difference(found: Tensor, expected: Tensor) -> float:
    """Median over the tokens of |found - expected| / |expected|; a few tokens may round badly."""
    found, expected = found.double(), expected.double()
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median())
