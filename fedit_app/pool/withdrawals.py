"""Who withdrew which MKVs: a table beside the pool's, so that late nodes hear of it as well."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import pyarrow as pa

from fedit_app.pool.tables import open_table

if TYPE_CHECKING:  # takes seconds to import, and only the server holds a pool
    from lancedb.db import DBConnection

TABLE = "withdrawals"
_SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field("node", pa.string())])


class Withdrawals:
    """The withdrawals that a pool has been told of.

    Args:
        database: the pool's.
    """

    def __init__(self, database: DBConnection) -> None:
        self._database = database

    def add(self, node: str, ids: Collection[str]) -> None:
        """Note that a node has withdrawn MKVs; in one atomic step, and once each."""
        if not ids:
            return
        table = self._database.create_table(TABLE, schema=_SCHEMA, exist_ok=True)
        rows = pa.table({"id": sorted(ids), "node": [node] * len(ids)}, schema=_SCHEMA)
        table.merge_insert(["id", "node"]).when_not_matched_insert_all().execute(rows)

    def nodes(self) -> dict[str, list[str]]:
        """Id -> names of the nodes that have withdrawn it."""
        table = open_table(self._database, TABLE)
        if table is None:
            return {}
        found: dict[str, list[str]] = {}
        for row in table.search().limit(table.count_rows()).to_arrow().to_pylist():
            found.setdefault(row["id"], []).append(row["node"])
        return {id_: sorted(names) for id_, names in sorted(found.items())}
