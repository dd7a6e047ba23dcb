"""BetaEdit (Liu et al., IJCAI 2026, arXiv 2605.09285): AlphaEdit that weighs what leaks.

Directions of the null space are used a little by text, too. With P_l as in `alphaedit`, c_j the
eigenvalues of C_l in it and lambda the covariance weight,

    Delta_l^T = (P_l (K_l K_l^T + lambda C_l) + L2 I)^-1 P_l K_l R_l^T

K_l holds the keys of all edits, which the paper calls history-aware. Its P_l is computed anew from
the edits every 1,000 of them; here P_l depends on C_l alone, as the solve of a ledger must not
depend on the order in which its MKVs came.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedit_app.editing.alphaedit import used_directions
from fedit_app.editing.memit import changes, value_site
from fedit_app.editing.method import EditingMethod
from fedit_app.editing.pairs import blocks
from fedit_app.editing.scratch import Scratch
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.solver import ProjectedSolver, checked


class LeakageSolver(ProjectedSolver):
    """BetaEdit's solve: A_l = L2 I + lambda P_l C_l P_l, and P_l K_l in place of K_l.

    Args:
        covariances: layer -> C_l (d_ff, d_ff).
        threshold: eigenvalues of C_l below this one belong to the null space.
        l2: weight of |Delta|^2.
        weight: lambda.
        device: where the solves run.

    Raises:
        FedEditError: a covariance is not finite, or has no eigenvalue below the threshold.
    """

    def __init__(
        self,
        covariances: Mapping[int, Tensor],
        threshold: float,
        l2: float,
        weight: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self._device, self._l2, self._weight = torch.device(device), l2, weight
        self._factors = Scratch(self._device)  # U_0, the free directions (d_ff, f)
        self._eigenvalues: dict[int, Tensor] = {}
        for layer in covariances:
            values, vectors = torch.linalg.eigh(checked(covariances[layer], layer).to(device))
            free = ~used_directions(values, threshold, layer)
            self._factors[layer], self._eigenvalues[layer] = vectors[:, free], values[free]

    def inverse_times(self, layer: int, keys: Tensor) -> Tensor:
        """A_l^-1 P_l K; see `Solver.inverse_times`."""
        free = self._factors[layer]
        return free @ ((free.T @ keys) / self._weights(layer)[:, None])

    def usual_leverage(self, layer: int) -> float:
        """E[x^T P_l A_l^-1 P_l x]; see `Solver.usual_leverage`."""
        return float((self._eigenvalues[layer] / self._weights(layer)).sum())

    def _add_prior(self, layer: int, matrix: Tensor) -> None:
        """Add L2 I + lambda P_l C_l P_l to a matrix (d_ff, d_ff)."""
        free = self._factors[layer]
        weights = self._weight * self._eigenvalues[layer]
        for rows in blocks(len(matrix), len(matrix)):
            matrix[rows].addmm_(free[rows] * weights, free.T)
        matrix.diagonal().add_(self._l2)

    def _weights(self, layer: int) -> Tensor:
        """(f,) L2 + lambda c_j."""
        return self._l2 + self._weight * self._eigenvalues[layer]

    def _whitened(self, layer: int, keys: Tensor) -> Tensor:
        """(f, n) U_0^T K / sqrt(L2 + lambda c)."""
        return (self._factors[layer].T @ keys) / self._weights(layer).sqrt()[:, None]

    def _from_white(self, layer: int, rows: Tensor) -> Tensor:
        """(m, d_ff) of rows (m, f): Z / sqrt(L2 + lambda c) U_0^T."""
        return (rows / self._weights(layer).sqrt()) @ self._factors[layer].T

    def _free(self, layer: int, keys: Tensor) -> Tensor:
        """K^T P of keys K^T (b, d_ff)."""
        free = self._factors[layer]
        return (keys @ free) @ free.T


def leakage_solver(
    covariances: Mapping[int, Tensor], settings: EditSettings, device: torch.device
) -> LeakageSolver:
    """BetaEdit's solve with a run's settings."""
    weights = settings.l2, settings.covariance_weight
    return LeakageSolver(covariances, settings.null_space_threshold, *weights, device)


BETAEDIT = EditingMethod(value_site, changes, solver=leakage_solver)
