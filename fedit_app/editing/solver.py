"""The joint solve: all MKVs of a ledger into one change per layer.

    Delta_l = R_l K_l^T (A_l + K_l K_l^T)^-1,   A_l = lambda C_l
                                                 (MEMIT, arXiv 2210.07229, algorithm 1)

with K_l (d_ff, n) and R_l (d_model, n) the keys and shifts as columns. A_l is factorised once; with
X = A_l^-1 K_l the Woodbury identity leaves an n x n system:

    Delta_l = R_l (I + K_l^T X)^-1 X^T
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

MAX_CONDITION = 1e7
"""Covariances are kept in float32: what is 1e7 times smaller than the largest is rounding."""

_LARGEST_RIDGE = 1e-2
_ITERATIONS = 10


class Solver:
    """Solves the normal equations of every edited layer in float64.

    Args:
        covariances: layer -> C_l (d_ff, d_ff).
        weight: lambda.
        device: where the factors live and the solves run.
        max_condition: largest condition number of lambda C_l; above it a ridge is added.

    Raises:
        FedEditError: a covariance is not finite, or stays singular with a ridge.
    """

    def __init__(
        self,
        covariances: Mapping[int, Tensor],
        weight: float,
        device: torch.device | str = "cpu",
        max_condition: float = MAX_CONDITION,
    ) -> None:
        self._weight = weight
        self._factors = {
            layer: _factorise(weight * checked(c, layer).to(device), layer, max_condition)
            for layer, c in covariances.items()
        }

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers, rising."""
        return tuple(sorted(self._factors))

    @property
    def device(self) -> torch.device:
        """Where the solves run."""
        return next(iter(self._factors.values())).device

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
        return len(self._factors[layer]) / self._weight

    def delta(self, layer: int, keys: Tensor, shifts: Tensor) -> Tensor:
        """Delta_l for the MKVs of a ledger.

        Args:
            layer: which layer.
            keys: (n, d_ff), one key a row; n may be 0.
            shifts: (n, d_model), one shift a row.

        Returns:
            (d_model, d_ff) float64.
        """
        k, r = (part.to(self.device, torch.float64) for part in (keys, shifts))
        x = self.inverse_times(layer, k.T)
        gram = torch.eye(len(k), dtype=k.dtype, device=k.device) + k @ x
        found: Tensor = torch.cholesky_solve(r, torch.linalg.cholesky(gram)).T @ x.T
        return found

    def deltas(self, keys: Tensor, shifts: Tensor) -> dict[int, Tensor]:
        """Delta_l of every layer.

        Args:
            keys: (n, n_layers, d_ff).
            shifts: (n, n_layers, d_model).
        """
        return {
            layer: self.delta(layer, keys[:, i], shifts[:, i])
            for i, layer in enumerate(self.layers)
        }


def checked(covariance: Tensor, layer: int) -> Tensor:
    """A covariance in float64.

    Raises:
        FedEditError: it is not finite.
    """
    if not bool(torch.isfinite(covariance).all()):
        raise FedEditError(f"covariance of layer {layer} is not finite; collect it again")
    return covariance.double()


def _factorise(matrix: Tensor, layer: int, max_condition: float) -> Tensor:
    """Cholesky factor; an ill-conditioned matrix gets the ridge that it needs, and a warning."""
    largest = _largest_eigenvalue(lambda v: matrix @ v, len(matrix), matrix)
    ridge, added = 0.0, None
    factor: Tensor
    while largest and ridge <= _LARGEST_RIDGE * largest:
        factor, failed = torch.linalg.cholesky_ex(
            matrix + ridge * torch.eye(len(matrix)).to(matrix) if ridge else matrix
        )
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
            return factor
        added = condition if added is None else added
        ridge = 10 * ridge or largest / max_condition
    raise FedEditError(
        f"covariance of layer {layer} is singular even with a ridge of {_LARGEST_RIDGE:g} of its "
        "largest eigenvalue; collect it from more tokens (covariance-tokens)"
    )


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
