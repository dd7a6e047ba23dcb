"""Vectors of many MKVs, of which a layer and some rows are read at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedit_app.mkv import MKV


class Rows(Protocol):
    """n vectors (n, d): a tensor, or what is read as one."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Some of them, (b, d)."""


class Stack(Protocol):
    """n vectors of every edited layer (n, n_layers, d): a tensor, or what is read as one."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, at: tuple[slice, int], /) -> Tensor:
        """Some of them of the i-th edited layer, (b, d)."""


@dataclass(frozen=True)
class VectorsOf:
    """The keys or the shifts of MKVs, the pairs of each in turn; see `Stack`.

    Attributes:
        mkvs: some of them.
        field: `keys` or `shifts`.
        width: of a vector.
        kinds: how many pairs an MKV has of each layer.
    """

    mkvs: Sequence[MKV]
    field: str
    width: int
    kinds: int = 1

    def __len__(self) -> int:
        return len(self.mkvs) * self.kinds

    def __getitem__(self, at: tuple[slice, int], /) -> Tensor:
        rows, i = at
        begin, end, _ = rows.indices(len(self))
        first, last = begin // self.kinds, -(-end // self.kinds)
        of_layer = slice(i * self.kinds, (i + 1) * self.kinds)
        read = [getattr(mkv, self.field)[of_layer] for mkv in self.mkvs[first:last]]
        found = torch.from_numpy(np.array(read, np.float64).reshape(-1, self.width))
        return found[begin - first * self.kinds : end - first * self.kinds]


@dataclass(frozen=True)
class LayerOf:
    """The vectors of one layer of a stack; see `Rows`.

    Attributes:
        stack: those of all layers.
        i: number of the layer among the edited ones.
    """

    stack: Stack
    i: int

    def __len__(self) -> int:
        return len(self.stack)

    def __getitem__(self, rows: slice, /) -> Tensor:
        return self.stack[rows, self.i]


@dataclass(frozen=True)
class Joined:
    """Vectors and more of them; see `Rows`.

    Attributes:
        first: n vectors.
        more: (m, d) those that follow.
    """

    first: Rows
    more: Tensor

    def __len__(self) -> int:
        return len(self.first) + len(self.more)

    def __getitem__(self, rows: slice, /) -> Tensor:
        begin, end, _ = rows.indices(len(self))
        n = len(self.first)
        before, after = self.first[min(begin, n) : min(end, n)], self.more
        parts = before.to(after), after[max(begin - n, 0) : max(end - n, 0)]
        return torch.cat(parts) if len(parts[1]) else parts[0]
