"""The MKV pool at scale: appending, reuse lookup and ranking.

Every step runs in a process of its own that holds nothing but the pool; its memory is all that is
resident in that process. The pools are made in a temporary folder and deleted afterwards.

Keys are clustered: half a direction common to all, plus the centre of one of 2,000 clusters, plus
noise as long as the centre. Their cosine is about 0.56 within a cluster and 0.11 between two. A
node's own keys come from ten clusters. Ranking compares the keys, so that values and shifts can be
short: a million MKVs with keys of 4,096 numbers take 18 GB instead of hundreds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Cell, Figures, benchmark, count, counts, main, option, table
from benchmarks.pool_worker import D_MODEL, TOP_K
from fedit_app.mkv import SIGNATURES, create, to_bytes
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import byte_size

_ROOT = Path(__file__).parents[1]
_SPARE_BYTES = 2 * 10**9
# n_layers, d_ff, d_model of MKVs as models have them.
_MODELS = {"SmolLM2-135M": (5, 1536, 576), "an 8B Llama": (5, 14336, 4096)}
# What is asked of the pool, with the arguments of `pool_worker.rank`.
_RANKINGS = {
    f"top-{TOP_K}": {"policy": "top-k", "centred": False},
    f"top-{TOP_K}, centred": {"policy": "top-k", "centred": True},
    "majority": {"policy": "majority", "centred": False},
}


@benchmark(
    counts("--sizes", [10_000, 100_000, 1_000_000], "MKVs in the pool"),
    counts("--widths", [576, 4096], "of the keys"),
    count("--nodes", 8, "that ask"),
    count("--own", 100, "own MKVs of a node"),
    option("--folder", "where the pools are made; None: the system's", type=Path),
    model=False,
    data=False,
)
def run(options: argparse.Namespace) -> Figures:
    """Measure every width at every size."""
    figures: Figures = {}
    for width in options.widths:
        _check_room(options, width)
        with tempfile.TemporaryDirectory(prefix="fedit-pool-", dir=options.folder) as folder:
            size = 0
            for next_size in sorted(options.sizes):
                found = _measured(options, folder, width, size, next_size)
                figures |= {f"pool/{width}/n={next_size}/{k}": v for k, v in found.items()}
                size = next_size
    print(table(*_pool_table(options, figures)))
    print()
    print(table(*_ranking_table(options, figures)))
    print(f"\n{_notes(options)}")
    return figures


def _measured(
    options: argparse.Namespace, folder: str, width: int, size: int, next_size: int
) -> dict[str, float]:
    """Grow a pool to `next_size` and ask everything of it."""
    slot = options.nodes * options.own
    where = {"folder": folder, "width": width}
    filled = _step("fill", **where, start=size, stop=next_size - slot)
    figures = {"written_per_second": (next_size - slot - size) / filled["seconds"]}
    appended = _step("append", **where, count=slot, seed=next_size)
    figures["bytes_per_mkv"] = _bytes_below(folder) / next_size
    figures["append/mkvs_per_second"] = slot / appended["seconds"]
    figures["append/peak_mib"] = appended["peak_mib"]
    asked = {**where, "nodes": options.nodes, "own": options.own}
    for name in ("reuse", *_RANKINGS):
        found = _step("lookup" if name == "reuse" else "rank", **asked, **_RANKINGS.get(name, {}))
        figures |= {f"{name}/{part}": found[part] for part in ("seconds", "peak_mib")}
    return figures


def _step(name: str, **arguments: object) -> dict[str, Any]:
    """Run one step of `pool_worker` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.pool_worker", name, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT)
    if done.returncode:
        raise FedEditError(f"step {name} {arguments} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _bytes_below(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _mkv_bytes(n_layers: int, d_ff: int, d_model: int) -> tuple[int, int]:
    """Bytes of an MKV's signatures and of its payload."""
    random = np.random.default_rng(0)
    shapes = ((n_layers, d_ff), (n_layers, d_model), d_model, d_model)
    keys, shifts, v_star, h0 = (random.standard_normal(shape) for shape in shapes)
    mkv = create("node", 1, "f" * 64, keys, shifts, v_star, h0)
    return sum(2 * mkv.signature(kind).size for kind in SIGNATURES), len(to_bytes(mkv))


def _check_room(options: argparse.Namespace, width: int) -> None:
    needed = sum(_mkv_bytes(1, width, D_MODEL)) * max(options.sizes) + _SPARE_BYTES
    free = shutil.disk_usage(options.folder or tempfile.gettempdir()).free
    if free < needed:
        raise FedEditError(
            f"--folder: {byte_size(free)} are free, a pool of {max(options.sizes):,} MKVs of width "
            f"{width} needs {byte_size(needed)}; name another folder or smaller --sizes"
        )


def _pool_table(
    options: argparse.Namespace, figures: Figures
) -> tuple[list[str], list[list[Cell]]]:
    columns = {
        "bytes an MKV": "bytes_per_mkv",
        "written MKVs/s": "written_per_second",
        "appended MKVs/s": "append/mkvs_per_second",
        "append peak MiB": "append/peak_mib",
    }
    rows: list[list[Cell]] = [
        [width, size, *(figures.get(f"pool/{width}/n={size}/{part}") for part in columns.values())]
        for width in options.widths
        for size in sorted(options.sizes)
    ]
    return ["width", "MKVs", *columns], rows


def _ranking_table(
    options: argparse.Namespace, figures: Figures
) -> tuple[list[str], list[list[Cell]]]:
    rows: list[list[Cell]] = []
    for width in options.widths:
        for size in sorted(options.sizes):
            for question in ("reuse", *_RANKINGS):
                name = f"pool/{width}/n={size}/{question}"
                parts = (f"{name}/{part}" for part in ("seconds", "peak_mib"))
                rows.append([question, width, size, *map(figures.get, parts)])
    return ["question", "width", "MKVs", "seconds", "peak MiB"], rows


def _notes(options: argparse.Namespace) -> str:
    made = [
        f"{byte_size(sum(_mkv_bytes(1, width, D_MODEL)))} with keys (1, {width:,})"
        for width in options.widths
    ]
    real = [
        f"{name} ({n_layers} layers, d_ff {d_ff:,}, d_model {d_model:,}) "
        f"{byte_size(sum(_mkv_bytes(n_layers, d_ff, d_model)))}"
        for name, (n_layers, d_ff, d_model) in _MODELS.items()
    ]
    return (
        f"All questions are for {options.nodes} nodes with {options.own} own MKVs each.\n"
        f"An MKV here has shifts (1, {D_MODEL}) and values ({D_MODEL},) and takes "
        f"{', '.join(made)}, of signatures and payload.\nOne of {'; of '.join(real)}."
    )


if __name__ == "__main__":
    main(run)
