"""`fedit pool`: what a pool holds, whether it is sound, and taking MKVs out of it."""

from __future__ import annotations

import heapq
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedit_app.mkv import SIGNATURES, Record, SealedMKV
from fedit_app.mkv.similarity import cosines, unit_rows
from fedit_app.pool import MKVPool
from fedit_app.pool.check import check
from fedit_app.pool.prune import Criteria, Pruning, plan, prune
from fedit_app.report.table import plain_table
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import byte_size, plural, printable

_MOST_SLOT_COLUMNS = 8
_SAMPLE = 1000
_BINS = np.linspace(-1, 1, 21)
_BAR = 30
_NEAREST = 5
_MOST_DAMAGES = 20
_SHORT = 16


def open_pool(source: str) -> MKVPool:
    """The pool that a command is about.

    Args:
        source: the pool's folder or URI, or a run folder.

    Raises:
        FedEditError: there is no pool, or it is of another version of FedEdit.
    """
    uri = source
    if "://" not in source:
        folder = Path(source).expanduser().absolute()
        uri = str(folder)
        if (folder / "config.toml").is_file():
            values = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
            uri = values.get("pool-uri") or str(folder / "pool")
        if "://" not in uri and not Path(uri).is_dir():
            raise FedEditError(f"{source}: there is no folder {uri}; name a pool or a run folder")
    pool = MKVPool(uri)
    if not pool.exists:
        raise FedEditError(f"{source}: holds no pool; name a pool's folder or URI, or a run folder")
    return pool


def stats(source: str, seed: int) -> str:
    """Counts per node and slot, facts, fingerprints, size on disk, similarities.

    Args:
        source: see `open_pool`.
        seed: of the sample that the similarities are measured on.
    """
    pool = open_pool(source)
    slots: dict[str, Counter[int]] = {}
    facts: Counter[str] = Counter()
    fingerprints: dict[str, Counter[str]] = {"MKVs": Counter(), "facts": Counter()}
    alike = 0
    for row in pool.rows(["id", "node", "nodes", "slot", "fingerprint", "fact"]):
        canonical = row["id"] == row["fact"]
        slots.setdefault(row["node"], Counter())[row["slot"]] += 1
        facts[row["node"]] += canonical
        fingerprints["MKVs"][row["fingerprint"]] += 1
        fingerprints["facts"][row["fingerprint"]] += canonical
        alike += len(row["nodes"]) > 1
    common = fingerprints["MKVs"].most_common()
    rows = [(name, count, fingerprints["facts"][name]) for name, count in common]
    parts = [
        f"{plural(len(pool), 'MKV')} of {plural(facts.total(), 'fact')}: "
        f"{len(pool) - facts.total():,} folded under another of the same fact, {alike:,} uploaded "
        f"by several nodes alike; {_size(pool)}",
        _node_table(slots, facts),
        plain_table(("fingerprint", "MKVs", "facts"), rows),
        *(_similarities(pool, name, seed) for name, _ in common[:1]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _size(pool: MKVPool) -> str:
    disk = pool.disk_bytes()
    if disk is None:
        return "its storage does not tell its size"
    each = f", {byte_size(round(disk / len(pool)))} an MKV" if len(pool) else ""
    return f"{byte_size(disk)} on disk{each}"


def _node_table(slots: dict[str, Counter[int]], facts: Counter[str]) -> str:
    """A row per node, a column per slot; of many slots the earlier ones are one column."""
    everybody = sum(slots.values(), Counter())
    shown = sorted(everybody)[-_MOST_SLOT_COLUMNS:]
    earlier = sorted(everybody)[:-_MOST_SLOT_COLUMNS]
    columns = ["node", "MKVs", "facts", *(["earlier slots"] if earlier else [])]
    columns += [f"slot {slot}" for slot in shown]

    def row(name: str, counts: Counter[int], facts: int) -> list[str | int]:
        before = [sum(counts[slot] for slot in earlier)] if earlier else []
        return [name, counts.total(), facts, *before, *(counts[slot] for slot in shown)]

    rows = [row(name, counts, facts[name]) for name, counts in sorted(slots.items())]
    return plain_table(columns, [*rows, row("all", everybody, facts.total())])


def _similarities(pool: MKVPool, fingerprint: str, seed: int) -> str:
    """Histograms of the cosines between the canonical MKVs of one fingerprint, or a sample."""
    ids = sorted(
        row["id"]
        for row in pool.rows(["id", "fact", "fingerprint"])
        if row["fact"] == row["id"] and row["fingerprint"] == fingerprint
    )
    if len(ids) < 2:
        return ""
    order = np.random.default_rng(seed).permutation(len(ids))[:_SAMPLE]
    mkvs = pool.fetch([ids[i] for i in order])
    shares = {}
    for kind in SIGNATURES:
        units = unit_rows(np.array([mkv.signature(kind) for mkv in mkvs]))
        values = np.clip(cosines(units, units)[np.triu_indices(len(units), 1)], -1, 1)
        shares[kind] = np.histogram(values, _BINS)[0] / len(values)
    used = np.flatnonzero(sum(shares.values()))
    rows = [
        [f"{_BINS[i]:+.1f} to {_BINS[i + 1]:+.1f}", *(_bar(shares[kind][i]) for kind in shares)]
        for i in range(used[0], used[-1] + 1)
    ]
    what = f"{len(mkvs):,} of {len(ids):,}, drawn with seed {seed},"
    what = f"all {len(ids):,}" if len(mkvs) == len(ids) else what
    title = f"Cosines between facts ({what} of fingerprint {printable(fingerprint)[:_SHORT]}):"
    if isinstance(mkvs[0], SealedMKV):
        error = 1 / units.shape[1] ** 0.5
        title = f"{title[:-1]}, of sketches, which err by up to {error:.2f}:"
    return f"{title}\n\n{plain_table(('cosine', *shares), rows)}"


def _bar(share: float) -> str:
    return f"{share:6.1%} {'#' * round(_BAR * share)}"


def listing(source: str, criteria: Criteria, limit: int) -> str:
    """The MKVs that meet the criteria, by slot, node and id.

    Args:
        source: see `open_pool`.
        criteria: which.
        limit: how many are shown at most.
    """
    pool = open_pool(source)
    total = 0

    def wanted() -> Iterator[tuple]:
        nonlocal total
        for row in pool.rows(["id", "node", "nodes", "slot", "fingerprint", "fact"]):
            if criteria.meets(row):
                total += 1
                fact = "itself" if row["fact"] == row["id"] else row["fact"]
                others = ", ".join(node for node in row["nodes"] if node != row["node"])
                yield row["slot"], row["node"], row["id"], fact, others, row["fingerprint"][:_SHORT]

    rows = heapq.nsmallest(limit, wanted())
    columns = ("slot", "node", "id", "stands for its fact", "uploaded by, too", "fingerprint")
    shown = "" if total <= limit else f"; the first {limit:,} are shown (--limit)"
    return f"{plain_table(columns, rows)}\n\n{plural(total, 'MKV')}{shown}\n"


def show(source: str, id_: str) -> str:
    """One MKV: where it comes from, its fact, its vectors' sizes, what is similar to it.

    Args:
        source: see `open_pool`.
        id_: its id, or as much of its beginning as no other has.
    """
    pool = open_pool(source)
    row = _only_row(pool, id_)
    (mkv,) = pool.fetch([row["id"]])
    members = sorted(other["id"] for other in pool.rows(["id", "fact"]) if _same(other, row))
    canonical = row["fact"] == row["id"]
    lines = [
        f"id           {mkv.id}",
        f"node         {printable(mkv.node)}",
        f"uploaded by  {printable(', '.join(row['nodes']))}",
        f"slot         {mkv.slot}",
        f"fingerprint  {printable(mkv.fingerprint)}",
        f"fact         {'it stands for its fact itself' if canonical else row['fact']}",
        f"same fact    {', '.join(members) or 'no other MKV'}",
        "",
        _vectors(mkv),
    ]
    near = []
    for kind in SIGNATURES:
        query, held = {"": mkv.signature(kind)[None]}, {"": {mkv.id}}
        ((matches,),) = pool.nearest(query, kind, mkv.fingerprint, -1, _NEAREST, held).values()
        near += [(kind, match.id, f"{match.cosine:.3f}") for match in matches]
    return "\n".join([*lines, "", plain_table(("most similar by", "id", "cosine"), near)]) + "\n"


def _same(other: dict, row: dict) -> bool:
    return other["fact"] == row["fact"] and other["id"] != row["id"]


def _only_row(pool: MKVPool, beginning: str) -> dict:
    rows = [
        row
        for row in pool.rows(["id", "nodes", "fact"])
        if beginning and row["id"].startswith(beginning)
    ]
    if len(rows) != 1:
        found = f"{len(rows):,} MKVs" if rows else "no MKV"
        raise FedEditError(
            f"pool: {found} with an id that begins with {beginning!r}; give more of it"
        )
    return rows[0]


def _vectors(mkv: Record) -> str:
    """Shapes and lengths of an MKV's vectors, a row per layer for keys and shifts."""
    if isinstance(mkv, SealedMKV):
        width = mkv.signature("key").size
        return (
            f"sealed: {byte_size(len(mkv.payload))} that only nodes with the federation key can "
            f"open, and sketches of {width} numbers"
        )
    rows = [("v*", mkv.v_star), ("h0", mkv.h0), ("v* - h0", mkv.delta)]
    rows += [(f"key, layer {n + 1}", key) for n, key in enumerate(mkv.keys)]
    rows += [(f"shift, layer {n + 1}", shift) for n, shift in enumerate(mkv.shifts)]
    return plain_table(
        ("vector", "width", "length"),
        [(name, vector.size, f"{np.linalg.norm(vector):.4g}") for name, vector in rows],
    )


def verify(source: str) -> tuple[str, bool]:
    """Read a whole pool and check it (see `check`): what is to be said, and whether it is sound.

    Args:
        source: see `open_pool`.
    """
    pool = open_pool(source)
    lines, count = [], 0
    for damage in check(pool):
        count += 1
        if count <= _MOST_DAMAGES:
            lines.append(
                printable(f"MKV {damage.id}: {damage.reason}" if damage.id else damage.reason)
            )
    if not count:
        sealed = _sealed(pool)
        unseen = (
            f"; {plural(sealed, 'MKV')} of it sealed: that the payloads open, and are what ids and "
            "sketches say, only nodes can check, and do when they are sent them"
        )
        sound = f"{plural(len(pool), 'MKV')} checked: the pool is sound{unseen if sealed else ''}"
        return f"{sound}\n", True
    if count > _MOST_DAMAGES:
        lines.append(f"... and {count - _MOST_DAMAGES:,} more")
    lines.append(f"the pool is damaged: {plural(count, 'finding')}; take a copy from before back")
    return "\n".join(lines) + "\n", False


def _sealed(pool: MKVPool) -> int:
    """How many MKVs of a sound pool are sealed: of a fingerprint all are, or none."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for row in pool.rows(["id", "fingerprint"]):
        counts[row["fingerprint"]] += 1
        first.setdefault(row["fingerprint"], row["id"])
    found = pool.fetch(list(first.values()))
    return sum(counts[mkv.fingerprint] for mkv in found if isinstance(mkv, SealedMKV))


def pruned(source: str, criteria: Criteria, dry_run: bool) -> str:
    """Take out the MKVs that meet the criteria, write the pool anew and free the disk.

    Args:
        source: see `open_pool`.
        criteria: which; without any, nothing is taken out.
        dry_run: only say what would be done.
    """
    pool = open_pool(source)
    nothing = Pruning(frozenset(), {}, {}, 0)
    pruning = nothing if criteria == Criteria() else plan(pool, criteria)
    count, before = len(pool), pool.disk_bytes()
    lines = [
        f"{len(pruning.removed):,} of {plural(count, 'MKV')} taken out, "
        f"{plural(pruning.facts_lost, 'fact')} lost with them",
        f"{plural(len(pruning.facts), 'fact')} another MKV stands for now",
        f"{plural(len(pruning.kept_for), 'MKV')} kept for other nodes that uploaded the same",
    ]
    if dry_run:
        return "\n".join([*lines, "dry run: nothing was changed"]) + "\n"
    prune(pool, pruning)
    after = pool.disk_bytes()
    if before is not None and after is not None:
        lines.append(f"on disk: {byte_size(before)} before, {byte_size(after)} now")
    return "\n".join(lines) + "\n"
