"""Withdrawals: an author withdraws its MKVs, and the pool deletes them and records that it did.

The records are a table beside the pool's, so that nodes that join later learn of them as well. A
second table has the receipts: which node has said of which MKV that its ledger has it no more.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from itertools import islice

import pyarrow as pa

from fedit_app.pool.pool import MKVPool
from fedit_app.pool.prune import Criteria, plan, prune
from fedit_app.pool.tables import open_table

logger = logging.getLogger(__name__)

TABLE, RECEIPTS = "withdrawals", "receipts"
# Of what a node is not known to have, but may have from an interrupted run.
_MOST_TOLD = 10_000
_SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field("node", pa.string())])


def withdraw(pool: MKVPool, node: str, ids: Collection[str]) -> None:
    """Withdraw MKVs from a pool for one of their authors, and record the withdrawal.

    An MKV that another node has uploaded too stays, as that node's. One without another author is
    deleted from the disk (see `prune`). One of other authors only is left unchanged, with a
    warning. One that the pool does not hold is recorded as well: nodes may have it from an
    earlier pool.

    Args:
        pool: the pool; no other process may be using it.
        node: the node that withdraws.
        ids: ids of MKVs.
    """
    authors = pool.uploaders(ids)
    own = {id_ for id_, nodes in authors.items() if node in nodes}
    alien = authors.keys() - own
    alien -= {id_ for id_, nodes in withdrawals(pool).items() if node in nodes}
    if alien:
        logger.warning(
            "node %r withdraws %d MKVs of other nodes, among them %s; they stay in the pool",
            node,
            len(alien),
            min(alien),
        )
    if own:
        prune(pool, plan(pool, Criteria(nodes=frozenset({node}), ids=frozenset(own))))
    _add(pool, TABLE, node, set(ids) - alien)


def confirm(pool: MKVPool, node: str, ids: Collection[str]) -> None:
    """Record that a node's ledger has MKVs no more that were withdrawn.

    Args:
        pool: the pool.
        node: the node that says so.
        ids: ids of withdrawn MKVs.
    """
    known = receipts(pool) if ids else {}
    _add(pool, RECEIPTS, node, {id_ for id_ in ids if node not in known.get(id_, ())})


def withdrawals(pool: MKVPool) -> dict[str, list[str]]:
    """Id -> names of the nodes that have withdrawn the MKV."""
    return _nodes_by_id(pool, TABLE)


def receipts(pool: MKVPool) -> dict[str, list[str]]:
    """Id of a withdrawn MKV -> names of the nodes that have said that they have it no more."""
    return _nodes_by_id(pool, RECEIPTS)


def _add(pool: MKVPool, name: str, node: str, ids: Collection[str]) -> None:
    """Add rows to a table that it does not have yet."""
    if ids:
        table = pool.database.create_table(name, schema=_SCHEMA, exist_ok=True)
        rows = pa.table({"id": sorted(ids), "node": [node] * len(ids)}, schema=_SCHEMA)
        table.merge_insert(["id", "node"]).when_not_matched_insert_all().execute(rows)


def _nodes_by_id(pool: MKVPool, name: str) -> dict[str, list[str]]:
    table = open_table(pool.database, name)
    if table is None:
        return {}
    found: dict[str, list[str]] = {}
    for row in table.search().limit(table.count_rows()).to_arrow().to_pylist():
        found.setdefault(row["id"], []).append(row["node"])
    return {id_: sorted(names) for id_, names in sorted(found.items())}


def withdrawn(pool: MKVPool) -> dict[str, list[str]]:
    """The `withdrawals` of MKVs that the pool no longer holds for any author."""
    nodes = withdrawals(pool)
    held = pool.facts(list(nodes))
    return {id_: names for id_, names in nodes.items() if id_ not in held}


def told_of(withdrawn: Mapping[str, list[str]], known: Collection[str]) -> dict[str, list[str]]:
    """The withdrawals that a node hears of: of what it has, and some of what it may have.

    Otherwise a node that withdraws what nobody has made would fill the messages to all.

    Args:
        withdrawn: id -> nodes.
        known: ids of the MKVs that the node is known to have.
    """
    found = {id_: nodes for id_, nodes in withdrawn.items() if id_ in known}
    others = (item for item in withdrawn.items() if item[0] not in found)
    return found | dict(islice(others, _MOST_TOLD))
