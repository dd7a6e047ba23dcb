"""Passes over the pool's signatures, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fedit_app.support.errors import FedEditError

# A block holds about so many bytes, and at most so many rows. LanceDB reads some blocks ahead.
BLOCK_BYTES = 8 * 2**20
MOST_ROWS = 2048
# Cosines (float64) that are computed at once.
_COSINE_BYTES = 64 * 2**20


def rows_per_block(width: int) -> int:
    """How many fp16 vectors of this width a block holds."""
    return max(1, min(MOST_ROWS, BLOCK_BYTES // (2 * width)))


@dataclass(frozen=True, eq=False)
class SignatureBlock:
    """Some canonical MKVs of the pool as ranking reads them, without their payload.

    Attributes:
        ids, nodes, slots: `b` entries each.
        vectors: `(b, d)` float16, one signature a row, of length 1 or zero (see `unit_rows`).
    """

    ids: list[str]
    nodes: list[str]
    slots: list[int]
    vectors: np.ndarray

    def others(self, rows: np.ndarray, excluded: Collection[str]) -> np.ndarray:
        """Which of the row numbers `rows` hold an MKV that is not `excluded`, as booleans."""
        return np.array([self.ids[row] not in excluded for row in rows], dtype=bool)

    def pieces(self, queries: int) -> Iterator[SignatureBlock]:
        """The block in pieces whose cosines with so many queries fit in memory."""
        size = max(1, _COSINE_BYTES // (8 * max(1, queries)))
        if size >= len(self.ids):
            yield self
            return
        for start in range(0, len(self.ids), size):
            part = slice(start, start + size)
            yield SignatureBlock(
                self.ids[part], self.nodes[part], self.slots[part], self.vectors[part]
            )


def stacked(rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, slice]]:
    """The rows `(m, d)` of all nodes in one matrix, and where in it each node's rows are.

    Raises:
        FedEditError: nodes have rows of different widths.
    """
    filled = {node: own for node, own in rows.items() if len(own)}
    for own in filled.values():
        check_width(own, next(iter(filled.values())).shape[-1])
    ends = np.cumsum([len(own) for own in filled.values()])
    parts = dict.fromkeys(rows, slice(0, 0))
    for (node, own), end in zip(filled.items(), ends, strict=True):
        parts[node] = slice(int(end) - len(own), int(end))
    return np.concatenate(list(filled.values())) if filled else np.zeros((0, 0)), parts


def check_width(own: np.ndarray, width: int) -> None:
    """Raises FedEditError unless `own` is `(m, width)`."""
    if own.ndim != 2 or own.shape[1] != width:
        raise FedEditError(
            f"signatures of shape {own.shape} found; they have to be (m, {width}) to be compared "
            "with the pool's"
        )
