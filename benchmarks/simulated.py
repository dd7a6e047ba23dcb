"""Hundreds of virtual nodes in Flower's simulation engine: what grows with their number.

One process computes for all of them, one after the other, on a tiny random model; every node has
one fact. Nothing is sent over a network: `deployment` measures that. The screening puts the keys of
a random model in quarantine, so that the re-edits solve nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.harness import MIB, Figures, benchmark, counts, main, option, print_figures
from benchmarks.tiny import TINY_RUN, distinct_requests, tiny_model
from fedit_app.flower_compat.launch import find_app, simulate
from fedit_app.report import Results, load_results
from fedit_app.support.errors import FedEditError

_COLUMNS = {
    "run s": "seconds",
    "hello s": "hello_seconds",
    "edit s": "edit_seconds",
    "re-edit s": "reedit_seconds",
    "failures": "failures",
    "served to each": "served",
    "MiB down": "mib_down",
    "pool MiB": "pool_mib",
}


@benchmark(
    counts("--nodes", [50, 200], "of a federation"),
    option("--selection", "of MKVs", default="all", choices=["all", "top-k"]),
    data=False,
)
def run(options: argparse.Namespace) -> Figures:
    """Run a slot with each number of nodes and print a line for each."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="fedit-simulated-") as name:
        model = tiny_model(options.model, Path(name, "model"))
        for nodes in options.nodes:
            folder = Path(name, str(nodes))
            found = _run(options, folder, model, nodes)
            figures |= {f"simulated/{nodes}/{key}": value for key, value in found.items()}
    lines = {f"{nodes} nodes": f"simulated/{nodes}" for nodes in options.nodes}
    print_figures(f"selection = {options.selection}", _COLUMNS, figures, lines)
    return figures


def _run(options: argparse.Namespace, folder: Path, model: Path, nodes: int) -> Figures:
    data, output = folder / "data", folder / "run"
    data.mkdir(parents=True)
    for number in range(nodes):
        distinct_requests(data, f"node-{number + 1:04}", 1)
    config = {
        **TINY_RUN,
        "model": str(model),
        "dataset": "jsonl",
        "data-path": str(data),
        "num-slots": 1,
        "evaluate-sample": 5,
        "selection": options.selection,
        "output-dir": str(output),
    }
    lines: list[str] = []
    began = time.perf_counter()
    status = simulate(find_app(None), config, nodes, lines.append)
    seconds = time.perf_counter() - began
    if status != "finished:completed":
        raise FedEditError(f"the run ended with {status}: " + " | ".join(lines[-5:]))
    found = _figures(load_results(output / "results.json"), nodes)
    kept = sum(file.stat().st_size for file in (output / "pool").rglob("*") if file.is_file())
    return {"seconds": seconds, **found, "pool_mib": kept / MIB}


def _figures(results: Results, nodes: int) -> Figures:
    (slot,) = results.slots
    found = {
        "hello_seconds": results.seconds.hello,
        "edit_seconds": slot.seconds.edit,
        "reedit_seconds": slot.seconds.reedit,
        "failures": len(results.failed_nodes),
        "served": slot.offered / nodes,
        "mib_down": slot.bytes_down / MIB,
    }
    return {name: value for name, value in found.items() if value is not None}


if __name__ == "__main__":
    main(run)
