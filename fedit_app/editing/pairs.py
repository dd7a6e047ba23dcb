"""Keys and shifts of many MKVs, one pair each: row by row for few of them, as sums for many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit_app.editing.rows import Joined, LayerOf, Rows, Stack


@dataclass
class Sums:
    """What a solve by sums needs of the n pairs of a layer.

    Attributes:
        keys: K K^T (d_ff, d_ff) float64.
        cross: K R^T (d_ff, d_model) float64.
        rounding: a bound on what rounding has added to either, in units of the rounding of float64
            (2^-53): the trace of K K^T, added up over all changes.
    """

    keys: Tensor
    cross: Tensor
    rounding: float = 0.0

    @staticmethod
    def of_none(d_ff: int, d_model: int, device: torch.device) -> Sums:
        """The sums of no pairs."""
        keys = torch.zeros(d_ff, d_ff, dtype=torch.float64, device=device)
        return Sums(keys, keys.new_zeros(d_ff, d_model))

    def add(self, keys: Rows, shifts: Rows, times: int = 1) -> None:
        """Add n pairs, block by block.

        Args:
            keys: (n, d_ff).
            shifts: (n, d_model).
            times: -1 takes them out.
        """
        for rows in blocks(len(keys), len(self.keys)):
            k, r = keys[rows].to(self.keys), shifts[rows].to(self.cross)
            before = float(self.keys.trace())
            self.keys.addmm_(k.T, k, alpha=times)
            self.cross.addmm_(k.T, r, alpha=times)
            after = float(self.keys.trace())
            self.rounding += max(before, after) + len(k) * abs(after - before)

    @property
    def drift(self) -> float:
        """The bound on what rounding has added, relative to the trace of K K^T."""
        trace = float(self.keys.trace())
        return self.rounding * 2.0**-53 / trace if trace > 0 else float("inf")


@dataclass(frozen=True)
class LayerPairs:
    """The n pairs of one edited layer.

    Attributes:
        keys: (n, d_ff), one key a row.
        shifts: (n, d_model), one shift a row.
        known: gives new sums of them on a device, where they need not be summed row by row.
    """

    keys: Rows
    shifts: Rows
    known: Callable[[torch.device], Sums] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def widths(self) -> tuple[int, int]:
        """d_ff and d_model."""
        return self.keys[:0].shape[1], self.shifts[:0].shape[1]

    def sums(self, device: torch.device) -> Sums:
        """Their sums, which are the caller's to change."""
        if self.known is not None:
            return self.known(device)
        found = Sums.of_none(*self.widths, device)
        found.add(self.keys, self.shifts)
        return found

    def with_more(self, keys: Tensor, shifts: Tensor) -> LayerPairs:
        """These pairs and m more, keys (m, d_ff) and shifts (m, d_model)."""

        def known(device: torch.device) -> Sums:
            found = self.sums(device)
            found.add(keys, shifts)
            return found

        return LayerPairs(Joined(self.keys, keys), Joined(self.shifts, shifts), known)


@dataclass(frozen=True)
class Pairs:
    """The n pairs of every edited layer.

    Attributes:
        keys: (n, n_layers, d_ff).
        shifts: (n, n_layers, d_model).
        known: (number of the edited layer, device) -> new sums of its pairs; see `LayerPairs`.
    """

    keys: Stack
    shifts: Stack
    known: Callable[[int, torch.device], Sums] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def layer(self, i: int) -> LayerPairs:
        """Those of the i-th edited layer."""
        known = self.known
        of_layer = None if known is None else lambda device: known(i, device)
        return LayerPairs(LayerOf(self.keys, i), LayerOf(self.shifts, i), of_layer)


def blocks(n: int, d_ff: int) -> Iterator[slice]:
    """Rows 0 .. n-1 in blocks of d_ff / 8, each an eighth of a matrix (d_ff, d_ff)."""
    size = max(1, d_ff // 8)
    return (slice(begin, min(begin + size, n)) for begin in range(0, n, size))
