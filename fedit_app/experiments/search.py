"""Coordinate descent over the settings of an editor: weights, layers, step size, weights again."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedit_app.editing.settings import EditSettings
from fedit_app.editing.solver import MAX_CONDITION
from fedit_app.experiments.trials import Examiner, Trial, best_of
from fedit_app.experiments.tune_report import trial_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grid:
    """The values that a search tries.

    Attributes:
        covariance_weights: lambda.
        l2: AlphaEdit: weight of |Delta|^2.
        free_shares: AlphaEdit: share of the directions that belong to the null space; its
            threshold is that quantile of the eigenvalues of the edited layers' covariances.
        depths: first layers of a window, as shares of the model's depth.
        learning_rates: step size of v*.
        around: multiples of the best lambda or l2, tried in the last stage.
    """

    covariance_weights: tuple[float, ...] = (30.0, 100.0, 300.0, 1000.0, 3000.0, 15000.0)
    l2: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    free_shares: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    depths: tuple[float, ...] = (1 / 10, 1 / 6, 1 / 4, 1 / 3, 1 / 2)
    learning_rates: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0)
    around: tuple[float, ...] = (0.1, 0.3, 3.0, 10.0)


DEFAULT_GRID = Grid()


_Stage = tuple[str, Callable[[EditSettings], list[EditSettings]]]
"""A name in the table, and what makes of the best settings so far those to try: they differ from
the best in one coordinate."""


def windows(n_layers: int, width: int, depths: Sequence[float]) -> list[tuple[int, ...]]:
    """Consecutive layers that start at shares of a model's depth, without duplicates.

    Args:
        n_layers: number of decoder layers; the last one is not edited.
        width: the number of edited layers, at most n_layers - 1.
        depths: shares in 0 .. 1.
    """
    firsts = [min(round(depth * n_layers), n_layers - 1 - width) for depth in depths]
    return [tuple(range(first, first + width)) for first in dict.fromkeys(firsts)]


def search(
    examiner: Examiner, start: EditSettings, spans: Sequence[tuple[int, ...]], grid: Grid
) -> list[Trial]:
    """Try candidates stage by stage; each stage varies the best candidate so far.

    Args:
        examiner: edits and scores.
        start: the first candidate.
        spans: the layers to try.
        grid: the other values to try.

    Returns:
        Every candidate once, in the order in which they were tried, `start` first.

    Raises:
        FedEditError: the values v* cannot be optimised, see `EditingMethod.values`.
    """
    trials: list[Trial] = []
    first: _Stage = ("start", lambda best: [best])
    for stage, candidates in [first, *_stages(examiner, spans, grid)]:
        solved = any(trial.metrics is not None for trial in trials)
        for settings in candidates(best_of(trials).settings if solved else start):
            if all(settings != trial.settings for trial in trials):
                started = time.perf_counter()
                trials.append(examiner.examine(stage, settings))
                seconds = time.perf_counter() - started
                logger.info("tune: %s, %.1f s", trial_line(trials[-1]), seconds)
    return trials


def _stages(examiner: Examiner, spans: Sequence[tuple[int, ...]], grid: Grid) -> list[_Stage]:
    rate = _axis("step size", "learning_rate", grid.learning_rates)
    if not examiner.null_space:
        layers = _axis("layers", "layers", spans)
        weight = _axis("weight", "covariance_weight", grid.covariance_weights)
        return [weight, layers, rate, _around("covariance_weight", grid.around)]
    thresholds = _Thresholds(examiner)

    def shares(best: EditSettings) -> list[EditSettings]:
        found = [thresholds.at(best.layers, share) for share in grid.free_shares]
        return [dataclasses.replace(best, null_space_threshold=threshold) for threshold in found]

    return [
        _axis("weight", "l2", grid.l2),
        ("threshold", shares),
        ("layers", lambda best: [thresholds.moved(best, span) for span in spans]),
        rate,
        _around("l2", grid.around),
        ("threshold again", shares),
    ]


def _axis(name: str, field: str, values: Sequence[float | tuple[int, ...]]) -> _Stage:
    return name, lambda best: [_changed(best, field, value) for value in values]


def _around(field: str, factors: Sequence[float]) -> _Stage:
    return "weight again", lambda best: [
        _changed(best, field, _three_digits(factor * getattr(best, field))) for factor in factors
    ]


def _changed(settings: EditSettings, field: str, value: Any) -> EditSettings:
    return dataclasses.replace(settings, **{field: value})


class _Thresholds:
    """AlphaEdit's threshold for a share of free directions, over the edited layers together.

    The eigenvalues differ in size between models and layers, so the share is searched instead.
    """

    def __init__(self, examiner: Examiner) -> None:
        self._of_layer = functools.cache(examiner.eigenvalues)

    def at(self, layers: Sequence[int], share: float) -> float:
        """That quantile of the eigenvalues, at least the size of a rounding error."""
        values = self._of(layers)
        rounding = float(values.max()) / MAX_CONDITION
        return _three_digits(max(float(values.quantile(share)), rounding))

    def moved(self, settings: EditSettings, layers: tuple[int, ...]) -> EditSettings:
        """These settings on other layers, with the same share of free directions."""
        if layers == settings.layers:
            return settings
        free = self._of(settings.layers) < settings.null_space_threshold
        threshold = self.at(layers, float(free.double().mean()))
        return dataclasses.replace(settings, layers=layers, null_space_threshold=threshold)

    def _of(self, layers: Sequence[int]) -> torch.Tensor:
        return torch.cat([self._of_layer(layer) for layer in layers])


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")
