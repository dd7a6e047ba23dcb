"""Computing the part of a text that no delta changes only once.

A causal model's states before the subject's last token do not depend on a delta there. Their keys
and values are kept, and the beginning that all texts of a context template share is run once per
template. This module changes no number; it only saves time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from fedit_app.models.editable import EditableModel
from fedit_app.models.partial import Trace, fixed_cache, keys_and_values, trace
from fedit_app.models.tokens import TokenRow, pad

_ROWS_PER_PASS = 16


@torch.no_grad()
def trace_from_lookup(
    model: EditableModel, rows: Sequence[TokenRow], groups: Sequence[int], first: int
) -> Trace:
    """Trace layers `first` and above on each row from its lookup token on.

    The last target token is left out: nothing is predicted from it.

    Args:
        model: the model.
        rows: token rows.
        groups: number of each row's template; rows of a group begin alike.
        first: first layer to record.

    Returns:
        A trace whose token 0 is the lookup token in every row.
    """
    cache, before = _prefix_cache(model, [row.ids[: row.lookup] for row in rows], groups)
    rest = [row.ids[row.lookup : len(row.ids) - (row.target < len(row.ids))] for row in rows]
    ids, mask = pad(rest, model.pad_token_id)
    return trace(
        model,
        first,
        model.n_layers - 1,
        _inputs(model, ids, mask, before, torch.arange(ids.shape[1])),
        cache=None if cache is None else fixed_cache(cache),
        dry=True,
    )


def _prefix_cache(
    model: EditableModel, rows: Sequence[tuple[int, ...]], groups: Sequence[int]
) -> tuple[DynamicCache | None, Tensor]:
    """Keys and values of token rows, padded on the left, and their attention mask.

    The common beginning of each group is run once, and the rest with rows of its length.
    """
    names = sorted(set(groups))
    members = [[row for row, of in zip(rows, groups, strict=True) if of == name] for name in names]
    shared = [tuple(os.path.commonprefix(texts)) for texts in members]
    group = torch.tensor([names.index(of) for of in groups])
    begun, mask = _append(model, shared, None, torch.zeros(len(shared), 0, dtype=torch.long))
    own = [row[len(shared[of]) :] for row, of in zip(rows, group.tolist(), strict=True)]
    by_length = sorted(range(len(rows)), key=lambda i: len(own[i]))
    parts = []
    for chosen in _chunks(by_length, [len(row) for row in own]):
        of = group[chosen]
        parts.append(_append(model, [own[i] for i in chosen], _rows_of([begun], of), mask[of]))
    place = torch.empty(len(rows), dtype=torch.long)
    place[by_length] = torch.arange(len(rows))
    width = max(mask.shape[1] for _, mask in parts)
    mask = torch.cat([_padded(mask, width, 1) for _, mask in parts])[place]
    return _rows_of([cache for cache, _ in parts], place), mask


def _chunks(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Cut rows, sorted by length, where one is a quarter longer than the first of its chunk.

    Empty rows do not stand alone: they would have no cache.
    """
    chunk: list[int] = []
    for row in order:
        longer = chunk and lengths[chunk[-1]] and lengths[row] > 1.25 * lengths[chunk[0]]
        if longer and len(chunk) >= _ROWS_PER_PASS:
            yield chunk
            chunk = []
        chunk.append(row)
    yield chunk


def _append(
    model: EditableModel, rows: Sequence[Sequence[int]], cache: DynamicCache | None, before: Tensor
) -> tuple[DynamicCache | None, Tensor]:
    """Run rows after what the cache holds; returns the longer cache and its mask.

    All gaps stand before a row's first token: some families (sliding windows, GPT-Neo's local
    attention) count how far apart two tokens are by their places in the cache, gaps included.
    """
    ids, mask = pad(rows, model.pad_token_id)
    if not ids.shape[1]:
        return cache, before
    cache = DynamicCache() if cache is None else cache
    last = model.n_layers - 1
    inputs = _inputs(model, ids, mask, before, torch.arange(ids.shape[1]))
    trace(model, last, last, inputs, cache=cache)
    gaps = ids.shape[1] - mask.sum(1)
    return _moved_right(cache, gaps), _rolled(torch.cat([before, mask], dim=1), gaps)


def _moved_right(cache: DynamicCache, gaps: Tensor) -> DynamicCache:
    """Keys and values moved right by each row's number of gaps, which then are on its left."""
    if not gaps.any():
        return cache
    moved = DynamicCache()
    for number, layer in enumerate(cache.layers):
        keys, values = keys_and_values(layer)
        moved.update(_rolled(keys, gaps, -2), _rolled(values, gaps, -2), number)
    return moved


def _rolled(values: Tensor, gaps: Tensor, dim: int = -1) -> Tensor:
    """Values (rows, ...) with each row rolled right along a dimension."""
    width = values.shape[dim]
    places = (torch.arange(width) - gaps[:, None]) % width
    shape = [1] * values.dim()
    shape[0], shape[dim] = places.shape
    return values.gather(dim, places.view(shape).to(values.device).expand(values.shape))


def _inputs(
    model: EditableModel, ids: Tensor, mask: Tensor, before: Tensor, positions: Tensor
) -> dict[str, Tensor]:
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.cat([before, mask], dim=1),
        "position_ids": before.sum(1, keepdim=True) + positions,
    }
    return {name: value.to(model.device) for name, value in inputs.items()}


def _rows_of(caches: Sequence[DynamicCache | None], rows: Tensor) -> DynamicCache | None:
    """Chosen rows of several caches, concatenated to one cache padded on the left."""
    held = [list(map(keys_and_values, cache.layers)) for cache in caches if cache is not None]
    if not held:
        return None
    joined = DynamicCache()
    width = max(layers[0][0].shape[-2] for layers in held)
    for number, of_layer in enumerate(zip(*held, strict=True)):
        keys, values = (
            torch.cat([_padded(part, width, -2) for part in parts])
            for parts in zip(*of_layer, strict=True)
        )
        chosen = rows.to(keys.device)
        joined.update(keys[chosen], values[chosen], number)
    return joined


def _padded(values: Tensor, width: int, dim: int) -> Tensor:
    """Values with zeros on the left of a dimension."""
    missing = width - values.shape[dim]
    after = values.dim() - 1 - dim % values.dim()
    return functional.pad(values, (0, 0) * after + (missing, 0)) if missing else values
