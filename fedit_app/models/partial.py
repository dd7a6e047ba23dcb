"""Running a part of a model: only some layers, only the tokens that can change.

The decoder layers of every Hugging Face family are called one after the other with a hidden
state and arguments (mask, positions, cache) that do not depend on it. `trace` runs the model once
and records those arguments; afterwards any layer can be run again on another hidden state
without knowing anything of the family.

Layers may live on several devices. What comes out of this module lives on the device of what went
in: the caller sees one device only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from fedit_app.models.editable import EditableModel
from fedit_app.models.modules import on_device_of


class _ReachedLast(Exception):
    """Leaves a forward pass after the last layer that is needed."""


class _FixedLayer(DynamicLayer):
    """Keys and values of the tokens before; queries see them, nothing is ever added."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The fixed keys and values with those of the current tokens behind them."""
        return (
            torch.cat([self.keys, key_states], dim=-2),
            torch.cat([self.values, value_states], dim=-2),
        )


def fixed_cache(cache: DynamicCache) -> Cache:
    """A key/value cache that can be used again and again, since no forward pass changes it."""
    return Cache(layers=[_FixedLayer(layer.keys, layer.values) for layer in cache.layers])


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
    if not len(layer.keys):
        return layer
    rows = rows.to(layer.keys.device)
    return _FixedLayer(layer.keys[rows], layer.values[rows])


def trace(
    model: EditableModel, first: int, last: int, *, dry: bool = False, **inputs: Any
) -> Trace:
    """Run a model up to the end of layer `last` and record the calls of layers first..last.

    Args:
        model: the model.
        first: first layer to record.
        last: last layer to record; nothing behind it is computed.
        dry: record the layers above `first` without computing them.
        inputs: arguments of the model's forward: input_ids, attention_mask, position_ids, ...
    """
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    hidden: list[Tensor] = []

    def record(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        state = args[0] if args else kwargs.pop("hidden_states")
        if layer == first:
            hidden.append(state)
        calls[layer] = (tuple(args[1:]), kwargs)

    def leave(*_: Any) -> None:
        raise _ReachedLast

    handles = [
        model.layers[layer].register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: record(layer, args, kwargs), with_kwargs=True
        )
        for layer in range(first, last + 1)
    ]
    handles.append(model.layers[last].register_forward_hook(leave))
    try:
        with _passed_over(model, range(first, last + 1) if dry else ()):
            model.model(**inputs)
    except _ReachedLast:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return Trace(model, first, last, hidden[0].to(model.device), calls)


@contextmanager
def _passed_over(model: EditableModel, layers: Sequence[int]) -> Iterator[None]:
    """Layers that give out what the first of them does: it shows in which form they do."""
    if not layers:
        yield
        return
    first, *above = (model.layers[layer] for layer in layers)
    given: list[Any] = []
    handle = first.register_forward_hook(lambda _, __, output: given.append(output))
    saved = [vars(module).get("forward") for module in above]
    for module in above:
        module.forward = lambda *_, **__: given[0]
    try:
        yield
    finally:
        handle.remove()
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

    def keep_shape(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shapes[layer] = (args[0] if args else kwargs["hidden_states"]).shape[:2]

    def keep(layer: int, args: tuple[Any, ...]) -> None:
        # OPT flattens (batch, tokens) before its MLP
        keys[layer] = args[0].reshape(*shapes[layer], -1).to(model.device)

    handles = [
        model.layers[layer].register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: keep_shape(layer, args, kwargs), with_kwargs=True
        )
        for layer in layers
    ]
    handles += [
        model.mlp_output(layer).register_forward_pre_hook(
            lambda _, args, layer=layer: keep(layer, args)
        )
        for layer in layers
    ]
    try:
        yield keys
    finally:
        for handle in handles:
            handle.remove()
