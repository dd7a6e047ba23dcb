"""Which MKVs hold in the place of others: a node's later value of a key, or a composed one.

The records are a table beside the pool's. An MKV that is superseded stays in the pool, and is
served again once the one in its place is withdrawn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from fedit_app.pool.tables import open_table

if TYPE_CHECKING:  # which asks here what it may serve
    from fedit_app.pool.pool import MKVPool

TABLE = "supersessions"
_SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field("by", pa.string())])


def supersede(pool: MKVPool, older: Mapping[str, Iterable[str]]) -> None:
    """Record what holds in the place of what.

    It counts as long as the pool has the MKV that holds, so it may be recorded before that one is
    appended.

    Args:
        pool: the pool.
        older: id -> ids of the MKVs in whose place it holds.
    """
    pairs = sorted({(old, by) for by, ids in older.items() for old in ids if old != by})
    if not pairs:
        return
    table = pool.database.create_table(TABLE, schema=_SCHEMA, exist_ok=True)
    rows = pa.table({"id": [p[0] for p in pairs], "by": [p[1] for p in pairs]}, schema=_SCHEMA)
    table.merge_insert(["id", "by"]).when_not_matched_insert_all().execute(rows)


def superseded_by(pool: MKVPool, ids: Collection[str]) -> dict[str, list[str]]:
    """Id -> all MKVs in whose place it holds, also through others; without those that have none."""
    older: dict[str, set[str]] = {}
    for old, by in _pairs(pool):
        older.setdefault(by, set()).add(old)
    found = {}
    for id_ in ids:
        reached, waiting = set[str](), [id_]
        while waiting:
            new = older.get(waiting.pop(), set()) - reached
            reached |= new
            waiting += new
        if reached - {id_}:
            found[id_] = sorted(reached - {id_})
    return found


def superseded(pool: MKVPool) -> set[str]:
    """Ids of the MKVs in whose place the pool holds another one."""
    pairs = _pairs(pool)
    held = pool.facts({by for _, by in pairs})
    return {old for old, by in pairs if by in held}


def _pairs(pool: MKVPool) -> list[tuple[str, str]]:
    """(id, id of what holds in its place)."""
    table = open_table(pool.database, TABLE)
    if table is None:
        return []
    rows = table.search().limit(table.count_rows()).to_arrow().to_pylist()
    return [(row["id"], row["by"]) for row in rows]
