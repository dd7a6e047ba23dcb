"""The joint solve of one layer: seconds and peak memory by the number of MKVs, in both forms.

Every solve runs in a process of its own. Keys and shifts are random and made a block at a time, as
a ledger reads them; the covariance is that of 4 d_ff random keys whose directions differ in size by
a factor of 100, of which all but the first 2,048 are taken at their expectation. Peak memory is
that of the whole process, which makes the factor of the covariance first, above the level after a
small solve, in matrices (d_ff, d_ff) of float64. "100 more" is what a slot of 100 new MKVs takes
where sums are kept: they are read from a file, the new pairs are added, and the layer is solved;
the sums that are kept are those of the first 2,048 pairs, scaled to n. Processor seconds are the
same on a machine that other programs share.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import psutil
import torch
from torch import Tensor

from benchmarks.harness import Cell, Figures, benchmark, count, counts, main, table
from fedit_app.editing.covariance import Covariances
from fedit_app.editing.pairs import LayerPairs, Sums
from fedit_app.editing.solver import Solver, sums_are_cheaper
from fedit_app.editing.statistics import Origin, open_statistics, write_statistics
from fedit_app.support.errors import FedEditError
from fedit_app.support.memory import peak_memory

_ROOT = Path(__file__).parents[1]
_LAMBDA, _SPREAD, _LAYER = 1000.0, 2.0, 0
_FORMS = {
    "pairs": Solver._by_pairs,
    "sums": Solver._by_sums,
    "kept": Solver._by_sums,
    "delta": Solver.delta,
}
_NEW, _SUMMED = 100, 2048


@benchmark(
    counts("--sizes", [100, 300, 1000, 3000, 10_000, 100_000], "MKVs"),
    count("--d-ff", 1536, "width of a key"),
    count("--d-model", 576, "width of a shift"),
    counts("--both", [100, 300, 600, 1000, 1500, 3000], "MKVs that are solved in both forms"),
    counts("--kept", [3000, 100_000], f"MKVs whose sums are kept while {_NEW} come"),
    count("--repeat", 2, "solves, of which the fastest counts"),
    model=False,
    data=False,
)
def run(options: argparse.Namespace) -> Figures:
    """Solve every size, some in the form that is not chosen, and some with sums that are kept."""
    figures: Figures = {}
    root = f"solve/d_ff={options.d_ff}"
    every = sorted({*options.sizes, *options.both, *options.kept})
    with tempfile.TemporaryDirectory(prefix="fedit-solve-") as folder:
        file = Path(folder) / "covariance.safetensors"
        _write_covariance(file, options.d_ff)
        for n in every:
            chosen = "sums" if sums_are_cheaper(n, options.d_ff, options.d_model) else "pairs"
            forms = {chosen} if n in options.sizes else set()
            forms |= {"pairs", "sums"} if n in options.both else set()
            forms |= {"kept"} if n in options.kept else set()
            for form in sorted(forms):
                found = in_process(file, n, options.d_ff, options.d_model, form, options.repeat)
                figures |= {f"{root}/n={n}/{form}/{k}": v for k, v in found.items()}
            for part in ("seconds", "peak_matrices"):
                if f"{root}/n={n}/{chosen}/{part}" in figures:
                    figures[f"{root}/n={n}/{part}"] = figures[f"{root}/n={n}/{chosen}/{part}"]
    rows: list[list[Cell]] = []
    columns = {
        "seconds": "seconds",
        "peak matrices": "peak_matrices",
        "by pairs, s": "pairs/seconds",
        "by sums, s": "sums/seconds",
        f"{_NEW} more, s": "kept/seconds",
        f"{_NEW} more, processor s": "kept/processor_seconds",
        "peak matrices then": "kept/peak_matrices",
    }
    for n in every:
        rows.append([n, *(figures.get(f"{root}/n={n}/{part}") for part in columns.values())])
    print(table(["MKVs", *columns], rows))
    ends = [n for n in sorted(options.sizes) if n >= options.d_ff]
    if len(ends) > 1:
        slope = _exponent(figures, root, ends[0], ends[-1])
        figures[f"{root}/exponent"] = slope
        print(f"\nExponent of the seconds from {ends[0]:,} to {ends[-1]:,} MKVs: {slope:.2f}")
    return figures


def _exponent(figures: Figures, root: str, few: int, many: int) -> float:
    seconds = [figures[f"{root}/n={n}/seconds"] for n in (few, many)]
    return math.log(seconds[1] / seconds[0]) / math.log(many / few)


def _write_covariance(file: Path, d_ff: int) -> None:
    n = 4 * d_ff
    keys = RandomRows(min(n, _SUMMED), d_ff, spread=_SPREAD)[:]
    matrix = torch.diag(_sizes(d_ff, _SPREAD) ** 2 * (1 - len(keys) / n))
    matrix.addmm_(keys.T, keys, alpha=1 / n)
    write_statistics(file, Origin("benchmark", "random", 0, 0), {_LAYER: 1}, {_LAYER: matrix})


@dataclass(frozen=True)
class RandomRows:
    """n random vectors, the same each time that they are read.

    Attributes:
        n: how many.
        width: of each.
        spread: by how many powers of ten its elements differ in size.
    """

    n: int
    width: int
    spread: float = 0.0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: slice, /) -> Tensor:
        begin, end, _ = rows.indices(self.n)
        generator = torch.Generator().manual_seed(begin)
        made = torch.randn(end - begin, self.width, generator=generator, dtype=torch.float64)
        return made.mul_(_sizes(self.width, self.spread))


def _sizes(width: int, spread: float) -> Tensor:
    return torch.logspace(0, -spread, width, dtype=torch.float64)


def in_process(file: Path, n: int, d_ff: int, d_model: int, form: str, repeat: int = 1) -> Figures:
    """Seconds and peak memory of a solve in a process of its own.

    Args:
        file: the covariance.
        n: number of MKVs.
        d_ff: width of a key.
        d_model: width of a shift.
        form: `pairs`, `sums`, `kept`, or `delta` for the one that is chosen.
        repeat: solves, of which the fastest counts.
    """
    given = {
        "file": str(file),
        "n": n,
        "d_ff": d_ff,
        "d_model": d_model,
        "form": form,
        "repeat": repeat,
    }
    command = [sys.executable, "-m", "benchmarks.solve", "--worker", json.dumps(given)]
    # The C library then gives back at once what is freed, and no new memory hides in it.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, env=environment)
    if done.returncode:
        raise FedEditError(f"solve of {n} MKVs failed:\n{done.stderr[-2000:]}")
    found: Figures = json.loads(done.stdout)
    return found


def worker(file: str, n: int, d_ff: int, d_model: int, form: str, repeat: int) -> Figures:
    """One size in one form, in a process that has done nothing before."""
    solve: Callable[[Solver, int, LayerPairs], Tensor] = _FORMS[form]
    small = LayerPairs(RandomRows(600, 512, _SPREAD), RandomRows(600, 192))
    solve(Solver({_LAYER: torch.eye(512).double()}, _LAMBDA), _LAYER, small)
    before = psutil.Process().memory_info().rss
    solver = Solver(Covariances({_LAYER: open_statistics(Path(file))}), _LAMBDA)
    pairs = LayerPairs(RandomRows(n, d_ff, _SPREAD), RandomRows(n, d_model))
    with tempfile.TemporaryFile() as kept:
        if form == "kept":
            pairs = _with_new(pairs, kept)
        seconds, processor = [], []
        for _ in range(repeat):
            started, used = time.perf_counter(), time.process_time()
            solve(solver, _LAYER, pairs)
            seconds.append(time.perf_counter() - started)
            processor.append(time.process_time() - used)
    peak = peak_memory() - before
    return {
        "seconds": min(seconds),
        "processor_seconds": min(processor),
        "peak_matrices": peak / (d_ff**2 * 8),
    }


def _with_new(pairs: LayerPairs, kept: IO[bytes]) -> LayerPairs:
    """Pairs whose sums are kept in a file, and new ones."""
    n, (d_ff, d_model) = len(pairs), pairs.widths
    some = LayerPairs(
        RandomRows(min(n, _SUMMED), d_ff, _SPREAD), RandomRows(min(n, _SUMMED), d_model)
    )
    sums = some.sums(torch.device("cpu"))
    for part in (sums.keys, sums.cross):
        part.mul_(n / len(some))
    shapes = [part.shape for part in (sums.keys, sums.cross)]
    for part in (sums.keys, sums.cross):
        kept.write(part.numpy().data)
    del sums

    def known(device: torch.device) -> Sums:
        kept.seek(0)
        keys, cross = (
            torch.from_numpy(np.fromfile(kept, count=math.prod(shape)).reshape(shape)).to(device)
            for shape in shapes
        )
        return Sums(keys, cross)

    new = RandomRows(_NEW, d_ff, _SPREAD), RandomRows(_NEW, d_model)
    return LayerPairs(pairs.keys, pairs.shifts, known).with_more(*(rows[:] for rows in new))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        sys.stdout.write(json.dumps(worker(**json.loads(sys.argv[2]))))
    else:
        main(run)
