"""Cosine similarities that do not depend on the order or the blocks of the pool.

Unit vectors are rounded to fp16, so their elements are multiples of 2^-24 of magnitude <= 1. Every
partial sum of a dot product is then a multiple of 2^-48 below 2, which fp64 represents exactly. A
cosine is therefore the same, bit for bit, with every matrix routine, block size and order of rows.
"""

from collections.abc import Callable, Sequence

import numpy as np

# |u|^2 of a unit row exceeds 1 by less than 2^-10 (rounding to fp16); the remainder covers the
# rounding of partial sums of squares in fp32.
_LARGEST_SQUARE = 1 + 2**-9


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Vectors `(..., d)` scaled to length 1 and rounded to fp16; a zero vector stays zero."""
    vectors = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    rounded: np.ndarray = units.astype(np.float16)
    return rounded


def cosines(own: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Cosines `(m, b)` float64 of `unit_rows` `(m, d)` and `(b, d)`.

    They differ from the cosines of the unrounded vectors by about 1e-5.
    """
    own, candidates = (rows.astype(np.float64, copy=False) for rows in (own, candidates))
    return (candidates @ own.T).T  # for small m several times faster than own @ candidates.T


class Sieve:
    """Drops candidates that provably do not matter, without computing their exact cosines.

    For unit rows q, u and some columns A, by Cauchy-Schwarz on the other columns,

        q.u <= q_A.u_A + |q_rest| |u_rest|

    The right side is computed in fp32, plus the largest possible rounding error. If more than half
    of a block is kept, the sieve does not pay off: a growing number of the following blocks is
    then kept whole.

    Args:
        own: `(m, d)` unit rows.
        part: A is a `part`-th of the columns, those in which `own` is largest. Use 1 for mid-range
            cosines; larger values are faster and sufficient where only cosines near 1 matter.
    """

    def __init__(self, own: np.ndarray, part: int = 1) -> None:
        width = own.shape[1]
        self._own = own.astype(np.float32)
        self._columns = None
        if part > 1:
            squares = self._own.astype(np.float64) ** 2
            largest = np.argsort(-squares.sum(axis=0), kind="stable")[: -(-width // part)]
            self._columns = np.sort(largest)
            rest = np.delete(squares, self._columns, axis=1).sum(axis=1)
            self._rest = np.sqrt(rest).astype(np.float32)
            self._own = self._own[:, self._columns]
        # fp32 sums of d products of unit rows are wrong by at most d * 2^-24; twice that is safe.
        self._error = np.float32(2 * (width + 4) * 2**-24)
        self._pause = self._skip = 0

    def kept(
        self, candidates: np.ndarray, matters: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """The row numbers of the candidates that may matter, in ascending order.

        Args:
            candidates: `(b, d)` unit rows.
            matters: upper bounds of the cosines `(m, b)` -> which candidates `(b,)` matter; must be
                true wherever it is true for the exact cosines.
        """
        if self._skip:
            self._skip -= 1
            return np.arange(len(candidates))
        kept = np.flatnonzero(matters(self._bounds(candidates)))
        self._pause = 2 * self._pause + 1 if 2 * len(kept) > len(candidates) else 0
        self._skip = self._pause
        return kept

    def _bounds(self, candidates: np.ndarray) -> np.ndarray:
        upper: np.ndarray
        if self._columns is None:
            upper = (candidates.astype(np.float32) @ self._own.T).T + self._error
            return upper
        part = candidates[:, self._columns].astype(np.float32)
        rest = np.sqrt(np.maximum(_LARGEST_SQUARE - np.einsum("bd,bd->b", part, part), 0))
        upper = (part @ self._own.T).T + self._rest[:, None] * rest + self._error
        return upper


class BestFirst:
    """Keeps the ids with the best scores of a stream of blocks, ties ordered by id.

    Args:
        limit: largest number of ids to keep (>= 1); None: all.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._ids: list[str] = []
        self._scores: list[np.ndarray] = []
        self.floor = -np.inf  # scores below it are not kept

    def offer(self, ids: Sequence[str], scores: np.ndarray) -> None:
        """Add `ids` with their `scores` `(b,)`, float64."""
        wanted = np.flatnonzero(scores >= self.floor)
        if not len(wanted):
            return
        self._ids += [ids[i] for i in wanted.tolist()]
        self._scores.append(scores[wanted])
        if self._limit is not None and len(self._ids) > self._limit:
            self._sort()
            del self._ids[self._limit :]
            self._scores = [self._scores[0][: self._limit]]
        if self._limit is not None and len(self._ids) == self._limit:
            self.floor = min(float(scores.min()) for scores in self._scores)

    def ranking(self) -> list[tuple[str, float]]:
        """The kept ids with their scores, best first."""
        if not self._ids:
            return []
        self._sort()
        return list(zip(self._ids, self._scores[0].tolist(), strict=True))

    def _sort(self) -> None:
        scores = np.concatenate(self._scores)
        order = np.lexsort((np.array(self._ids), -scores))
        self._ids = [self._ids[i] for i in order]
        self._scores = [scores[order]]
