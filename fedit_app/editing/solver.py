"""The joint solve: all MKVs of a ledger into one change per layer.

    Delta_l = R_l K_l^T (A_l + K_l K_l^T)^-1,   A_l = lambda C_l
                                                 (MEMIT, arXiv 2210.07229, algorithm 1)

with K_l (d_ff, n) and R_l (d_model, n) the keys and shifts as columns. Two forms give the same to
rounding, and `sums_are_cheaper` says which one is used:

- *by pairs*, for few MKVs. A_l = L L^T is factorised once; with H = L^-1 K_l the Woodbury identity
  leaves an n x n system: Delta_l = R_l (I + H^T H)^-1 H^T L^-1.
- *by sums*, for many. A_l + K_l K_l^T is factorised. K_l K_l^T and K_l R_l^T of a ledger are kept
  from one solve to the next (see `kept_sums`), so that the cost does not depend on n.

Layers are solved one after another, and the factors of the others wait on disk: beside its result a
solve takes at most 3 d_ff^2 float64 numbers, for any n.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedit_app.editing.pairs import LayerPairs, Pairs, blocks
from fedit_app.editing.rows import Rows
from fedit_app.editing.scratch import Scratch
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

MAX_CONDITION = 1e7
"""Covariances are kept in float32: what is 1e7 times smaller than the largest is rounding."""

SOLVER_MATRICES = 3
"""How many matrices (d_ff, d_ff) float64 a solve has in memory at most, beside its result."""

_LARGEST_RIDGE = 1e-2
_ITERATIONS = 10


class Solver:
    """Solves the normal equations of every edited layer in float64.

    Args:
        covariances: layer -> C_l (d_ff, d_ff), read one at a time.
        weight: lambda.
        device: where the solves run.
        max_condition: largest condition number of lambda C_l; above it a ridge is added.

    Raises:
        FedEditError: a covariance is not finite, or stays singular with a ridge; or the disk has no
            space for the factors.
    """

    def __init__(
        self,
        covariances: Mapping[int, Tensor],
        weight: float,
        device: torch.device | str = "cpu",
        max_condition: float = MAX_CONDITION,
    ) -> None:
        self._device, self._covariances, self._weight = torch.device(device), covariances, weight
        self._factors = Scratch(self._device)
        self._ridges: dict[int, float] = {}
        for layer in covariances:
            factor, ridge = _factorise(self._weighted(layer), layer, max_condition)
            self._factors[layer], self._ridges[layer] = factor, ridge

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers, rising."""
        return tuple(sorted(self._factors))

    @property
    def device(self) -> torch.device:
        """Where the solves run."""
        return self._device

    def inverse_times(self, layer: int, keys: Tensor) -> Tensor:
        """A_l^-1 K.

        Args:
            layer: which layer.
            keys: (d_ff, n) float64 keys as columns.

        Returns:
            (d_ff, n) float64.
        """
        return _solve(self._factors[layer], keys)

    def usual_leverage(self, layer: int) -> float:
        """E[x^T A_l^-1 x] over the keys x of ordinary text, tr(A_l^-1 C_l), without a ridge."""
        return self._factors.width(layer) / self._weight

    def delta(self, layer: int, pairs: LayerPairs) -> Tensor:
        """Delta_l for the MKVs of a ledger.

        Args:
            layer: which layer.
            pairs: their keys and shifts there; there may be none.

        Returns:
            (d_model, d_ff) float64.
        """
        by = self._by_sums if sums_are_cheaper(len(pairs), *pairs.widths) else self._by_pairs
        return by(layer, pairs)

    def deltas(self, pairs: Pairs) -> dict[int, Tensor]:
        """Delta_l (d_model, d_ff) float64 of every layer, for the MKVs of a ledger."""
        return {layer: self.delta(layer, pairs.layer(i)) for i, layer in enumerate(self.layers)}

    def key_sum(self, layer: int, keys: Rows) -> Tensor:
        """K_l K_l^T (d_ff, d_ff) float64 of keys as the solve uses them; `keys` as in `delta`."""
        used = self._free(layer, self._here(keys[:]))
        return used.T @ used

    def _by_pairs(self, layer: int, pairs: LayerPairs) -> Tensor:
        """R (I + H^T H)^-1 H^T L^-1."""
        h = self._whitened(layer, self._here(pairs.keys[:]).T)
        gram = h.T @ h
        gram.diagonal().add_(1)
        shares = _solve(_cholesky_in_place(gram), self._here(pairs.shifts[:]))
        del gram
        return self._from_white(layer, shares.T @ h.T)

    def _by_sums(self, layer: int, pairs: LayerPairs) -> Tensor:
        """((A + K K^T)^-1 K R^T)^T."""
        matrix, cross = self._normal(layer, pairs)
        return _solve(_cholesky_in_place(matrix), cross).T

    def _normal(self, layer: int, pairs: LayerPairs) -> tuple[Tensor, Tensor]:
        """A + K K^T (d_ff, d_ff) and K R^T (d_ff, d_model), new tensors."""
        matrix = self.prior(layer)
        sums = pairs.sums(self._device)
        return matrix.add_(sums.keys), sums.cross

    def _here(self, rows: Tensor) -> Tensor:
        return rows.to(self._device, torch.float64)

    def _weighted(self, layer: int) -> Tensor:
        return self._weight * checked(self._covariances[layer], layer).to(self._device)

    def _whitened(self, layer: int, keys: Tensor) -> Tensor:
        """H = L^-1 K (d_ff, n) of keys (d_ff, n)."""
        white: Tensor = torch.linalg.solve_triangular(self._factors[layer], keys, upper=False)
        return white

    def _from_white(self, layer: int, rows: Tensor) -> Tensor:
        """Z L^-1 of rows Z (m, d_ff)."""
        factor = self._factors[layer]
        found: Tensor = torch.linalg.solve_triangular(factor, rows, upper=False, left=False)
        return found

    def prior(self, layer: int) -> Tensor:
        """A_l (d_ff, d_ff) float64 with its ridge, a new tensor."""
        matrix = self._weighted(layer)
        matrix.diagonal().add_(self._ridges[layer])
        return matrix

    def _free(self, layer: int, keys: Tensor) -> Tensor:  # noqa: ARG002
        """The part of keys (b, d_ff) that edits may use: here all of it."""
        return keys


class ProjectedSolver(Solver, ABC):
    """A solve with P_l K_l in the place of K_l, P_l a projection."""

    @abstractmethod
    def _free(self, layer: int, keys: Tensor) -> Tensor:
        """K^T P of keys K^T (b, d_ff)."""

    @abstractmethod
    def _add_prior(self, layer: int, matrix: Tensor) -> None:
        """Add A_l to a matrix (d_ff, d_ff)."""

    def prior(self, layer: int) -> Tensor:
        """A_l (d_ff, d_ff) float64, a new tensor."""
        width = self._factors.width(layer)
        matrix = torch.zeros(width, width, dtype=torch.float64, device=self._device)
        self._add_prior(layer, matrix)
        return matrix

    def _normal(self, layer: int, pairs: LayerPairs) -> tuple[Tensor, Tensor]:
        """A + P K K^T P and P K R^T, in the memory of the sums."""
        sums = pairs.sums(self._device)
        matrix = sums.keys
        for rows in blocks(len(matrix), len(matrix)):
            matrix[rows] = self._free(layer, matrix[rows])
        for columns in blocks(len(matrix), len(matrix)):
            matrix[:, columns] = self._free(layer, matrix[:, columns].T).T
        self._add_prior(layer, matrix)
        return matrix, self._free(layer, sums.cross.T).T


def sums_are_cheaper(n: int, d_ff: int, d_model: int) -> bool:
    """Whether a solve by sums takes fewer operations than one by pairs.

    By pairs: d_ff^2 n for H, 2 n^2 d_ff for H^T H, n^3 / 3 for its factor, 2 n^2 d_model and
    2 n d_model d_ff for the shares and their product with H^T, d_ff^2 d_model for L^-1. By sums:
    2 n d_ff^2 and 2 n d_model d_ff for the sums, d_ff^3 / 3 for the factor, 2 d_ff^2 d_model for
    what it solves. They are equal at about n = 0.7 d_ff.

    Args:
        n: number of MKVs.
        d_ff: width of a key.
        d_model: width of a shift.
    """
    pairs = d_ff**2 * (n + d_model) + 2 * n**2 * (d_ff + d_model) + n**3 / 3
    sums = 2 * d_ff**2 * (n + d_model) + d_ff**3 / 3
    return sums < pairs


def checked(covariance: Tensor, layer: int) -> Tensor:
    """A covariance in float64.

    Raises:
        FedEditError: it is not finite.
    """
    if not bool(torch.isfinite(covariance).all()):
        raise FedEditError(f"covariance of layer {layer} is not finite; collect it again")
    return covariance.double()


def _factorise(matrix: Tensor, layer: int, max_condition: float) -> tuple[Tensor, float]:
    """Cholesky factor; an ill-conditioned matrix gets the ridge that it needs, and a warning.

    Returns:
        The factor, and the ridge.
    """
    largest = _largest_eigenvalue(lambda v: matrix @ v, len(matrix), matrix)
    diagonal = matrix.diagonal().clone()
    ridge, added = 0.0, None
    factor: Tensor
    while largest and ridge <= _LARGEST_RIDGE * largest:
        matrix.diagonal().copy_(diagonal + ridge)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        condition = float("inf") if bool(failed) else _condition(largest + ridge, factor)
        if condition <= max_condition * 1.01:
            if added is not None:
                logger.warning(
                    "covariance of layer %d has a condition number of %.1e, above max-condition = "
                    "%.0e: added a ridge of %.0e of its largest eigenvalue; more "
                    "covariance-tokens avoid this",
                    layer,
                    added,
                    max_condition,
                    ridge / largest,
                )
            return factor, ridge
        added = condition if added is None else added
        ridge = 10 * ridge or largest / max_condition
    raise FedEditError(
        f"covariance of layer {layer} is singular even with a ridge of {_LARGEST_RIDGE:g} of its "
        "largest eigenvalue; collect it from more tokens (covariance-tokens)"
    )


def _cholesky_in_place(matrix: Tensor) -> Tensor:
    """Cholesky factor of a symmetric matrix, in the matrix's own memory."""
    columns = matrix.mT  # LAPACK's order
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(columns, check_errors=True, out=(columns, failed))
    return columns


def _solve(factor: Tensor, columns: Tensor) -> Tensor:
    """(L L^T)^-1 B; two triangular solves, as `cholesky_solve` copies L every time."""
    half: Tensor = torch.linalg.solve_triangular(factor, columns, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return whole


def _condition(largest: float, factor: Tensor) -> float:
    """Estimate of the condition number from the largest eigenvalue and a Cholesky factor."""
    return largest * _largest_eigenvalue(
        lambda v: _solve(factor, v[:, None])[:, 0], len(factor), factor
    )


def _largest_eigenvalue(times: Callable[[Tensor], Tensor], size: int, like: Tensor) -> float:
    """Power iteration on a symmetric matrix, given as a function of a vector (size,)."""
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vector = (vector / vector.norm()).to(like.device)
    for _ in range(_ITERATIONS):
        product = times(vector)
        length = float(product.norm())
        if length == 0:
            break
        vector = product / length
    return length
