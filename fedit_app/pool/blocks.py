"""Passes over the pool's signatures, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fedit_app.support.errors import FedEditError

# Upper limits of a block. LanceDB reads some blocks ahead.
BLOCK_BYTES = 8 * 2**20
MOST_ROWS = 2048
# Upper limit of the cosines (float64) that are computed at once.
_COSINE_BYTES = 64 * 2**20


def rows_per_block(width: int) -> int:
    """The number of fp16 vectors of this width in a block."""
    return max(1, min(MOST_ROWS, BLOCK_BYTES // (2 * width)))


@dataclass(frozen=True, eq=False)
class SignatureBlock:
    """Canonical MKVs of the pool without their payload, as rankings need them.

    Attributes:
        ids, nodes, slots: `b` entries each.
        vectors: `(b, d)` float16, one signature a row, of length 1 or zero (see `unit_rows`).
    """

    ids: list[str]
    nodes: list[str]
    slots: list[int]
    vectors: np.ndarray

    def others(self, rows: np.ndarray, excluded: Collection[str]) -> np.ndarray:
        """Booleans: whether the MKV of each row number in `rows` is not `excluded`."""
        return np.array([self.ids[row] not in excluded for row in rows], dtype=bool)

    def pieces(self, queries: int) -> Iterator[SignatureBlock]:
        """The block in pieces whose cosines with this number of queries fit in memory."""
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
    """The rows `(m, d)` of all nodes in one matrix, and the slice of each node in it.

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
            f"signatures of shape {own.shape} found; they must be (m, {width}), as in the pool"
        )
