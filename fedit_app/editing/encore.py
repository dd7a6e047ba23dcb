"""ENCORE's norm constraint (Gupta et al., EMNLP Findings 2025, arXiv 2502.01636) on MEMIT.

The objective of the solve has a term lambda_n |Delta_l|^2 (Frobenius), so that

    Delta_l = R_l K_l^T (lambda C_l + lambda_n I + K_l K_l^T)^-1

with lambda_n the run config's l2. Its early stop is `stop-after`, which every editor has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedit_app.editing.memit import changes, value_site
from fedit_app.editing.method import EditingMethod
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.solver import Solver


class _WithIdentity(Mapping[int, Tensor]):
    """layer -> C_l + ridge I (d_ff, d_ff), read one at a time."""

    def __init__(self, covariances: Mapping[int, Tensor], ridge: float) -> None:
        self._covariances, self._ridge = covariances, ridge

    def __getitem__(self, layer: int) -> Tensor:
        matrix = self._covariances[layer].double().clone()
        matrix.diagonal().add_(self._ridge)
        return matrix

    def __iter__(self) -> Iterator[int]:
        return iter(self._covariances)

    def __len__(self) -> int:
        return len(self._covariances)


class NormConstrainedSolver(Solver):
    """The solve with lambda C_l + lambda_n I in the place of lambda C_l.

    Args:
        covariances: layer -> C_l (d_ff, d_ff).
        weight: lambda.
        norm_weight: lambda_n.
        device: where the solves run.
        max_condition: see `Solver`.

    Raises:
        FedEditError: see `Solver`.
    """

    def __init__(
        self,
        covariances: Mapping[int, Tensor],
        weight: float,
        norm_weight: float,
        device: torch.device,
        max_condition: float,
    ) -> None:
        constrained = _WithIdentity(covariances, norm_weight / weight)
        super().__init__(constrained, weight, device, max_condition)
        self._norm_weight = norm_weight
        self._leverages: dict[int, float] = {}

    def usual_leverage(self, layer: int) -> float:
        """tr(A_l^-1 C_l) = (d_ff - lambda_n tr A_l^-1) / lambda; see `Solver.usual_leverage`."""
        if layer not in self._leverages:
            one = torch.eye(self._factors.width(layer), dtype=torch.float64, device=self._device)
            trace = float(self._whitened(layer, one).square().sum())
            left = self._factors.width(layer) - self._norm_weight * trace
            self._leverages[layer] = left / self._weight
        return self._leverages[layer]


def norm_constrained_solver(
    covariances: Mapping[int, Tensor], settings: EditSettings, device: torch.device
) -> NormConstrainedSolver:
    """ENCORE's solve with a run's settings."""
    weights = settings.covariance_weight, settings.l2
    return NormConstrainedSolver(covariances, *weights, device, settings.max_condition)


ENCORE = EditingMethod(value_site, changes, solver=norm_constrained_solver)
