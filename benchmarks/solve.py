"""The joint solve with the kept Cholesky factor, against a dense solve for every batch.

Random keys and shifts, and a random covariance of each width. Plain is what MEMIT's own code does:
`torch.linalg.solve` with the d_ff x d_ff matrix lambda C + K K^T in float64, once per batch.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.harness import (
    Cell,
    Figures,
    Measured,
    T,
    benchmark,
    counts,
    main,
    measure,
    table,
    timed,
)
from fedit_app.editing.solver import Solver
from fedit_app.models.loading import resolve_device

_WIDTHS_OF_MODELS = {1536: 576, 16384: 4096}  # d_ff -> d_model: SmolLM2-135M, GPT-J-6B
_WEIGHT = 1000.0
_SAMPLES = 1024
_DIAGONAL = 0.1
_LAYER = 0
_MOST_REPEATS = 7
_SECONDS_FOR_REPEATS = 2.0


@benchmark(
    counts("--d-ff", [1536, 16384], "key widths"),
    counts("--n", [1, 16, 128, 1024], "MKVs"),
    model=False,
    data=False,
)
def run(options: argparse.Namespace) -> Figures:
    """Time both solves for every width and number of MKVs, and compare their Deltas."""
    device = resolve_device(options.device)
    figures: Figures = {}
    for d_ff in options.d_ff:
        for n, found in _solves(d_ff, options.n, device).items():
            name = f"solve/{d_ff}" if n is None else f"solve/{d_ff}/n={n}"
            figures |= {f"{name}/{part}": value for part, value in found.items()}
    print(table(*_table(figures, options.d_ff, options.n)))
    return figures


def _solves(
    d_ff: int, counts: Sequence[int], device: torch.device
) -> dict[int | None, dict[str, float]]:
    """Figures of one width: under None those of the first use, then one entry per n."""
    d_model = _WIDTHS_OF_MODELS.get(d_ff, max(1, d_ff // 4))
    generator = torch.Generator().manual_seed(d_ff)
    covariance = _random_covariance(d_ff, generator, device)
    first = measure(lambda: _first_use(covariance, d_model), device)
    solver = first.result
    found: dict[int | None, dict[str, float]] = {
        None: {"first_use_seconds": first.seconds, "first_use_peak_mib": first.peak_mib}
    }
    for n in counts:
        keys, shifts = (
            torch.randn(n, width, generator=generator, dtype=torch.float64).to(device)
            for width in (d_ff, d_model)
        )
        cached = _median(lambda k=keys, r=shifts: solver.delta(_LAYER, k, r), device)
        plain = _median(lambda k=keys, r=shifts: _plain_delta(covariance, k, r), device)
        difference = torch.linalg.norm(cached.result - plain.result)
        found[n] = {
            "plain_seconds": plain.seconds,
            "cached_seconds": cached.seconds,
            "speedup": plain.seconds / cached.seconds,
            "relative_difference": float(difference / torch.linalg.norm(plain.result)),
            "plain_peak_mib": plain.peak_mib,
            "cached_peak_mib": cached.peak_mib,
        }
    return found


def _random_covariance(d_ff: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """C = X X^T / N + 0.1 I for a random X (d_ff, N): its condition number is a few hundred."""
    x = torch.randn(d_ff, _SAMPLES, generator=generator, dtype=torch.float64).to(device)
    covariance = x @ (x.T / _SAMPLES)
    covariance.diagonal().add_(_DIAGONAL)
    return covariance


def _first_use(covariance: Tensor, d_model: int) -> Solver:
    """A solver that has its factor: a first Delta has been asked of it."""
    solver = Solver({_LAYER: covariance}, _WEIGHT, covariance.device)
    key, shift = (torch.ones(1, width).to(covariance) for width in (len(covariance), d_model))
    solver.delta(_LAYER, key, shift)
    return solver


def _plain_delta(covariance: Tensor, keys: Tensor, shifts: Tensor) -> Tensor:
    """Delta = R K^T (lambda C + K K^T)^-1, MEMIT's equation 14, by one dense solve.

    Args:
        covariance: (d_ff, d_ff).
        keys: (n, d_ff), one key a row.
        shifts: (n, d_model), one shift a row.

    Returns:
        (d_model, d_ff).
    """
    matrix = torch.addmm(covariance, keys.T, keys, beta=_WEIGHT)
    return shifts.T @ torch.linalg.solve(matrix, keys.T).T


def _median(function: Callable[[], T], device: torch.device) -> Measured[T]:
    """Measure, and time again what is short: the median of the seconds."""
    first = measure(function, device)
    seconds = [first.seconds]
    while len(seconds) < _MOST_REPEATS and sum(seconds) < _SECONDS_FOR_REPEATS:
        seconds.append(timed(function, device)[1])
    return Measured(first.result, statistics.median(seconds), first.peak_bytes)


def _table(
    figures: dict[str, float], widths: Sequence[int], counts: Sequence[int]
) -> tuple[list[str], list[list[Cell]]]:
    columns = {
        "plain s": "plain_seconds",
        "cached s": "cached_seconds",
        "speed-up": "speedup",
        "relative difference": "relative_difference",
        "plain peak MiB": "plain_peak_mib",
        "cached peak MiB": "cached_peak_mib",
    }
    first_use = {"first use s": "first_use_seconds", "first use peak MiB": "first_use_peak_mib"}
    rows: list[list[Cell]] = [
        [
            d_ff,
            n,
            *(figures[f"solve/{d_ff}/n={n}/{part}"] for part in columns.values()),
            *(figures[f"solve/{d_ff}/{part}"] for part in first_use.values()),
        ]
        for d_ff in widths
        for n in counts
    ]
    return ["d_ff", "n", *columns, *first_use], rows


if __name__ == "__main__":
    main(run)
