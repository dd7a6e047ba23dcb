"""A node that leaves a federation and comes back some slots later, on this machine over TLS.

All nodes but one are threads of one process. The other is a `fedit node` of its own that is stopped
after the first slot, and started again when it has missed as many as it is to miss. The model is
tiny and random, so that keys are not those of a language, and nobody screens them. "Missed" are the
slots in which the node had no part.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from benchmarks.deployment import BEHIND
from benchmarks.harness import Figures, benchmark, count, main, table
from benchmarks.loopback import PATIENCE, Deployment
from benchmarks.tiny import TINY_RUN, distinct_requests, tiny_model
from fedit_app.deployment.node_folder import NODE_FILE
from fedit_app.report import Results, load_results
from fedit_app.report.results import NodeResult
from fedit_app.support.errors import FedEditError

_AWAY = "node-01"
# Nodes in one process take a slot in less time than a node needs to start.
_MORE_SLOTS = 4


@benchmark(
    count("--nodes", 8, "with the one that leaves"),
    count("--away", 5, "slots that it misses at least"),
    data=False,
)
def run(options: argparse.Namespace) -> Figures:
    """Run the federation and print what the node's return took, beside a slot before it left."""
    slots = 1 + options.away + _MORE_SLOTS
    with tempfile.TemporaryDirectory(prefix="fedit-absence-") as name:
        results = _run(Path(name), options, slots)
    figures = {f"absence/{name}": value for name, value in _figures(results).items()}
    print(table([f"{options.nodes} nodes, {slots} slots", "figure"], list(figures.items())))
    return figures


def _run(folder: Path, options: argparse.Namespace, slots: int) -> Results:
    model = tiny_model(options.model, folder / "model")
    names = [f"node-{number + 1:02}" for number in range(options.nodes)]
    with Deployment(folder / "federation") as deployment:
        deployment.start_server()
        for name in names:
            node = deployment.add_node(name, distinct_requests(folder, name, slots), model)
            file = node.folder / NODE_FILE
            text = file.read_text(encoding="utf-8")
            text = re.sub(r"(?m)^screening = .*$", "screening = 0.0", text)
            file.write_text(text, encoding="utf-8")
        deployment.register(*names)
        deployment.start_together(*(name for name in names if name != _AWAY), within=BEHIND)
        deployment.start_nodes(_AWAY, within=BEHIND)
        deployment.wait_online(*names)
        preset = folder / "run.toml"
        preset.write_text(tomli_w.dumps({**TINY_RUN, "num-slots": slots, "evaluate-every": slots}))
        process = deployment.start_run("--config", str(preset), "--nodes", str(options.nodes))

        def reached(slot: int, stage: str) -> bool:
            if process.poll() is not None:
                raise FedEditError(f"the run ended early:\n{deployment.log('run')[-3000:]}")
            return f"slot {slot} {stage}: " in deployment.log("run")

        deployment.wait(lambda: reached(2, "edit"), "the first slot is not over", PATIENCE)
        deployment.end(_AWAY)
        slot = 2 + options.away
        deployment.wait(lambda: reached(slot, "edit"), f"slot {slot} has not begun", PATIENCE)
        deployment.start_nodes(_AWAY, within=BEHIND)
        if process.wait():
            raise FedEditError(f"the run failed:\n{deployment.log('run')[-3000:]}")
        (run_folder,) = deployment.server.path("runs").iterdir()
        return load_results(run_folder / "results.json")


def _figures(results: Results) -> Figures:
    """What the first slot with the node after its absence took it, and what it has in the end.

    Raises:
        FedEditError: it did not come back in time.
    """
    entries = [slot.nodes.get(_AWAY) for slot in results.slots]
    there = [number for number, entry in enumerate(entries) if entry and entry.requests]
    if len(there) < 2 or there[-1] - there[0] == len(there) - 1:
        raise FedEditError(f"{_AWAY} took part in slots {[n + 1 for n in there]} only")
    back = next(n for n, before in zip(there[1:], there, strict=False) if n > before + 1)
    missed = back - there[there.index(back) - 1] - 1
    first, returned = _entry(results, 0), _entry(results, back)
    names = sorted(results.nodes)
    return {
        "missed_slots": missed,
        "requests_in_return": returned.requests,
        "offered_in_return": returned.offered,
        "accepted_in_return": returned.accepted,
        "offered_in_slot_1": first.offered,
        "accepted_in_slot_1": first.accepted,
        "kib_down_in_return": returned.bytes_down / 1024,
        "kib_down_in_slot_1": first.bytes_down / 1024,
        "seconds_in_return": _seconds(returned),
        "seconds_in_slot_1": _seconds(first),
        "mkvs_in_the_end": _mkvs(results, [_AWAY]),
        "mkvs_of_others_in_the_end": _mkvs(results, [name for name in names if name != _AWAY]),
    }


def _entry(results: Results, index: int) -> NodeResult:
    return results.slots[index].nodes[_AWAY]


def _seconds(entry: NodeResult) -> float:
    """What the node itself worked in a slot."""
    return (entry.seconds.edit or 0.0) + (entry.seconds.reedit or 0.0)


def _mkvs(results: Results, names: Sequence[str]) -> float:
    """MKVs that a node has uploaded or accepted in all slots; the median of several nodes."""
    parts = [[slot.nodes[n] for slot in results.slots if n in slot.nodes] for n in names]
    return statistics.median(sum(e.uploaded + e.accepted for e in part) for part in parts)


if __name__ == "__main__":
    main(run)
