"""Compute each fact once: v* optimisations that a federation avoids when its facts overlap.

CounterFact records are dealt out to nodes; then each node gives a share of its facts to one other
node, which asks the same in a later slot (`--form paraphrase`: in other words). Every share is run
twice in Flower's simulation engine, with and without reuse. Avoidable are the copies: their fact
has been computed by another node in an earlier slot. Scores are of the federation's facts, asked
of every node after the last slot; seconds are those of all edit stages.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Figures, benchmark, count, main, option, print_figures, records
from fedit_app.facts.overlap import Overlap, Slots, with_overlap
from fedit_app.facts.request import EditRequest
from fedit_app.flower_compat.launch import find_app, simulate
from fedit_app.report import Results, load_results
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

_COLUMNS = {
    "avoidable": "avoidable",
    "avoided": "avoided",
    "of it": "avoided_share",
    "edit s": "seconds",
    "s saved": "seconds_saved",
    "MiB up": "mib_up",
    "MiB down": "mib_down",
    "score": "score",
    "score without": "score_without",
}


@benchmark(
    count("--nodes", 8, "of a federation"),
    count("--slots", 2, "of a run"),
    count("--requests", 4, "own, per node and slot"),
    option("--shares", "of facts that another node asks for too", default="0,0.25,0.5,0.75"),
    option("--form", "of a copy", default="verbatim", choices=["verbatim", "paraphrase"]),
    option("--seed", "of the copies and the runs", type=int, default=0),
)
def run(options: argparse.Namespace) -> Figures:
    """Run the federations and print a line for each share."""
    shares = _shares(options.shares)
    if options.slots < 2:
        raise FedEditError("--slots: copies are asked for in a later slot, so give 2 at least")
    per_node = options.slots * options.requests
    found = records(options, options.nodes * per_node)
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="fedit-reuse-") as name:
        for share in shares:
            nodes = {
                f"node-{number + 1}": _slots(
                    found[number * per_node : (number + 1) * per_node], options.requests
                )
                for number in range(options.nodes)
            }
            overlap = Overlap(share, form=options.form, slot="later")
            nodes, copies = with_overlap(nodes, overlap, options.seed)
            data = Path(name, f"data-{share:g}")
            _write(data, nodes)
            with_reuse = _run(options, data, Path(name, f"with-{share:g}"), {})
            without = with_reuse
            if copies:
                off = {"reuse-threshold": 0.0}
                without = _run(options, data, Path(name, f"without-{share:g}"), off)
            values = _figures(with_reuse, without, len(copies))
            figures |= {f"reuse/{share:g}/{k}": v for k, v in values.items() if v is not None}
            logger.info("overlap %g: %s", share, values)
    facts = f"{options.nodes} nodes x {options.slots} x {options.requests}"
    lines = {f"{share:g}": f"reuse/{share:g}" for share in shares}
    print_figures(f"overlap ({facts}, {options.form})", _COLUMNS, figures, lines)
    return figures


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = [-1.0]
    if not all(0 <= share <= 1 for share in shares):
        raise FedEditError(f"--shares: {text!r}: write numbers from 0 to 1, such as 0,0.25,0.5")
    return shares


def _slots(requests: Sequence[EditRequest], per_slot: int) -> Slots:
    return [
        [dataclasses.replace(r, slot=number // per_slot + 1) for r in requests[number:][:per_slot]]
        for number in range(0, len(requests), per_slot)
    ]


def _write(folder: Path, nodes: dict[str, Slots]) -> None:
    """The nodes' requests as JSON lines, a file a node."""
    folder.mkdir(parents=True)
    for name, slots in nodes.items():
        lines = [
            json.dumps({k: v for k, v in dataclasses.asdict(r).items() if v not in (None, ())})
            for requests in slots
            for r in requests
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _run(
    options: argparse.Namespace, data: Path, folder: Path, changes: dict[str, float]
) -> Results:
    config = {
        "model": options.model,
        "device": options.device,
        "dtype": options.dtype,
        "dataset": "jsonl",
        "data-path": str(data),
        "num-slots": options.slots,
        "evaluate-every": options.slots,
        "output-dir": str(folder),
        "seed": options.seed,
        **changes,
    }
    lines: list[str] = []
    status = simulate(find_app(None), config, options.nodes, lines.append)
    if status != "finished:completed":
        raise FedEditError(f"a run ended with {status}: " + " | ".join(lines[-5:]))
    return load_results(folder / "results.json")


def _figures(with_reuse: Results, without: Results, avoidable: int) -> dict[str, float | None]:
    costs, costs_without = with_reuse.totals, without.totals
    avoided = costs_without.optimised - costs.optimised
    seconds, seconds_without = (found.seconds.edit or 0.0 for found in (costs, costs_without))
    return {
        "avoidable": avoidable,
        "avoided": avoided,
        "avoided_share": avoided / avoidable if avoidable else None,
        "seconds": seconds,
        "seconds_saved": seconds_without - seconds if avoidable else None,
        "mib_up": costs.bytes_up / 2**20,
        "mib_down": costs.bytes_down / 2**20,
        "score": with_reuse.summary.federation.score,
        "score_without": without.summary.federation.score,
    }


if __name__ == "__main__":
    main(run)
