"""Cosine similarities that come out the same whatever the order and the blocks of the pool.

Unit vectors are rounded to fp16, so their elements are multiples of 2^-24 of magnitude <= 1. Every
partial sum of a dot product is then a multiple of 2^-48 below 2, which fp64 holds exactly: no
matrix routine, block size or order of rows can change a cosine by even one bit.
"""

from collections.abc import Sequence

import numpy as np


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """The vectors `(..., d)` scaled to length 1, rounded to fp16; a zero vector stays zero."""
    vectors = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return units.astype(np.float16)


def cosines(own: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Cosines `(m, b)` float64 of unit rows `(m, d)` and `(b, d)`, both as `unit_rows` gives.

    They differ from the cosines of the unrounded vectors by about 1e-5.
    """
    return own.astype(np.float64) @ candidates.astype(np.float64).T


class BestFirst:
    """Keeps the best-scored ids of a stream of blocks, ties ordered by id.

    Args:
        limit: how many to keep at most (>= 1); None keeps all.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._kept: list[tuple[float, str]] = []  # (-score, id): sorts best first

    def offer(self, ids: Sequence[str], scores: np.ndarray, accepted: np.ndarray) -> None:
        """Adds those of `ids` whose `accepted` `(b,)` is true, with their `scores` `(b,)`."""
        if self._limit is not None and len(self._kept) == self._limit:
            accepted = accepted & (scores >= -self._kept[-1][0])
        self._kept += [(-float(scores[i]), ids[i]) for i in np.flatnonzero(accepted)]
        if self._limit is not None:
            self._kept = sorted(self._kept)[: self._limit]

    def ranking(self) -> list[tuple[str, float]]:
        """The kept ids with their scores, best first."""
        return [(id_, -negated) for negated, id_ in sorted(self._kept)]
