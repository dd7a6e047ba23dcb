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
class KeysOf:
    """The keys of MKVs; see `Stack`.

    Attributes:
        mkvs: n of them.
        d_ff: width of a key.
    """

    mkvs: Sequence[MKV]
    d_ff: int

    def __len__(self) -> int:
        return len(self.mkvs)

    def __getitem__(self, at: tuple[slice, int], /) -> Tensor:
        rows, i = at
        return _read([mkv.keys[i] for mkv in self.mkvs[rows]], self.d_ff)


@dataclass(frozen=True)
class ShiftsOf:
    """The shifts of MKVs; see `Stack`.

    Attributes:
        mkvs: n of them.
        d_model: width of a shift.
    """

    mkvs: Sequence[MKV]
    d_model: int

    def __len__(self) -> int:
        return len(self.mkvs)

    def __getitem__(self, at: tuple[slice, int], /) -> Tensor:
        rows, i = at
        return _read([mkv.shifts[i] for mkv in self.mkvs[rows]], self.d_model)


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


def _read(rows: Sequence[np.ndarray], width: int) -> Tensor:
    return torch.from_numpy(np.array(rows, np.float64).reshape(-1, width))
