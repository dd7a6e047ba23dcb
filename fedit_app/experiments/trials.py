"""Trials of a search: the same requests are edited with each candidate and scored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit_app.editing.alphaedit import null_space_solver
from fedit_app.editing.covariance import Covariances
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.statistics import StatisticsFile
from fedit_app.editing.values import Values
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.metrics import aggregate
from fedit_app.evaluation.scores import score_requests
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.protocol.metrics import SCORE_PARTS, Metrics
from fedit_app.support.errors import FedEditError

_TIE = 0.005


@dataclass(frozen=True)
class Trial:
    """A candidate and its scores.

    Attributes:
        stage: the stage of the search.
        settings: the candidate.
        metrics: see `aggregate`; None if the joint solve failed.
        mean_steps: forward passes of a v*, mean over requests.
        change: |Delta_l| / |W_l| (Frobenius norms), mean over layers.
        problem: why there are no metrics.
        null_space: whether the editor solves as AlphaEdit does.
    """

    stage: str
    settings: EditSettings
    metrics: Metrics | None = None
    mean_steps: float | None = None
    change: float | None = None
    problem: str = ""
    null_space: bool = False

    @property
    def weights(self) -> dict[str, float]:
        """Run-config key -> value, of the keys that weigh the solve."""
        settings = self.settings
        if self.null_space:
            return {"l2": settings.l2, "null-space-threshold": settings.null_space_threshold}
        return {"covariance-weight": settings.covariance_weight}

    @property
    def merit(self) -> float:
        """The score; where that is 0, the mean of its parts minus 1.

        A harmonic mean is 0 as soon as one part is; the search has to rank such candidates as well.
        """
        if self.metrics is None:
            return -math.inf
        parts = [self.metrics.value(name) for name in SCORE_PARTS]
        known = [part for part in parts if part is not None]
        return self.metrics.score or sum(known) / len(known) - 1


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial of the highest score; of those within 0.005 of it, the smallest change.

    Args:
        trials: at least one.

    Raises:
        FedEditError: none of them has metrics.
    """
    highest = max(trial.merit for trial in trials)
    if highest == -math.inf:
        raise FedEditError(f"tune: no candidate can be solved; {trials[-1].problem}")
    tied = [trial for trial in trials if trial.merit >= highest - _TIE]
    return min(tied, key=lambda trial: trial.change or 0.0)


class Examiner:
    """Edits the same requests, in one batch, with one group of settings after another.

    v* depend on layers and step size only: they are optimised once for each pair of these.

    Args:
        bench: model, editor and contexts.
        requests: the requests to edit.
        files: layer -> file of its covariance, for all layers of the search.

    Attributes:
        null_space: whether the editor solves as AlphaEdit does, with l2 and the threshold in place
            of lambda.
    """

    def __init__(
        self,
        bench: Workbench,
        requests: Sequence[EditRequest],
        files: Mapping[int, StatisticsFile],
    ) -> None:
        self._bench, self._requests, self._files = bench, requests, files
        self.null_space = bench.editor.solver is null_space_solver
        self._values: dict[tuple[tuple[int, ...], float], Values] = {}

    def examine(self, stage: str, settings: EditSettings) -> Trial:
        """Edit, score and restore the weights.

        Args:
            stage: the stage of the search.
            settings: the candidate.

        Returns:
            The trial, without metrics if the joint solve fails with these settings.
        """
        model = self._bench.model
        trial = Trial(stage, settings, null_space=self.null_space)
        values = self._values_for(settings)
        try:
            deltas = self._deltas(settings, values)
        except (FedEditError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            return dataclasses.replace(trial, problem=str(error))
        change = sum(map(self._relative_change, deltas, deltas.values())) / len(deltas)
        if not math.isfinite(change):
            return dataclasses.replace(trial, problem="the change of the weights is not finite")
        with model.edited(deltas):
            metrics = aggregate(score_requests(model, self._requests))
        steps = float(values.steps.double().mean())
        return dataclasses.replace(trial, metrics=metrics, mean_steps=steps, change=change)

    def covariance(self, layer: int) -> Tensor:
        """C_l (d_ff, d_ff) float64."""
        return self._files[layer].read(layer).double()

    def eigenvalues(self, layer: int) -> Tensor:
        """(d_ff,) float64 eigenvalues of C_l, rising, on the CPU."""
        covariance = self.covariance(layer).to(self._bench.model.device)
        values: Tensor = torch.linalg.eigvalsh(covariance)
        return values.cpu()

    def _values_for(self, settings: EditSettings) -> Values:
        key = settings.layers, settings.learning_rate
        if key not in self._values:
            bench = self._bench
            self._values[key] = bench.editor.values(
                bench.model, self._requests, bench.templates, settings
            )
        return self._values[key]

    def _deltas(self, settings: EditSettings, values: Values) -> dict[int, Tensor]:
        bench = self._bench
        model, editor, layers = bench.model, bench.editor, settings.layers
        covariances = Covariances({layer: self._files[layer] for layer in layers})
        solver = editor.solver(covariances, settings, model.device)
        nothing = bench.pairs(Ledger(bench.fingerprint))
        alone = [[request] for request in self._requests]
        kinds = editor.kinds(model, alone, bench.templates, settings, values)
        return solver.deltas(editor.vectors(model, kinds, solver, nothing, settings).pairs)

    def _relative_change(self, layer: int, delta: Tensor) -> float:
        return float(delta.norm()) / float(self._bench.model.weight(layer).double().norm())
