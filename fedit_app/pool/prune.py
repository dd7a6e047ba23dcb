"""Removal of MKVs from a pool."""

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
    """A choice of MKVs: those that meet every given criterion; an empty one is met by all.

    Attributes:
        nodes: the MKV was uploaded by one of these nodes.
        slots: its slot is one of these.
        before_slot: its slot is before this one; 0: any.
        fingerprints: its fingerprint is one of these.
        ids: its id is one of these.
    """

    nodes: frozenset[str] = frozenset()
    slots: frozenset[int] = frozenset()
    before_slot: int = 0
    fingerprints: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()

    def meets(self, row: Row) -> bool:
        """Whether a row of the pool meets all criteria."""
        return (
            (not self.nodes or not self.nodes.isdisjoint(row["nodes"]))
            and (not self.slots or row["slot"] in self.slots)
            and (not self.before_slot or row["slot"] < self.before_slot)
            and (not self.fingerprints or row["fingerprint"] in self.fingerprints)
            and (not self.ids or row["id"] in self.ids)
        )


@dataclass(frozen=True)
class Pruning:
    """The changes of a pool.

    Attributes:
        removed: ids of the MKVs that are removed.
        kept_for: id of an MKV that stays, because other nodes have uploaded it too -> these nodes.
        facts: id of a removed canonical MKV -> the folded MKV that becomes canonical.
        facts_lost: number of facts whose last MKV is removed.
    """

    removed: frozenset[str]
    kept_for: Mapping[str, list[str]]
    facts: Mapping[str, str]
    facts_lost: int


def plan(pool: MKVPool, criteria: Criteria) -> Pruning:
    """The changes that the removal of the MKVs that meet the criteria makes; nothing is changed.

    If the canonical MKV of a fact is removed, the first of the others by (slot, id) becomes
    canonical. A sealed or signed MKV is bound to the name of one node and is removed with that
    node, even if others have uploaded it; they upload it again in the next run.

    Raises:
        FedEditError: the pool has no MKV of a given node, fingerprint or id.
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
                "shows the MKVs"
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
    """Apply a `plan` in one atomic step, and free the disk space; see `MKVPool.rewrite`."""
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
    """The rows with their remaining nodes; the first of these becomes the node of the MKV."""
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
