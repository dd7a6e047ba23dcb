"""Exact nearest-neighbour search in a pool."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fedit_app.mkv.similarity import BestFirst, Sieve, cosines, unit_rows
from fedit_app.pool.blocks import SignatureBlock, check_width, stacked

# Above this cosine, bounds from an eighth of the columns exclude nearly all other candidates.
_HIGH_THRESHOLD = 0.9
_PART = 8


@dataclass(frozen=True, slots=True)
class Match:
    """An MKV of the pool and the cosine of its signature with a query."""

    id: str
    cosine: float


def nearest(
    queries: Mapping[str, np.ndarray],
    blocks: Iterable[SignatureBlock],
    threshold: float,
    limit: int | None,
    exclude_ids: Mapping[str, Collection[str]] | None = None,
) -> dict[str, list[list[Match]]]:
    """The candidates with cosine >= `threshold` for every node and query, in one pass.

    Args:
        queries: node -> `(m, d)`, nonzero vectors of any length.
        blocks: the candidates.
        threshold: the least cosine, -1 to 1.
        limit: largest number of matches of a query, >= 1; None for all.
        exclude_ids: node -> MKVs that it never matches.

    Returns:
        node -> a list per query, the best first, ties by id.

    Raises:
        FedEditError: the width of the queries differs from that of the candidates.
    """
    excluded = exclude_ids or {}
    own, parts = stacked({node: unit_rows(rows) for node, rows in queries.items()})
    best = [BestFirst(limit) for _ in own]
    floors = np.full(len(own), float(threshold))
    sieve = Sieve(own, _PART if threshold >= _HIGH_THRESHOLD else 1)

    def matters(upper: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.any(upper >= floors[:, None], axis=0)
        return found

    for block in blocks if len(own) else ():
        check_width(own, block.vectors.shape[1])
        for piece in block.pieces(len(own)):
            kept = sieve.kept(piece.vectors, matters)
            cosine = cosines(own, piece.vectors[kept])
            hits = cosine >= floors[:, None]
            for node, part in parts.items():
                rows = np.flatnonzero(hits[part].any(axis=0))
                rows = rows[piece.others(kept[rows], excluded.get(node, ()))]
                for i in part.start + np.flatnonzero(hits[part].any(axis=1)):
                    mine = rows[hits[i, rows]]
                    best[i].offer([piece.ids[row] for row in kept[mine]], cosine[i, mine])
                    floors[i] = max(threshold, best[i].floor)
    return {
        node: [[Match(*found) for found in one.ranking()] for one in best[part]]
        for node, part in parts.items()
    }
