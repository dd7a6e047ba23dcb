"""Running a part of a model: only some layers, only the tokens that can change.

The decoder layers of every Hugging Face family are called one after the other with a hidden
state and arguments (mask, positions, cache) that do not depend on it. `trace` runs the model once
and records those arguments; afterwards any layer can be run again on another hidden state
without knowing anything of the family.

Layers may live on several devices. Outputs of this module are on the device of its inputs: the
caller sees one device only.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from fedit_app.models.editable import EditableModel
from fedit_app.models.modules import on_device_of


class _ReachedLast(Exception):
    """Leaves a forward pass after the last layer that is needed."""


class _FixedLayer(DynamicLayer):
    """Keys and values of the tokens before, to which a forward pass adds nothing."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The fixed keys and values, followed by those of the current tokens."""
        keys, values = keys_and_values(self)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def _fixed_layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = _FixedLayer()  # type: ignore[no-untyped-call]  # transformers'
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def fixed_cache(cache: Cache) -> Cache:
    """A copy of a key/value cache that no forward pass changes, so it serves many passes."""
    return Cache(layers=[_fixed_layer(*keys_and_values(layer)) for layer in cache.layers])


def keys_and_values(layer: Any) -> tuple[Tensor, Tensor]:
    """What a layer of a key/value cache holds, each (rows, heads, tokens, d_head)."""
    return layer.keys, layer.values


@dataclass
class Trace:
    """What layers `first` .. `last` were called with in one forward pass.

    Attributes:
        model: the model.
        first: first recorded layer.
        last: last recorded layer.
        hidden: (batch, tokens, d_model) input of layer `first`, on the device of the input ids.
        calls: layer -> positional and keyword arguments besides the hidden state.
    """

    model: EditableModel
    first: int
    last: int
    hidden: Tensor
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]]

    def run(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Run layers first..last on a hidden state.

        Args:
            hidden: (batch, tokens, d_model) input of layer `first`.
            first: first layer to run.
            last: last layer to run; smaller than `first` runs nothing.

        Returns:
            (batch, tokens, d_model) output of layer `last`, on the device of `hidden`.
        """
        device = hidden.device
        for layer in range(first, last + 1):
            args, kwargs = self.calls[layer]
            module = self.model.layers[layer]
            output = module(on_device_of(hidden, module), *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden.to(device)

    def select(self, rows: Tensor) -> Trace:
        """The same for some rows of the batch only.

        Args:
            rows: (kept,) row numbers.
        """
        batch = len(self.hidden)
        seen: dict[int, Any] = {}
        calls = {
            layer: (_select(args, rows, batch, seen), _select(kwargs, rows, batch, seen))
            for layer, (args, kwargs) in self.calls.items()
        }
        hidden = self.hidden[rows.to(self.hidden.device)]
        return Trace(self.model, self.first, self.last, hidden, calls)


def _select(value: Any, rows: Tensor, batch: int, seen: dict[int, Any], name: str = "") -> Any:
    """Take rows of everything in `value` that has a row per batch entry.

    `seen` keeps what several layers share (masks, rotary angles, the cache) shared.
    """
    if isinstance(value, tuple):
        return tuple(_select(part, rows, batch, seen) for part in value)
    if isinstance(value, dict):
        return {key: _select(part, rows, batch, seen, key) for key, part in value.items()}
    if id(value) in seen:
        return seen[id(value)]
    selected = value
    if isinstance(value, Tensor) and name == "alibi":
        # Bloom's position biases: all heads of the first row, then all of the second, ...
        per_row = value.unflatten(0, (batch, -1))
        selected = per_row[rows.to(value.device)].flatten(0, 1)
    elif isinstance(value, Tensor) and value.dim() >= 2 and len(value) == batch:
        selected = value[rows.to(value.device)]
    elif isinstance(value, Cache):
        selected = Cache(layers=[_select_cached(layer, rows) for layer in value.layers])
    seen[id(value)] = selected
    return selected


def _select_cached(layer: Any, rows: Tensor) -> Any:
    keys, values = keys_and_values(layer)
    if not len(keys):
        return layer
    rows = rows.to(keys.device)
    return _fixed_layer(keys[rows], values[rows])


def trace(
    model: EditableModel,
    first: int,
    last: int,
    inputs: Mapping[str, Tensor],
    *,
    cache: Cache | None = None,
    dry: bool = False,
) -> Trace:
    """Run a model up to the end of layer `last` and record the calls of layers first..last.

    Args:
        model: the model.
        first: first layer to record.
        last: last layer to record; nothing after it is computed.
        inputs: for the model's forward: input_ids, attention_mask, position_ids.
        cache: keys and values of the tokens before the inputs.
        dry: record the layers above `first` without computing them.
    """
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    hidden: list[Tensor] = []

    def record(layer: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        state = args[0] if args else kwargs.pop("hidden_states")
        if layer == first:
            hidden.append(state)
        calls[layer] = (tuple(args[1:]), kwargs)

    def leave(*_: Any) -> None:
        raise _ReachedLast

    with ExitStack() as hooks:
        for layer in range(first, last + 1):
            before = partial(record, layer)
            hooks.enter_context(
                model.layers[layer].register_forward_pre_hook(before, with_kwargs=True)
            )
        hooks.enter_context(model.layers[last].register_forward_hook(leave))
        if dry:
            hooks.enter_context(_passed_over(model, range(first, last + 1)))
        with suppress(_ReachedLast):
            model.model(**inputs, **{_cache_argument(model): cache}, use_cache=cache is not None)
    return Trace(model, first, last, hidden[0].to(model.device), calls)


def _cache_argument(model: EditableModel) -> str:
    """What the model's forward calls its key/value cache; older transformers: past_key_values."""
    known = inspect.signature(model.model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


@contextmanager
def _passed_over(model: EditableModel, layers: Sequence[int]) -> Iterator[None]:
    """Layers that return what the first of them does, which shows in which form they do."""
    first, *above = (model.layers[layer] for layer in layers)
    given: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        given.append(output)

    saved = [vars(module).get("forward") for module in above]
    for module in above:
        module.forward = lambda *_, **__: given[0]
    try:
        with first.register_forward_hook(keep):
            yield
    finally:
        for module, forward in zip(above, saved, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


@contextmanager
def projection_inputs(model: EditableModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the inputs of the MLP output projections, the keys, of a forward pass.

    Yields:
        layer -> (batch, tokens, d_ff) on `model.device`, filled by forward passes inside the block.
    """
    keys: dict[int, Tensor] = {}
    shapes: dict[int, torch.Size] = {}

    def keep_shape(layer: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shapes[layer] = (args[0] if args else kwargs["hidden_states"]).shape[:2]

    def keep(layer: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        # OPT flattens (batch, tokens) before its MLP
        keys[layer] = args[0].reshape(*shapes[layer], -1).to(model.device)

    with ExitStack() as hooks:
        for layer in layers:
            decoder, projection = model.layers[layer], model.mlp_output(layer)
            shape_hook, key_hook = partial(keep_shape, layer), partial(keep, layer)
            hooks.enter_context(decoder.register_forward_pre_hook(shape_hook, with_kwargs=True))
            hooks.enter_context(projection.register_forward_pre_hook(key_hook))
        yield keys
