"""The joint solve: all MKVs of a ledger into one change per layer.

    Delta_l = R_l K_l^T (lambda C_l + K_l K_l^T)^-1        (MEMIT, arXiv 2210.07229, equation 14)

with K_l (d_ff, n) and R_l (d_model, n) the keys and shifts as columns. lambda C_l is factorised
once; with X = (lambda C_l)^-1 K_l the Woodbury identity leaves an n x n system:

    Delta_l = R_l (I + K_l^T X)^-1 X^T
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from fedit_app.errors import FedEditError

logger = logging.getLogger(__name__)

_FIRST_RIDGE = 1e-12
_LAST_RIDGE = 1e-2


class Solver:
    """Solves the normal equations of every edited layer in float64.

    Args:
        covariances: layer -> C_l (d_ff, d_ff).
        weight: lambda.
        device: where the factors live and the solves run.

    Raises:
        FedEditError: a covariance is not finite, or stays singular with a ridge of 1e-2.
    """

    def __init__(
        self, covariances: Mapping[int, Tensor], weight: float, device: torch.device | str = "cpu"
    ) -> None:
        self._factors = {
            layer: _factorise(weight * c.to(device, torch.float64), layer)
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

    def delta(self, layer: int, keys: Tensor, shifts: Tensor) -> Tensor:
        """Delta_l for the MKVs of a ledger.

        Args:
            layer: which layer.
            keys: (n, d_ff), one key a row; n may be 0.
            shifts: (n, d_model), one shift a row.

        Returns:
            (d_model, d_ff) float64.
        """
        factor = self._factors[layer]
        k, r = keys.to(factor), shifts.to(factor)
        x = torch.cholesky_solve(k.T, factor)
        gram = torch.eye(len(k), dtype=k.dtype, device=k.device) + k @ x
        return r.T @ torch.cholesky_solve(x.T, torch.linalg.cholesky(gram))

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


def _factorise(matrix: Tensor, layer: int) -> Tensor:
    """Cholesky factor; a singular matrix gets the smallest sufficient ridge, and a warning."""
    if not bool(torch.isfinite(matrix).all()):
        raise FedEditError(f"covariance of layer {layer} is not finite; collect it again")
    scale = matrix.diagonal().mean()
    ridge = 0.0
    while ridge <= _LAST_RIDGE:
        shifted = matrix + ridge * scale * torch.eye(len(matrix)).to(matrix)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not bool(failed):
            if ridge:
                logger.warning(
                    "covariance of layer %d is singular: added a ridge of %.0e of its mean "
                    "diagonal; more covariance-tokens avoid this",
                    layer,
                    ridge,
                )
            return factor
        ridge = ridge * 10 if ridge else _FIRST_RIDGE
    raise FedEditError(
        f"covariance of layer {layer} is singular even with a ridge of {_LAST_RIDGE:g}; "
        "collect it from more tokens (covariance-tokens)"
    )
