"""One step of the pool benchmark in a process of its own, so that its memory is the step's alone.

    python -m benchmarks.pool_worker STEP ARGUMENTS_AS_JSON

prints what the step returns as JSON. It loads no torch and no model: a pool needs neither.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import lancedb
import numpy as np
import psutil

from fedit_app.mkv import MKV, create
from fedit_app.pool import MKVPool, SelectionConfig
from fedit_app.pool.pool import TABLE
from fedit_app.pool.rows import schema_for, to_rows, vectors_of

FINGERPRINT = "benchmark"
# Keys have the width in question; values and shifts are short, to save disk.
D_MODEL = 64
CLUSTERS = 2000
CLUSTERS_OF_A_NODE = 10
COMMON = 0.5
TOP_K = 20
REUSE_THRESHOLD = 0.98
REUSE_CANDIDATES = 4
_ROWS_PER_WRITE = 5000
_SECONDS_BETWEEN_SAMPLES = 0.005


def fill(folder: str, width: int, start: int, stop: int) -> dict[str, float]:
    """Write the MKVs from number `start` to `stop` straight into the table: all facts differ."""
    database, table, seconds = lancedb.connect(folder), None, 0.0
    for first in range(start, stop, _ROWS_PER_WRITE):
        new = _mkvs(width, min(_ROWS_PER_WRITE, stop - first), seed=first)
        schema = schema_for(new[0])
        ids = [mkv.id for mkv in new]
        nodes = {mkv.id: [mkv.node] for mkv in new}
        rows = to_rows(new, dict(zip(ids, ids, strict=True)), nodes, schema)
        started = time.perf_counter()
        table = table or database.create_table(TABLE, schema=schema, exist_ok=True)
        table.add(rows)
        seconds += time.perf_counter() - started
    return {"seconds": seconds}


def append(folder: str, width: int, count: int, seed: int) -> dict[str, float]:
    """Append a slot's uploads: look for equal facts, then write in one atomic step."""
    pool, new = MKVPool(folder), _mkvs(width, count, seed)
    return _timed(lambda: pool.append(new))


def lookup(folder: str, width: int, nodes: int, own: int) -> dict[str, Any]:
    """Find reuse candidates for all nodes' requests; the pool has the fact of every fourth."""
    pool, keys = MKVPool(folder), _own(width, nodes, own)
    known = vectors_of(next(pool.batches(["key"])), "key")
    for number, rows in enumerate(keys.values()):
        places = np.arange(0, own, 4)
        rows[places] = known[(number * own + places) % len(known)]
    found: dict[str, Any] = {}

    def ask() -> None:
        wanted = (REUSE_THRESHOLD, REUSE_CANDIDATES)
        found.update(pool.nearest(keys, "key", FINGERPRINT, *wanted))

    figures = _timed(ask)
    return figures | {"ids": [[m.id for m in row] for rows in found.values() for row in rows]}


def rank(
    folder: str, width: int, nodes: int, own: int, policy: str, centred: bool
) -> dict[str, Any]:
    """Select for all nodes of a slot, by similarity of keys."""
    pool, keys = MKVPool(folder), _own(width, nodes, own)
    config = SelectionConfig(policy, "key", centred, 0.4, TOP_K)
    found: dict[str, Any] = {}
    figures = _timed(lambda: found.update(pool.select(keys, FINGERPRINT, config)))
    return figures | {"ids": [[one.id for one in ranking] for ranking in found.values()]}


def _mkvs(width: int, count: int, seed: int) -> list[MKV]:
    """MKVs of eight nodes in turn."""
    random = np.random.default_rng([width, seed, 1])
    keys = _keys(width, random.integers(0, CLUSTERS, count), random)
    rest = random.standard_normal((count, 3, D_MODEL), np.float32)
    return [
        create(f"node-{i % 8}", 1, FINGERPRINT, keys[i : i + 1], rest[i, :1], *rest[i, 1:])
        for i in range(count)
    ]


def _own(width: int, nodes: int, own: int) -> dict[str, np.ndarray]:
    """node -> keys `(own, width)` from a few clusters of its own."""
    keys = {}
    for number in range(nodes):
        random = np.random.default_rng([width, number, 2])
        mine = random.integers(0, CLUSTERS, CLUSTERS_OF_A_NODE)
        keys[f"node-{number}"] = _keys(width, random.choice(mine, own), random)
    return keys


def _keys(width: int, clusters: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Keys `(n, width)` float32: half a common direction, the centre of a cluster, and noise.

    Centre and noise are about equally long, so that the cosine is about 0.56 within a cluster and
    0.11 between clusters.
    """
    common = np.random.default_rng([width, 3]).standard_normal(width, np.float32)
    numbers, places = np.unique(clusters, return_inverse=True)
    centres = np.stack(
        [np.random.default_rng([width, n, 4]).standard_normal(width, np.float32) for n in numbers]
    )
    noise = random.standard_normal((len(clusters), width), np.float32)
    return COMMON * common + centres[places] + noise


def _timed(function: Callable[[], object]) -> dict[str, float]:
    """Wall seconds, and the most memory that the process had resident meanwhile, in MiB."""
    process, most, done = psutil.Process(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(_SECONDS_BETWEEN_SAMPLES):
            most = max(most, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    started = time.perf_counter()
    try:
        function()
    finally:
        seconds = time.perf_counter() - started
        done.set()
        thread.join()
    return {"seconds": seconds, "peak_mib": max(most, process.memory_info().rss) / 2**20}


_STEPS = {step.__name__: step for step in (fill, append, lookup, rank)}

if __name__ == "__main__":
    print(json.dumps(_STEPS[sys.argv[1]](**json.loads(sys.argv[2]))))
