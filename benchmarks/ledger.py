"""A ledger by the number of its MKVs: opening, appending, rolling back, and a whole slot.

MKVs are random, of the shape and precision that SmolLM2-135M has (five layers, int8). Every step
runs in a process of its own on a ledger that another one has made and solved once; memory is what
the step adds to that process. A slot does what a node's slot does with 100 new facts, but for their
values and the passes through the model: it opens the ledger, solves it, solves it with the new MKVs
layer after layer, accepts them, and solves for the edited model. Listing is the page that
`fedit ledger show` of one MKV needs: the ledger opened, 50 entries and their MKVs read.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.harness import (
    MIB,
    Cell,
    Figures,
    benchmark,
    counts,
    main,
    option,
    table,
)
from fedit_app.editing.kept_sums import pairs_of
from fedit_app.editing.pairs import Pairs
from fedit_app.editing.solver import Solver
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV, create
from fedit_app.support.errors import FedEditError
from fedit_app.support.memory import peak_memory

_ROOT = Path(__file__).parents[1]
_LAYERS, _D_FF, _D_MODEL = (4, 5, 6, 7, 8), 1536, 576
FINGERPRINT = "benchmark"
APPENDED, ROLLED_BACK, PAGE, _ROWS_PER_WRITE = 100, 1000, 50, 5000


@benchmark(
    counts("--sizes", [1000, 10_000, 100_000], "MKVs in the ledger"),
    counts("--slots", [1000, 100_000], "MKVs in the ledger of which a whole slot is measured"),
    option("--folder", "where the ledgers are made; None: the system's", type=Path),
    model=False,
    data=False,
)
def run(options: argparse.Namespace) -> Figures:
    """Fill a ledger to every size and take the steps."""
    figures: Figures = {}
    sizes = sorted({*options.sizes, *options.slots})
    with tempfile.TemporaryDirectory(prefix="fedit-ledger-", dir=options.folder) as folder:
        filled, copy = Path(folder) / "filled", Path(folder) / "copy"
        for start, size in zip([0, *sizes], sizes, strict=False):
            _step("fill", folder=str(filled), start=start, stop=size)
            if size in options.slots:
                _step("solve", folder=str(filled), start=size)
            steps = ["open", "page", "append", "roll_back", *["slot"] * (size in options.slots)]
            for step in steps:
                shutil.copytree(filled, copy, copy_function=_link)
                found = _step(step, folder=str(copy), start=size)
                shutil.rmtree(copy)
                figures |= {f"ledger/n={size}/{name}": value for name, value in found.items()}
    figures |= _by_name(figures, sizes, sorted(options.slots))
    columns = {
        "open, s": "open/seconds",
        "open, MiB": "open/mib",
        f"a page of {PAGE}, s": "page/seconds",
        f"append {APPENDED}, s": "append/seconds",
        f"roll back {ROLLED_BACK:,}, s": "roll_back/seconds",
        "a slot, s": "slot/seconds",
        "a slot, MiB": "slot/mib",
    }
    rows: list[list[Cell]] = [
        [n, *(figures.get(f"ledger/n={n}/{name}") for name in columns.values())] for n in sizes
    ]
    print(table(["MKVs", *columns], rows))
    few, many = sizes[0], sizes[-1]
    if few < many:
        for name in ("open", "append"):
            ratio = figures[f"ledger/n={many}/{name}/seconds"]
            ratio /= figures[f"ledger/n={few}/{name}/seconds"]
            slope = math.log(ratio) / math.log(many / few)
            figures[f"ledger/{name}/exponent"] = slope
            print(f"\nExponent of {name} from {few:,} to {many:,} MKVs: {slope:.2f}")
    return figures


def _by_name(figures: Figures, sizes: list[int], slots: list[int]) -> Figures:
    """The figures under the names by which other programs read them."""
    n, few, many = sizes[-1], slots[0], slots[-1]
    slot = {size: figures[f"ledger/n={size}/slot/seconds"] for size in slots}
    return {
        f"ledger/open_s_{n}": figures[f"ledger/n={n}/open/seconds"],
        f"ledger/open_mib_{n}": figures[f"ledger/n={n}/open/mib"],
        f"ledger/append_s_{APPENDED}": figures[f"ledger/n={n}/append/seconds"],
        f"ledger/slot_seconds_{many}_over_{few}": slot[many] / slot[few],
    }


def _link(source: str, target: str) -> None:
    """MKVs are never changed, and so they need no copy."""
    (os.link if source.endswith(".mkvs") else shutil.copy2)(source, target)


def _step(name: str, **given: object) -> Figures:
    command = [sys.executable, "-m", "benchmarks.ledger", "--step", name, json.dumps(given)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, env=environment)
    if done.returncode:
        raise FedEditError(f"step {name} {given} failed:\n{done.stderr[-2000:]}")
    found: Figures = json.loads(done.stdout)
    return found


def random_mkvs(start: int, stop: int) -> list[MKV]:
    """MKVs of a node, the same ones for the same numbers."""
    random = np.random.default_rng(start)
    shapes = ((len(_LAYERS), _D_FF), (len(_LAYERS), _D_MODEL), _D_MODEL, _D_MODEL)
    mkvs = []
    for _ in range(start, stop):
        keys, shifts, v_star, h0 = (random.standard_normal(shape, np.float32) for shape in shapes)
        mkvs.append(create("node", 1, FINGERPRINT, keys, shifts, v_star, h0))
    return mkvs


def fill(folder: str, start: int, stop: int) -> Figures:
    """Accept the MKVs from number `start` to `stop`; nothing waits for the disk."""
    os.fsync = lambda fd: None
    ledger = Ledger.open(Path(folder), FINGERPRINT)
    for begin in range(start, stop, _ROWS_PER_WRITE):
        mkvs = random_mkvs(begin, min(begin + _ROWS_PER_WRITE, stop))
        ledger.accept(mkvs, 1, {mkv.id: [f"request-{mkv.id}"] for mkv in mkvs})
    return {}


def open_(folder: str, start: int) -> Figures:
    """Open a ledger."""
    return _timed("open", lambda: Ledger.open(Path(folder), FINGERPRINT))


def solve(folder: str, start: int) -> Figures:
    """Solve a ledger as the slot before has left it, with its sums kept."""
    ledger = Ledger.open(Path(folder), FINGERPRINT)
    _solver().deltas(_pairs(ledger))
    return {}


def page(folder: str, start: int) -> Figures:
    """Read 50 MKVs of an open ledger, with what is said of them."""
    ledger = Ledger.open(Path(folder), FINGERPRINT)

    def read() -> list[object]:
        entries = [ledger.entries[id_] for id_ in sorted(ledger.entries)[:PAGE]]
        return [(entry.row, entry.mkv.keys) for entry in entries]

    return _timed("page", read)


def append(folder: str, start: int) -> Figures:
    """Accept 100 more MKVs, each with a request."""
    ledger, mkvs = Ledger.open(Path(folder), FINGERPRINT), random_mkvs(start, start + APPENDED)
    return _timed("append", lambda: ledger.accept(mkvs, 2, {mkv.id: ["r"] for mkv in mkvs[:1]}))


def roll_back(folder: str, start: int) -> Figures:
    """Refuse 1,000 MKVs, or half of those that there are."""
    ledger = Ledger.open(Path(folder), FINGERPRINT)
    ids = sorted(ledger.entries)[: min(ROLLED_BACK, start // 2)]
    return _timed("roll_back", lambda: ledger.refuse(ids, "rolled back"))


def slot(folder: str, start: int) -> Figures:
    """What a slot of 100 new facts does to a ledger, see the head of this file."""
    mkvs, solver = random_mkvs(start, start + APPENDED), _solver()
    new = pairs_of(mkvs, _D_FF, _D_MODEL)

    def whole() -> None:
        ledger = Ledger.open(Path(folder), FINGERPRINT)
        before = _pairs(ledger.without(()))
        solver.deltas(before)
        for i, layer in enumerate(_LAYERS):
            one = new.layer(i)
            solver.delta(layer, before.layer(i).with_more(one.keys[:], one.shifts[:]))
        ledger.accept(mkvs, 2)
        solver.deltas(_pairs(ledger))

    return _timed("slot", whole)


def _solver() -> Solver:
    c = torch.diag(torch.logspace(0, -3, _D_FF, dtype=torch.float64))
    return Solver(dict.fromkeys(_LAYERS, c), 1000.0)


def _pairs(ledger: Ledger) -> Pairs:
    """As `Workbench.pairs`."""
    if ledger.sums is None:
        raise ValueError("a ledger with a folder keeps sums")
    return ledger.sums.pairs(ledger.holding, _D_FF, _D_MODEL)


def _timed(name: str, step: Callable[[], object]) -> Figures:
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    kept = step()
    seconds = time.perf_counter() - started
    del kept
    peak = peak_memory() - before
    return {f"{name}/seconds": seconds, f"{name}/mib": peak / MIB}


_STEPS: dict[str, Callable[..., Figures]] = {
    "fill": fill,
    "solve": solve,
    "open": open_,
    "page": page,
    "append": append,
    "roll_back": roll_back,
    "slot": slot,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        sys.stdout.write(json.dumps(_STEPS[sys.argv[2]](**json.loads(sys.argv[3]))))
    else:
        main(run)
