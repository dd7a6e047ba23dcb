"""Taking MKVs out of a pool."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from fedit_app.mkv.sealed import SealedMKV
from fedit_app.mkv.wire import from_bytes
from fedit_app.pool.pool import MKVPool
from fedit_app.pool.rows import Row, to_rows
from fedit_app.support.errors import FedEditError


@dataclass(frozen=True)
class Criteria:
    """Which MKVs are meant: those that meet everything that is given.

    Attributes:
        nodes: uploaded by one of these nodes.
        slots: of one of these slots.
        before_slot: of a slot before this one; 0: of any.
        fingerprints: with one of these fingerprints.
        ids: one of these.
    """

    nodes: frozenset[str] = frozenset()
    slots: frozenset[int] = frozenset()
    before_slot: int = 0
    fingerprints: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()

    def meets(self, row: Row) -> bool:
        """Whether a row of the pool is meant."""
        return (
            (not self.nodes or not self.nodes.isdisjoint(row["nodes"]))
            and (not self.slots or row["slot"] in self.slots)
            and (not self.before_slot or row["slot"] < self.before_slot)
            and (not self.fingerprints or row["fingerprint"] in self.fingerprints)
            and (not self.ids or row["id"] in self.ids)
        )


@dataclass(frozen=True)
class Pruning:
    """What is to become of a pool.

    Attributes:
        removed: ids of the MKVs that go.
        kept_for: id -> its other nodes, where not all that uploaded it are meant: it stays, as
            theirs.
        facts: id of a canonical MKV that goes -> the folded one that stands for the fact then.
        facts_lost: how many facts go with their last MKV.
    """

    removed: frozenset[str]
    kept_for: Mapping[str, list[str]]
    facts: Mapping[str, str]
    facts_lost: int


def plan(pool: MKVPool, criteria: Criteria) -> Pruning:
    """What taking out the MKVs that meet the criteria would do; nothing is changed.

    A fact whose canonical MKV goes is stood for by the first of the others by (slot, id). An MKV
    that is sealed or signed is bound to the name of the node that did it, so it goes with that
    node, whoever else uploaded it; in the next run these upload it again.

    Raises:
        FedEditError: a node, fingerprint or id is named that the pool does not have.
    """
    removed: set[str] = set()
    canonical: set[str] = set()
    kept_for: dict[str, list[str]] = {}
    seen: dict[str, set[str]] = {"nodes": set(), "fingerprints": set(), "ids": set()}
    columns = ["id", "nodes", "slot", "fingerprint", "fact"]
    for row in pool.rows(columns):
        seen["nodes"].update(criteria.nodes.intersection(row["nodes"]))
        seen["fingerprints"].update(criteria.fingerprints & {row["fingerprint"]})
        seen["ids"].update(criteria.ids & {row["id"]})
        if not criteria.meets(row):
            continue
        others = [node for node in row["nodes"] if node not in criteria.nodes]
        if criteria.nodes and others:
            kept_for[row["id"]] = others
        else:
            removed.add(row["id"])
        if row["fact"] == row["id"]:
            canonical.add(row["id"])
    for name, found in seen.items():
        missing = sorted(getattr(criteria, name) - found)
        if missing:
            raise FedEditError(
                f"pool: no MKV with {name[:-1]} {', '.join(map(repr, missing))}; `fedit pool list` "
                "shows what there is"
            )
    for record in pool.fetch(list(kept_for)):
        bound = isinstance(record, SealedMKV) or record.author is not None
        if bound and record.node not in kept_for[record.id]:
            removed.add(record.id)
            del kept_for[record.id]
    lost = canonical & removed
    heirs: dict[str, tuple[int, str]] = {}
    for row in pool.rows(columns) if lost else ():
        if row["fact"] in lost and row["id"] not in removed:
            heir = (row["slot"], row["id"])
            heirs[row["fact"]] = min(heir, heirs.get(row["fact"], heir))
    facts = {fact: id_ for fact, (_, id_) in heirs.items()}
    return Pruning(frozenset(removed), kept_for, facts, len(lost) - len(facts))


def prune(pool: MKVPool, pruning: Pruning) -> None:
    """Does what `plan` says, in one atomic step, and frees the disk; see `MKVPool.rewrite`."""
    pool.rewrite(lambda batch: _pruned(batch, pruning))


def _pruned(batch: pa.RecordBatch, pruning: Pruning) -> pa.RecordBatch:
    ids = batch["id"].to_pylist()
    rows = [number for number, id_ in enumerate(ids) if id_ not in pruning.removed]
    batch = batch.take(pa.array(rows, pa.int64()))
    batch = _with_column(
        batch, "fact", [pruning.facts.get(fact, fact) for fact in batch["fact"].to_pylist()]
    )
    return _handed_over(batch, pruning.kept_for)


def _handed_over(batch: pa.RecordBatch, kept_for: Mapping[str, list[str]]) -> pa.RecordBatch:
    """The rows with their remaining nodes; the first of them is named as the one that computed."""
    if not any(id_ in kept_for for id_ in batch["id"].to_pylist()):
        return batch
    rows = batch.to_pylist()
    nodes = [kept_for.get(row["id"], row["nodes"]) for row in rows]
    records = (from_bytes(row["payload"]) for row in rows)
    mkvs = [
        mkv if mkv.node in names else dataclasses.replace(mkv, node=names[0])
        for mkv, names in zip(records, nodes, strict=True)
    ]
    facts = {row["id"]: row["fact"] for row in rows}
    named = dict(zip(facts, nodes, strict=True))
    return to_rows(mkvs, facts, named, batch.schema).combine_chunks().to_batches()[0]


def _with_column(batch: pa.RecordBatch, name: str, values: list[str]) -> pa.RecordBatch:
    place = batch.schema.get_field_index(name)
    return batch.set_column(place, batch.schema.field(place), pa.array(values, pa.string()))
