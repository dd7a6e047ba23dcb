"""Real nodes over TLS on this machine: seconds and bytes of a slot, start-up, the load of many.

First three nodes with the demo's requests run twice, with their resident processes and without
(`worker-idle-seconds = 0`, a model load for every message). Then many nodes with a tiny random
model run many slots against one server; memory is the proportional set size of the processes.
With `--together` these are threads of one process, so that this machine holds more of them.
Before and after them Flower alone exchanges empty messages with the same nodes. `--part messages`
exchanges messages only, of the form that FedEdit's have and had, beside empty ones.
"""

from __future__ import annotations

import argparse
import logging
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import tomli_w

import fedit_app.facts
from benchmarks.harness import (
    MIB,
    Cell,
    Figures,
    benchmark,
    count,
    main,
    option,
    print_figures,
    table,
)
from benchmarks.loopback import TOGETHER, Deployment
from benchmarks.tiny import TINY_RUN, requests, tiny_model
from fedit_app.config.run_config import ConfigValue
from fedit_app.flower_compat.connection import Connection
from fedit_app.models.loading import resolve_model
from fedit_app.report import Results, load_results
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

_DEMO = Path(fedit_app.facts.__file__).parent / "demo"
_NODES = ("bank", "hospital", "museum")
_STAGES = ("edit", "reedit", "evaluate")
_SECONDS_BETWEEN_SAMPLES = 10
_IDLE_SECONDS = 15
_MESSAGES = Path(__file__).parent / "flower_messages"
_EXCHANGE = re.compile(r"exchange: (\w+) ([\d.]+) s ([\d.]+) s")
_KINDS = {"empty": "Flower's empty messages", "parts": "a record for each", "parcel": "parcels"}
# Of a slot: edit and re-edit. The load's nodes are evaluated in the last slot alone.
_EXCHANGES = 2
# The server would have a machine of its own: many nodes on this one leave it the processor first.
BEHIND = ("nice", "-n", "10")


@benchmark(
    count("--slots", 3, "of three nodes"),
    count("--requests", 2, "per node and slot"),
    count("--load-nodes", 50, "many"),
    count("--load-slots", 10, "of many nodes"),
    option("--together", "the many nodes in one process, one model for all", action="store_true"),
    option(
        "--part",
        "three nodes, many, or messages to many",
        choices=["all", "warm", "load", "messages"],
        default="all",
    ),
    option("--kinds", "of messages to many: empty, parts, parcel", default="empty,parts,parcel"),
    count("--exchanges", 2, "of each kind of messages to many"),
    data=False,
)
def run(options: argparse.Namespace) -> Figures:
    """Run the federations and print a table for each."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="fedit-deployment-") as name:
        if options.part in ("all", "warm"):
            figures |= _warm_and_cold(options, Path(name))
        if options.part in ("all", "load"):
            figures |= _load(options, Path(name, "load"))
        if options.part in ("all", "messages"):
            figures |= _messages(options, Path(name, "messages"))
    return figures


def _warm_and_cold(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    model = resolve_model(options.model)  # once, not by three nodes at the same time
    config = {"num-slots": options.slots, "requests-per-slot": options.requests}
    figures: Figures = {}
    for way, idle in (("resident", None), ("without", 0.0)):
        data = {name: _DEMO / f"{name}.jsonl" for name in _NODES}
        with Deployment(folder / way) as deployment:
            figures |= {
                f"deployment/{way}/{name}": value
                for name, value in _started(deployment, data, model, idle).items()
            }
            results = finished(deployment, config, len(data))
        figures |= {f"deployment/{way}/{k}": v for k, v in _of_slots(results, len(data)).items()}
    columns = {
        "server starts s": "server_start_seconds",
        "node starts s": "node_start_seconds",
        "hello s": "hello_seconds",
        "first slot s": "first_slot_seconds",
        "later slot s": "later_slot_seconds",
        **{f"{stage} s": f"{stage}_seconds" for stage in _STAGES},
        "KiB up": "kib_up",
        "KiB down": "kib_down",
    }
    lines = {way: f"deployment/{way}" for way in ("resident", "without")}
    print_figures("processes", columns, figures, lines)
    print("Stages are of later slots; KiB are an average per node and slot.\n")
    return figures


def _load(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    folder.mkdir()
    model, count = tiny_model(options.model, folder / "model"), options.load_nodes
    names = [f"node-{number + 1:02}" for number in range(count)]
    data = {name: requests(folder, name, options.load_slots) for name in names}
    config = {
        **TINY_RUN,
        "num-slots": options.load_slots,
        "evaluate-every": options.load_slots,
    }
    with Deployment(folder / "federation") as deployment:
        together = options.together
        started = _started(
            deployment, data, model, 0.0 if together else None, within=BEHIND, together=together
        )
        empty = _exchanges(deployment, "empty")[0]["empty"]
        with _Memory(deployment, [TOGETHER] if together else names, count) as memory:
            results = finished(deployment, config, count)
        empty += _exchanges(deployment, "empty")[0]["empty"]
    failed = len(results.failed_nodes)
    figures = {
        "node_start_seconds": started["node_start_seconds"],
        "failures": failed,
        **_of_slots(results, count),
        **_beside_empty(results, empty),
        **memory.figures(),
    }
    rows: list[list[Cell]] = [[name, value] for name, value in figures.items()]
    nodes = f"{count} nodes{' in one process' if together else ''}"
    print(table([f"{nodes}, {options.load_slots} slots", "figure"], rows))
    print(table(*memory.over_time()))
    if failed:
        raise FedEditError(f"{failed} times a node was missing: {results.failed_nodes[:3]}")
    return {f"deployment/load/{name}": value for name, value in figures.items()}


def _messages(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Exchanges of messages alone: the nodes answer with what they got."""
    folder.mkdir()
    model, count = tiny_model(options.model, folder / "model"), options.load_nodes
    names = [f"node-{number + 1:03}" for number in range(count)]
    data = {name: requests(folder, name, 1) for name in names}
    with Deployment(folder / "federation") as deployment:
        _started(deployment, data, model, 0.0, within=BEHIND, together=True)
        idle = _idle_cores(deployment)
        with _Memory(deployment, [TOGETHER], count) as memory:
            found, processor = _exchanges(deployment, options.kinds, options.exchanges)
    seconds = {kind: statistics.median(all_) for kind, all_ in found.items()}
    worked = {kind: statistics.median(all_) for kind, all_ in processor.items()}
    figures: Figures = {}
    rows: list[list[Cell]] = []
    for kind, taken in seconds.items():
        row: dict[str, float | None] = {
            "slot_seconds": _EXCHANGES * taken,
            "seconds_per_node": taken / count,
            "over_empty": taken / seconds["empty"] if "empty" in seconds else None,
            "processor_seconds_per_node": worked[kind] / count,
            "processor_over_empty": worked[kind] / worked["empty"] if "empty" in worked else None,
        }
        path = f"deployment/messages/{kind}"
        figures |= {f"{path}/{name}": v for name, v in row.items() if v is not None}
        rows.append([_KINDS[kind], *row.values()])
    columns = ["slot s", "s a node", "over empty", "server's processor s a node", "over empty"]
    print(table([f"{count} nodes", *columns], rows))
    figures["deployment/messages/server_mib"] = max(server for _, server, _ in memory.samples)
    figures["deployment/messages/idle_cores"] = idle
    print(f"The server's processes had {figures['deployment/messages/server_mib']:.0f} MiB.")
    print(f"While all nodes waited they took {idle:.3f} of a processor core.\n")
    return figures


def _idle_cores(deployment: Deployment) -> float:
    """Processor seconds that the server works in a second in which nodes only ask for messages."""
    server = deployment.members("server")

    def worked() -> float:
        return sum(p.cpu_times().user + p.cpu_times().system for p in server)

    began, before = time.perf_counter(), worked()
    time.sleep(_IDLE_SECONDS)
    return (worked() - before) / (time.perf_counter() - began)


def _exchanges(
    deployment: Deployment, kinds: str, exchanges: int = 2
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Kind of message -> the seconds of its exchanges with all nodes, and the processor's."""
    home = deployment.folder / "flower-messages"
    home.mkdir(exist_ok=True)
    connection = Connection.to(deployment.server.superlink, home)
    lines: list[str] = []
    run_config: dict[str, ConfigValue] = {"kinds": kinds, "exchanges": exchanges}
    status = connection.follow(connection.submit(_MESSAGES, run_config), lines.append)
    found: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    for kind, seconds, worked in _EXCHANGE.findall("\n".join(lines)):
        found.setdefault(kind, []).append(float(seconds))
        processor.setdefault(kind, []).append(float(worked))
    if set(found) != set(kinds.split(",")):
        raise FedEditError(f"not all messages came back ({status}): {lines[-3:]}")
    return found, processor


def _beside_empty(results: Results, empty: Sequence[float]) -> dict[str, float]:
    """What the two exchanges of a slot take, without the nodes' own work, and with empty messages.

    The nodes of one process work one after the other; of nodes with processes of their own, which
    work at the same time, the sum of the seconds is too much, and the ratio too small.
    """
    slots = results.slots[1:] or results.slots
    stages = [(slot.seconds.edit or 0.0) + (slot.seconds.reedit or 0.0) for slot in slots]
    own = [
        sum((n.seconds.edit or 0.0) + (n.seconds.reedit or 0.0) for n in slot.nodes.values())
        for slot in slots
    ]
    slot, work, floor = map(statistics.median, (stages, own, empty))
    return {
        "exchanges_seconds": slot,
        "nodes_own_seconds": work,
        "empty_exchanges_seconds": _EXCHANGES * floor,
        "over_empty": slot / (_EXCHANGES * floor),
        "without_own_over_empty": (slot - work) / (_EXCHANGES * floor),
    }


def _started(
    deployment: Deployment,
    data: dict[str, Path],
    model: Path,
    idle: float | None,
    within: Sequence[str] = (),
    together: bool = False,
) -> dict[str, float]:
    """Start the server and all nodes, these within another command; how long both took."""
    started = time.perf_counter()
    deployment.start_server()
    server = time.perf_counter() - started
    for name, file in data.items():
        node = deployment.add_node(name, file, model)
        if idle is not None:
            settings = node.folder / "node.toml"
            text = settings.read_text(encoding="utf-8")
            text = re.sub(
                r"(?m)^# worker-idle-seconds = .*$", f"worker-idle-seconds = {idle}", text
            )
            settings.write_text(text, encoding="utf-8")
    deployment.register(*data)
    started = time.perf_counter()
    start_nodes = deployment.start_together if together else deployment.start_nodes
    start_nodes(*data, within=within)
    deployment.wait_online(*data, patience=60 + 20 * len(data))
    nodes = time.perf_counter() - started
    return {"server_start_seconds": server, "node_start_seconds": nodes}


def finished(deployment: Deployment, config: dict[str, Any], nodes: int) -> Results:
    """The results of a run from its start to its end."""
    preset = deployment.folder / "run.toml"
    preset.write_text(tomli_w.dumps(config), encoding="utf-8")
    process = deployment.start_run("--config", str(preset), "--nodes", str(nodes))
    if process.wait():
        raise FedEditError(f"the run failed:\n{deployment.log('run')[-3000:]}")
    (folder,) = deployment.server.path("runs").iterdir()
    return load_results(folder / "results.json")


def _of_slots(results: Results, nodes: int) -> dict[str, float]:
    slots = results.slots
    later = slots[1:] or slots
    totals = [slot.seconds.total for slot in slots]
    figures: dict[str, float | None] = {
        "hello_seconds": results.seconds.hello,
        "first_slot_seconds": totals[0],
        "later_slot_seconds": statistics.fmean(totals[1:] or totals),
    }
    for stage in _STAGES:
        taken = [found for slot in later if (found := getattr(slot.seconds, stage))]
        figures[f"{stage}_seconds"] = statistics.fmean(taken) if taken else 0.0
    for way in ("up", "down"):
        total = getattr(results.totals, f"bytes_{way}")
        figures[f"kib_{way}"] = total / 1024 / nodes / len(slots)
    return {name: value for name, value in figures.items() if value is not None}


class _Memory:
    """Samples the memory of the server's and the nodes' processes while the block runs."""

    def __init__(self, deployment: Deployment, names: Sequence[str], count: int) -> None:
        self._deployment, self._names, self._count = deployment, names, count
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.samples: list[tuple[float, float, float]] = []
        self._started = time.perf_counter()

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def figures(self) -> dict[str, float]:
        """MiB at the end of the first third, when all is loaded, and at the end."""
        early, late = self.samples[len(self.samples) // 3], self.samples[-1]
        return {
            "server_mib_early": early[1],
            "server_mib_late": late[1],
            "node_mib_early": early[2],
            "node_mib_late": late[2],
            "machine_mib_peak": max(server + n * self._count for _, server, n in self.samples),
        }

    def over_time(self) -> tuple[list[str], list[list[float]]]:
        """Some ten samples: columns and rows."""
        step = max(1, len(self.samples) // 10)
        return ["seconds", "server MiB", "MiB a node"], [list(s) for s in self.samples[::step]]

    def _watch(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_SAMPLES):
            now = time.perf_counter() - self._started
            server = self._deployment.members("server")
            nodes = [p for name in self._names for p in self._deployment.members(name)]
            self.samples.append((now, _mib(server), _mib(nodes) / self._count))


def _mib(processes: Sequence[psutil.Process]) -> float:
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / MIB


if __name__ == "__main__":
    main(run)
