"""Running a part of a model: only some layers, only the tokens that can change.

The decoder layers of every Hugging Face family are called one after the other with a hidden
state and arguments (mask, positions, cache) that do not depend on it. `trace` runs the model once
and records those arguments; afterwards any layer can be run again on another hidden state
without knowing anything of the family.
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
        hidden: (batch, tokens, d_model) input of layer `first`.
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
            (batch, tokens, d_model) output of layer `last`.
        """
        for layer in range(first, last + 1):
            args, kwargs = self.calls[layer]
            output = self.model.layers[layer](hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

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
        return Trace(self.model, self.first, self.last, self.hidden[rows], calls)


def _select(value: Any, rows: Tensor, batch: int, seen: dict[int, Any]) -> Any:
    """Take rows of everything in `value` that has a row per batch entry.

    `seen` keeps what several layers share (masks, rotary angles, the cache) shared.
    """
    if isinstance(value, tuple):
        return tuple(_select(part, rows, batch, seen) for part in value)
    if isinstance(value, dict):
        return {key: _select(part, rows, batch, seen) for key, part in value.items()}
    if id(value) in seen:
        return seen[id(value)]
    selected = value
    if isinstance(value, Tensor) and value.dim() >= 2 and len(value) == batch:
        selected = value[rows.to(value.device)]
    elif isinstance(value, Cache):
        layers = [
            _FixedLayer(layer.keys[rows], layer.values[rows]) if len(layer.keys) else layer
            for layer in value.layers
        ]
        selected = Cache(layers=layers)
    seen[id(value)] = selected
    return selected


def trace(model: EditableModel, first: int, last: int, **inputs: Any) -> Trace:
    """Run a model up to the end of layer `last` and record the calls of layers first..last.

    Args:
        model: the model.
        first: first layer to record.
        last: last layer to record; nothing behind it is computed.
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
        model.model(**inputs)
    except _ReachedLast:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return Trace(model, first, last, hidden[0], calls)


@contextmanager
def projection_inputs(model: EditableModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the inputs of the MLP output projections, the keys, of a forward pass.

    Yields:
        layer -> (batch, tokens, d_ff), filled by forward passes inside the block.
    """
    keys: dict[int, Tensor] = {}

    def keep(layer: int, args: tuple[Any, ...]) -> None:
        keys[layer] = args[0]

    handles = [
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
