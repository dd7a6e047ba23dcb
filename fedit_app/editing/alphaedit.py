"""AlphaEdit (Fang et al., ICLR 2025, arXiv 2410.02355): MEMIT that leaves alone what text uses.

With U_0 the eigenvectors of C_l whose eigenvalues are below a threshold, P_l = U_0 U_0^T projects
onto directions that keys of ordinary text hardly have, and

    Delta_l^T = (P_l K_l K_l^T + L2 I)^-1 P_l K_l R_l^T

K_l holds the keys of earlier edits too, as K_p does in the paper. The forms of `solver` give the
same with A_l = L2 I and P_l K_l in place of K_l. Values, keys and shifts are MEMIT's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedit_app.editing.memit import changes, value_site
from fedit_app.editing.method import EditingMethod
from fedit_app.editing.scratch import Scratch
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.solver import ProjectedSolver, checked
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)


class NullSpaceSolver(ProjectedSolver):
    """AlphaEdit's solve.

    Args:
        covariances: layer -> C_l (d_ff, d_ff).
        threshold: eigenvalues of C_l below this one belong to the null space.
        l2: weight of |Delta|^2.
        device: where the solves run.

    Raises:
        FedEditError: a covariance is not finite, or has no eigenvalue below the threshold.
    """

    def __init__(
        self,
        covariances: Mapping[int, Tensor],
        threshold: float,
        l2: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self._device, self._l2 = torch.device(device), l2
        self._factors, self._leverages = Scratch(self._device), {}
        for layer in covariances:
            c = checked(covariances[layer], layer).to(device)
            values, vectors = torch.linalg.eigh(c)
            used = used_directions(values, threshold, layer)
            self._factors[layer] = vectors[:, used]
            self._leverages[layer] = float(values[~used].sum()) / l2

    def inverse_times(self, layer: int, keys: Tensor) -> Tensor:
        """P_l K / L2; see `Solver.inverse_times`."""
        return self._free(layer, keys.T).T / self._l2

    def usual_leverage(self, layer: int) -> float:
        """E[x^T P_l x] / L2; see `Solver.usual_leverage`."""
        return self._leverages[layer]

    def _whitened(self, layer: int, keys: Tensor) -> Tensor:
        """P K / sqrt(L2), as P P = P."""
        return self._free(layer, keys.T).T / math.sqrt(self._l2)

    def _from_white(self, layer: int, rows: Tensor) -> Tensor:
        """Z P / sqrt(L2)."""
        return self._free(layer, rows) / math.sqrt(self._l2)

    def _add_prior(self, layer: int, matrix: Tensor) -> None:  # noqa: ARG002
        """Add L2 I to a matrix (d_ff, d_ff)."""
        matrix.diagonal().add_(self._l2)

    def _free(self, layer: int, keys: Tensor) -> Tensor:
        """K^T P of keys K^T (b, d_ff)."""
        used = self._factors[layer]
        return keys - (keys @ used) @ used.T


def used_directions(values: Tensor, threshold: float, layer: int) -> Tensor:
    """(d_ff,) which eigenvectors ordinary text uses, by their eigenvalues: P = I - U U^T."""
    used = values >= threshold
    free = len(values) - int(used.sum())
    if not free:
        raise FedEditError(
            f"null-space-threshold: no eigenvalue of layer {layer}'s covariance is below "
            f"{threshold:g}, the smallest is {float(values[0]):.1e}; choose a larger one"
        )
    logger.info("layer %d: %d of %d directions are free", layer, free, len(values))
    return used


def null_space_solver(
    covariances: Mapping[int, Tensor], settings: EditSettings, device: torch.device
) -> NullSpaceSolver:
    """AlphaEdit's solve with a run's settings."""
    return NullSpaceSolver(covariances, settings.null_space_threshold, settings.l2, device)


ALPHAEDIT = EditingMethod(value_site, changes, solver=null_space_solver)
