"""`fedit pool`: shows what a pool holds, checks it, and removes MKVs from it."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedit_app.cli.options import DryRun, only_id
from fedit_app.cli.output import Format, FormatOption, Part, say, write, write_findings
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml
from fedit_app.support.formats import byte_size, plural, printable
from fedit_app.support.tables import Cell, Figure, Shown, Table

if TYPE_CHECKING:
    from fedit_app.mkv import Record
    from fedit_app.pool import MKVPool
    from fedit_app.pool.overview import CosineHistogram, Overview
    from fedit_app.pool.prune import Criteria

_MOST_SLOT_COLUMNS = 8
_BAR = 30
_NEAREST = 5
_SHORT = 16

app = typer.Typer(
    name="pool",
    help="Look at an MKV pool, check it, take MKVs out of it.",
    no_args_is_help=True,
    suggest_commands=False,
)

Source = Annotated[str, typer.Argument(metavar="POOL", help="Its folder or URI, or a run folder.")]
Nodes = Annotated[
    list[str] | None,
    typer.Option("--node", metavar="NAME", help="Uploaded by this node; may be repeated."),
]
Slots = Annotated[
    list[int] | None, typer.Option("--slot", metavar="N", help="Of this slot; may be repeated.")
]
Fingerprints = Annotated[
    list[str] | None,
    typer.Option("--fingerprint", metavar="HASH", help="With this fingerprint; may be repeated."),
]
Ids = Annotated[
    list[str] | None, typer.Option("--id", metavar="ID", help="This one; may be repeated.")
]
BeforeSlot = Annotated[int, typer.Option(metavar="N", help="Of a slot before this one; 0: of any.")]


def open_pool(source: str) -> MKVPool:
    """Open the pool that a command is given.

    Args:
        source: folder or URI of a pool, or a run folder.

    Raises:
        FedEditError: there is no pool, or another version of FedEdit made it.
    """
    from fedit_app.pool import MKVPool

    uri = source
    if "://" not in source:
        folder = Path(source).expanduser().absolute()
        uri = str(folder)
        if (folder / "config.toml").is_file():
            values = read_toml(folder / "config.toml", str(folder / "config.toml"))
            uri = values.get("pool-uri") or str(folder / "pool")
        if "://" not in uri and not Path(uri).is_dir():
            raise FedEditError(f"{source}: there is no folder {uri}; name a pool or a run folder")
    pool = MKVPool(uri)
    if not pool.exists:
        raise FedEditError(f"{source}: holds no pool; name a pool's folder or URI, or a run folder")
    return pool


@app.command()
def stats(
    source: Source,
    seed: Annotated[int, typer.Option(help="Of the sample for the similarities.")] = 0,
    form: FormatOption = Format.AUTO,
) -> None:
    """Count MKVs and facts, show size and similarities."""
    from fedit_app.pool.overview import cosine_histogram, overview

    pool = open_pool(source)
    found = overview(pool)
    by_fingerprint = found.mkvs_by_fingerprint.most_common()
    count, disk = len(pool), pool.disk_bytes()
    parts: dict[str, Part] = {
        "counts": {
            "MKVs": count,
            "facts": found.facts.total(),
            "folded under another MKV of the same fact": count - found.facts.total(),
            "uploaded by several nodes alike": found.shared,
            "on disk": None if disk is None else _bytes(disk),
            "on disk, of each MKV": _bytes(round(disk / count)) if disk and count else None,
        },
        "nodes": _node_table(found),
        "fingerprints": Table(
            ("fingerprint", "MKVs", "facts"),
            [(name, n, found.facts_by_fingerprint[name]) for name, n in by_fingerprint],
            code=("fingerprint",),
        ),
    }
    for fingerprint, _ in by_fingerprint[:1]:
        histogram = cosine_histogram(pool, fingerprint, seed)
        if histogram is not None:
            parts["title"] = _title(histogram, fingerprint, seed)
            parts["cosines"] = _histogram_table(histogram)
    write(parts, form)


def _bytes(count: int) -> Shown:
    return Shown(count, byte_size(count))


def _bar(share: float) -> Shown:
    """A share with a bar: `25.0% ########`."""
    return Shown(share, f"{share:6.1%} {'#' * round(_BAR * share)}", right=False)


def _node_table(found: Overview) -> Table:
    """A row for each node and a column for each of the last 8 slots; one for all earlier ones."""
    everybody = sum(found.slots.values(), Counter[int]())
    shown = sorted(everybody)[-_MOST_SLOT_COLUMNS:]
    earlier = sorted(everybody)[:-_MOST_SLOT_COLUMNS]
    columns = ["node", "MKVs", "facts", *(["earlier slots"] if earlier else [])]
    columns += [f"slot {slot}" for slot in shown]

    def row(name: str, counts: Counter[int], facts: int) -> list[Cell]:
        before = [sum(counts[slot] for slot in earlier)] if earlier else []
        return [name, counts.total(), facts, *before, *(counts[slot] for slot in shown)]

    rows = [row(name, counts, found.facts[name]) for name, counts in sorted(found.slots.items())]
    return Table(columns, [*rows, row("all", everybody, found.facts.total())])


def _title(found: CosineHistogram, fingerprint: str, seed: int) -> str:
    which = f"all {found.facts:,}"
    if found.drawn < found.facts:
        which = f"{found.drawn:,} of {found.facts:,}, drawn with seed {seed},"
    title = f"Cosines between facts ({which} of fingerprint {printable(fingerprint)[:_SHORT]})"
    sketched = f", of sketches, which err by up to {found.error:.2f}" if found.error else ""
    return f"{title}{sketched}:"


def _histogram_table(found: CosineHistogram) -> Table:
    rows: list[list[Cell]] = [
        [f"{low:+.1f} to {high:+.1f}", *map(_bar, shares)]
        for (low, high), *shares in zip(found.bins, *found.shares.values(), strict=True)
    ]
    return Table(("cosine", *found.shares), rows)


@app.command("list")
def list_(
    source: Source,
    nodes: Nodes = None,
    slots: Slots = None,
    fingerprints: Fingerprints = None,
    ids: Ids = None,
    before_slot: BeforeSlot = 0,
    limit: Annotated[int, typer.Option(metavar="N", help="Show at most so many.")] = 50,
    form: FormatOption = Format.AUTO,
) -> None:
    """List the MKVs that meet all criteria, by slot, node and id."""
    pool, criteria = open_pool(source), _criteria(nodes, slots, fingerprints, ids, before_slot)
    counter = itertools.count()

    def wanted() -> Iterator[tuple[Any, ...]]:
        for row in pool.rows(["id", "node", "nodes", "slot", "fingerprint", "fact"]):
            if criteria.meets(row):
                next(counter)
                fact = "itself" if row["fact"] == row["id"] else row["fact"]
                others = ", ".join(node for node in row["nodes"] if node != row["node"])
                yield row["slot"], row["node"], row["id"], fact, others, row["fingerprint"][:_SHORT]

    rows = heapq.nsmallest(limit, wanted())
    columns = ("slot", "node", "id", "stands for its fact", "uploaded by, too", "fingerprint")
    total = next(counter)
    shown = "" if total <= limit else f"; the first {limit:,} are shown (--limit)"
    write(
        {"mkvs": Table(columns, rows, code=("id",)), "count": f"{plural(total, 'MKV')}{shown}"},
        form,
    )


@app.command()
def show(
    source: Source,
    beginning: Annotated[str, typer.Argument(metavar="ID", help="Its id, or the beginning of it.")],
    form: FormatOption = Format.AUTO,
) -> None:
    """Show one MKV: its origin, its fact, its vectors, and what is similar to it."""
    from fedit_app.mkv import SIGNATURES

    pool = open_pool(source)
    row = _only_row(pool, beginning)
    (mkv,) = pool.fetch([row["id"]])
    members = sorted(
        other["id"]
        for other in pool.rows(["id", "fact"])
        if other["fact"] == row["fact"] and other["id"] != row["id"]
    )
    near = []
    for kind in SIGNATURES:
        query, held = {"": mkv.signature(kind)[None]}, {"": {mkv.id}}
        ((matches,),) = pool.nearest(query, kind, mkv.fingerprint, -1, _NEAREST, held).values()
        near += [(kind, match.id, Figure(float(match.cosine), 3)) for match in matches]
    parts: dict[str, Part] = {
        "mkv": {
            "id": mkv.id,
            "node": mkv.node,
            "uploaded by": ", ".join(row["nodes"]),
            "slot": mkv.slot,
            "fingerprint": mkv.fingerprint,
            "fact": "it stands for its fact itself" if row["fact"] == row["id"] else row["fact"],
            "same fact": ", ".join(members) or "no other MKV",
        },
        "vectors": _vectors(mkv),
        "similar": Table(("most similar by", "id", "cosine"), near, code=("id",)),
    }
    write(parts, form)


def _only_row(pool: MKVPool, beginning: str) -> dict[str, Any]:
    rows = {row["id"]: row for row in pool.rows(["id", "nodes", "fact"])}
    return rows[only_id(rows.keys(), beginning, "pool")]


def _vectors(mkv: Record) -> Part:
    """Width and norm of an MKV's vectors; a row for each layer's key and shift."""
    import numpy as np

    from fedit_app.mkv import SealedMKV

    if isinstance(mkv, SealedMKV):
        width = mkv.signature("key").size
        return (
            f"sealed: {byte_size(len(mkv.payload))} that only nodes with the federation key can "
            f"open, and sketches of {width} numbers"
        )
    rows = [("v*", mkv.v_star), ("h0", mkv.h0), ("v* - h0", mkv.delta)]
    rows += [(f"key {n + 1}", key) for n, key in enumerate(mkv.keys)]
    rows += [(f"shift {n + 1}", shift) for n, shift in enumerate(mkv.shifts)]
    lengths = [(name, vector, float(np.linalg.norm(vector))) for name, vector in rows]
    return Table(
        ("vector", "width", "length"),
        [(name, vector.size, Figure(length, 3)) for name, vector, length in lengths],
    )


@app.command()
def verify(source: Source, form: FormatOption = Format.AUTO) -> int:
    """Read and check all of it; exit status 1 if it is damaged."""
    from fedit_app.pool.check import check
    from fedit_app.pool.overview import sealed_count

    pool = open_pool(source)
    findings = [f"MKV {d.id}: {d.reason}" if d.id else d.reason for d in check(pool)]
    sealed = 0 if findings else sealed_count(pool)
    note = f"{plural(sealed, 'MKV')}, whose payloads, ids and sketches nodes check on arrival"
    more = {"sealed": note} if sealed else {}
    return write_findings(findings, "pool", form, MKVs=len(pool), **more)


@app.command()
def withdrawals(source: Source, form: FormatOption = Format.AUTO) -> None:
    """List what authors have withdrawn, and which nodes have confirmed that it is gone there."""
    from fedit_app.pool.withdraw import receipts
    from fedit_app.pool.withdraw import withdrawals as recorded

    pool = open_pool(source)
    by, confirmed = recorded(pool), receipts(pool)
    held = pool.facts(list(by))
    rows = [
        (id_, ", ".join(nodes), "yes" if id_ in held else "no", ", ".join(confirmed.get(id_, ())))
        for id_, nodes in by.items()
    ]
    if not rows and form is not Format.JSON:
        say("nothing was withdrawn")
        return
    columns = ("id", "withdrawn by", "in the pool", "gone at")
    parts: dict[str, Part] = {
        "withdrawals": Table(columns, rows, code=("id",)),
        "others": "Other pools, such as pool/ of an earlier run's folder, keep what they hold of "
        "these: fedit pool prune RUN --node NAME --id ID takes one out, with its bytes.",
    }
    write(parts, form)


@app.command()
def prune(
    source: Source,
    nodes: Nodes = None,
    slots: Slots = None,
    fingerprints: Fingerprints = None,
    ids: Ids = None,
    before_slot: BeforeSlot = 0,
    dry_run: DryRun = False,
) -> None:
    """Take MKVs that meet all criteria out and free the disk; no run may be using the pool."""
    from fedit_app.pool.prune import Criteria, Pruning, plan
    from fedit_app.pool.prune import prune as take_out

    pool, criteria = open_pool(source), _criteria(nodes, slots, fingerprints, ids, before_slot)
    nothing = Pruning(frozenset(), {}, {}, 0)
    pruning = nothing if criteria == Criteria() else plan(pool, criteria)
    count, before = len(pool), pool.disk_bytes()
    say(
        f"{len(pruning.removed):,} of {plural(count, 'MKV')} taken out, "
        f"{plural(pruning.facts_lost, 'fact')} lost with them\n"
        f"{plural(len(pruning.facts), 'fact')} another MKV stands for now\n"
        f"{plural(len(pruning.kept_for), 'MKV')} kept for other nodes that uploaded the same"
    )
    if dry_run:
        say("dry run: nothing was changed")
        return
    take_out(pool, pruning)
    after = pool.disk_bytes()
    if before is not None and after is not None:
        say(f"on disk: {byte_size(before)} before, {byte_size(after)} now")


def _criteria(
    nodes: list[str] | None,
    slots: list[int] | None,
    fingerprints: list[str] | None,
    ids: list[str] | None,
    before_slot: int,
) -> Criteria:
    from fedit_app.pool.prune import Criteria

    return Criteria(
        nodes=frozenset(nodes or ()),
        slots=frozenset(slots or ()),
        before_slot=before_slot,
        fingerprints=frozenset(fingerprints or ()),
        ids=frozenset(ids or ()),
    )
