"""Screening of received MKVs: their size compared with the activations of the base model.

All quantities are in units of the base model, so that one set of bounds fits every model. With
C = E[x x^T] the covariance of a layer's keys x on ordinary text, A the matrix of the solve
(lambda C for MEMIT) and W0 the unedited projection:

    shape               number of keys, d_ff and d_model of the run
    key norm            |k| / sqrt(tr C)
    key distance        sqrt(k^T A^-1 k / E[x^T A^-1 x]), Mahalanobis' distance
    common direction    key norm / key distance: large along the common direction of all keys
    shift norm          |r| / sqrt(E|W0 x|^2)
    value norm          (|v* - h0| - rounding) / (clamp |h0|), at most 1 after the optimisation

Keys of ordinary text have a norm and a distance around 1. The bounds limit the effect of received
MKVs on ordinary text: the joint solve minimises sum_i |r_i - Delta k_i|^2 + lambda E|Delta x|^2,
where Delta = 0 costs sum_i |r_i|^2, so

    E|Delta x|^2 <= sum_i |r_i|^2 / lambda

for any keys. The bounds do not limit what an MKV changes about its own subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedit_app.editing.solver import Solver
from fedit_app.mkv import MKV, rounding_error

SHAPE = "shape"
BOUNDS = {
    "key norm": 12.0,
    "key distance": 8.0,
    "common direction": 3.0,
    "shift norm": 8.0,
    "value norm": 1.05,
}
"""Largest value of an honest MKV, as `python -m benchmarks.screening` measures it."""

_SMALLEST = 1e-12


@dataclass(frozen=True)
class LayerScale:
    """Usual sizes in one edited layer of the base model.

    Attributes:
        key_norm: root mean square of |x| on ordinary text.
        output_norm: root mean square of |W0 x|.
    """

    key_norm: float
    output_norm: float


@dataclass(frozen=True)
class Fault:
    """The reason why an MKV is rejected.

    Attributes:
        reason: `SHAPE`, or a key of `BOUNDS`.
        value: the measured value, the largest of all keys; None for a shape.
        bound: the largest accepted value; None for a shape.
    """

    reason: str
    value: float | None = None
    bound: float | None = None


def layer_scale(covariance: Tensor, weight: Tensor) -> LayerScale:
    """The usual sizes in a layer.

    Args:
        covariance: (d_ff, d_ff) C_l.
        weight: (d_model, d_ff) the unedited projection.
    """
    weight = weight.to(covariance)
    return LayerScale(
        key_norm=float(covariance.trace().sqrt()),
        output_norm=float(((weight @ covariance) * weight).sum().sqrt()),
    )


class Screen:
    """Measures MKVs against the base model.

    Args:
        solver: the joint solve of the edited layers.
        scales: layer -> its usual sizes.
        shape: number of keys, d_ff and d_model of an MKV.
        clamp: largest |v* - h0| in the settings of the run, in norms of h0.
    """

    def __init__(
        self,
        solver: Solver,
        scales: Mapping[int, LayerScale],
        shape: tuple[int, int, int],
        clamp: float,
    ) -> None:
        self._solver, self._scales = solver, scales
        self._shape, self._clamp = shape, clamp

    def faults(self, mkvs: Sequence[MKV], factor: float = 1.0) -> dict[str, Fault]:
        """The MKVs that exceed a bound or have another shape.

        Args:
            mkvs: MKVs of the workbench's fingerprint.
            factor: factor of all bounds; 0: only the shapes are checked.

        Returns:
            id -> the fault that exceeds its bound most.
        """
        faults = {
            mkv.id: Fault(SHAPE)
            for mkv in mkvs
            if (*mkv.keys.shape, mkv.shifts.shape[1]) != self._shape
        }
        fitting = [mkv for mkv in mkvs if mkv.id not in faults]
        if not fitting or not factor:
            return faults
        found = self.measure(fitting)
        for number, mkv in enumerate(fitting):
            excess = {
                reason: float(found[reason][number]) / (factor * bound)
                for reason, bound in BOUNDS.items()
            }
            worst = max(excess, key=excess.__getitem__)
            if excess[worst] > 1:
                bound = factor * BOUNDS[worst]
                faults[mkv.id] = Fault(worst, excess[worst] * bound, bound)
        return faults

    def measure(self, mkvs: Sequence[MKV]) -> dict[str, np.ndarray]:
        """The quantities of `BOUNDS`, each the largest of all keys.

        Args:
            mkvs: n >= 1 MKVs of the run's shape.

        Returns:
            quantity -> (n,).
        """
        device = self._solver.device
        keys = _columns([mkv.keys for mkv in mkvs]).to(device)
        shifts = _columns([mkv.shifts for mkv in mkvs]).to(device)
        found: dict[str, list[Tensor]] = {name: [] for name in BOUNDS if name != "value norm"}
        kinds = len(keys) // len(self._solver.layers)
        for i, k in enumerate(keys):
            layer = self._solver.layers[i // kinds]
            scale = self._scales[layer]
            leverage = (k * self._solver.inverse_times(layer, k)).sum(0).clamp_min(0)
            norm = k.norm(dim=0) / scale.key_norm
            distance = (leverage / self._solver.usual_leverage(layer)).sqrt()
            found["key norm"].append(norm)
            found["key distance"].append(distance)
            found["common direction"].append(norm / distance.clamp_min(_SMALLEST))
            found["shift norm"].append(shifts[i].norm(dim=0) / scale.output_norm)
        largest = {name: torch.stack(rows).amax(0).cpu().numpy() for name, rows in found.items()}
        return largest | {"value norm": np.array([self._value_norm(mkv) for mkv in mkvs])}

    def _value_norm(self, mkv: MKV) -> float:
        rounding = sum(rounding_error(part, mkv.precision) for part in (mkv.v_star, mkv.h0))
        beyond = max(0.0, float(np.linalg.norm(mkv.delta)) - rounding)
        return beyond / max(self._clamp * float(np.linalg.norm(mkv.h0)), _SMALLEST)


def _columns(rows: Sequence[np.ndarray]) -> Tensor:
    """(keys, width, n) float64 of n arrays (keys, width)."""
    return torch.from_numpy(np.stack(rows, -1).astype(np.float64))
