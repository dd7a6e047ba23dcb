"""The pool: every MKV of a federation, in one LanceDB table on a disk or on object storage."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta

import numpy as np
import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem

from fedit_app.mkv.record import check_signature
from fedit_app.mkv.same_key import SameFact
from fedit_app.mkv.wire import Record, from_bytes
from fedit_app.pool.blocks import MOST_ROWS, SignatureBlock, rows_per_block
from fedit_app.pool.facts import assign_facts, near_keys
from fedit_app.pool.nearest import Match, nearest
from fedit_app.pool.rows import (
    COLUMNS,
    Row,
    check_schema,
    check_widths,
    one_of,
    quoted,
    schema_for,
    to_rows,
    vectors_of,
)
from fedit_app.pool.selection import Ranked, SelectionConfig, select
from fedit_app.pool.tables import open_table
from fedit_app.support.errors import FedEditError

TABLE = "mkvs"
IDS_PER_QUERY = 1000
ROWS_WITH_PAYLOAD = 64
# LanceDB would keep gigabytes of what it has read.
_CACHE_BYTES = 128 * 2**20
_REASON_WIDTH = 400


class MKVPool:
    """A store of MKVs in which each id occurs once, and each fact has one canonical MKV.

    MKVs may be sealed: then it ranks and folds them by their sketches.

    One process at a time appends to it.

    Args:
        uri: a directory (made if missing) or object storage (`s3://bucket/path`).
        same_fact: when two MKVs stand for the same fact.

    Raises:
        FedEditError: the pool cannot be reached, or was not written by this version of FedEdit.
    """

    def __init__(
        self,
        uri: str,
        same_fact: SameFact = SameFact(),  # noqa: B008 (frozen)
    ) -> None:
        import lancedb  # takes seconds to import, and only the server holds a pool

        self._same_fact = same_fact
        session = lancedb.Session(
            index_cache_size_bytes=_CACHE_BYTES, metadata_cache_size_bytes=_CACHE_BYTES
        )
        try:
            self.database = lancedb.connect(uri, session=session)
            self._table = open_table(self.database, TABLE)
        except (OSError, RuntimeError, ValueError) as error:
            raise FedEditError(f"pool {uri}: cannot be opened ({_reason(error)})") from error
        if self._table is not None:
            check_schema(self._table.schema, uri)

    def __len__(self) -> int:
        return 0 if self._table is None else self._table.count_rows()

    @property
    def exists(self) -> bool:
        """Whether anything was ever appended."""
        return self._table is not None

    def append(self, mkvs: Sequence[Record]) -> list[str]:
        """Adds the MKVs whose id the pool does not hold yet, in one atomic step.

        Each gets the id of the MKV that stands for its fact: a canonical one of the pool that is
        the same fact, or its own. Those of one call take their turn by (slot, id), so that the
        order of `mkvs` does not matter. A node that uploads what the pool holds already is noted
        among the authors of its fact.

        Returns:
            The ids that were new, in the order of `mkvs`.

        Raises:
            FedEditError: a vector has another width than the pool's (the first MKV ever appended
                decides); nothing is added then.
        """
        if not mkvs:
            return []
        schema = schema_for(mkvs[0]) if self._table is None else self._table.schema
        for mkv in mkvs:
            check_widths(mkv, schema)
        uploads: dict[str, list[Record]] = {}
        for mkv in mkvs:
            uploads.setdefault(mkv.id, []).append(mkv)
        known = {row["id"]: row["nodes"] for row in self._rows(list(uploads), ["id", "nodes"])}
        new = [same[0] for id_, same in uploads.items() if id_ not in known]
        nodes = {
            id_: list(dict.fromkeys([*known.get(id_, ()), *(mkv.node for mkv in same)]))
            for id_, same in uploads.items()
        }
        again = [id_ for id_, before in known.items() if len(nodes[id_]) > len(before)]
        if not new and not again:
            return []
        facts = self._facts_of(new)
        if self._table is None:
            self._table = self.database.create_table(TABLE, schema=schema, exist_ok=True)
        rows = pa.concat_tables(
            [to_rows(new, facts, nodes, schema), self._with_nodes(again, nodes, schema)]
        )
        # Matched are rows that get another author. The condition leaves alone what another process
        # may have added since `known` was read.
        merge = self._table.merge_insert("id")
        merge = merge.when_matched_update_all(
            where="source.node = target.node AND source.nodes > target.nodes"
        )
        merge.when_not_matched_insert_all().execute(rows)
        return [mkv.id for mkv in new]

    def check(self, mkvs: Sequence[Record]) -> None:
        """Raises FedEditError if `append` would refuse one of these MKVs."""
        if self._table is not None:
            schema = self._table.schema
            for mkv in mkvs:
                check_widths(mkv, schema)

    def facts(self, ids: Collection[str]) -> dict[str, str]:
        """id -> the id of the MKV that stands for its fact, of those that the pool holds."""
        return {row["id"]: row["fact"] for row in self._rows(ids, ["id", "fact"])}

    def authors(self, fact_ids: Collection[str]) -> dict[str, set[str]]:
        """fact id -> the nodes that uploaded an MKV of that fact, of those that the pool holds."""
        authors: dict[str, set[str]] = {}
        for row in self._rows(fact_ids, ["fact", "nodes"], by="fact"):
            authors.setdefault(row["fact"], set()).update(row["nodes"])
        return authors

    def uploaders(self, ids: Collection[str]) -> dict[str, list[str]]:
        """id -> the nodes that uploaded it, of those that the pool holds."""
        return {row["id"]: row["nodes"] for row in self._rows(ids, ["id", "nodes"])}

    def fetch(self, ids: Sequence[str]) -> list[Record]:
        """The MKVs with these ids, in this order.

        Raises:
            FedEditError: the pool does not hold some of them, or a stored payload is damaged.
        """
        found = {row["id"]: row["payload"] for row in self._rows(ids, ["id", "payload"])}
        missing = [id_ for id_ in ids if id_ not in found]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise FedEditError(f"pool: no MKV with id {', '.join(missing[:5])}{more}")
        return [from_bytes(found[id_]) for id_ in ids]

    def batches(self, columns: Sequence[str], rows: int = MOST_ROWS) -> Iterator[pa.RecordBatch]:
        """These columns of every MKV, folded ones too, in the order of appending.

        Args:
            columns: some of `COLUMNS`.
            rows: how many rows a batch has at most; with `payload`, ask for few.
        """
        if self._table is not None:
            query = self._table.search().select(list(columns)).limit(len(self))
            yield from query.to_batches(rows)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The same row by row."""
        for batch in self.batches(columns):
            yield from batch.to_pylist()

    def rewrite(self, change: Callable[[pa.RecordBatch], pa.RecordBatch]) -> None:
        """Replaces the table in one atomic step and deletes its earlier versions.

        No other process may use the pool at the same time.

        Args:
            change: some rows with all columns -> the rows that replace them.

        Raises:
            FedEditError: something was appended at the same time; the pool is unchanged.
        """
        table = self._table
        if table is None:
            return
        schema, version = table.schema, table.version

        def changed() -> Iterator[pa.RecordBatch]:
            yield from map(change, self.batches(COLUMNS, ROWS_WITH_PAYLOAD))
            table.checkout_latest()
            if table.version != version:
                raise RuntimeError  # the only way to make LanceDB discard the new version

        reader = pa.RecordBatchReader.from_batches(schema, changed())
        try:
            self._table = self.database.create_table(TABLE, data=reader, mode="overwrite")
        except RuntimeError:
            if table.version == version:
                raise
            problem = (
                "pool: another process wrote to it at the same time; stop the run that uses it"
            )
            raise FedEditError(problem) from None
        with warnings.catch_warnings():  # that readers of older versions would fail
            warnings.simplefilter("ignore", UserWarning)
            self._table.optimize(cleanup_older_than=timedelta(0))

    def disk_bytes(self) -> int | None:
        """What the pool takes up, with older versions; None where that is not told."""
        try:
            files, path = FileSystem.from_uri(self.database.uri)
            found = files.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
        except (OSError, ValueError):
            return None
        return sum(info.size or 0 for info in found)

    def blocks(
        self, kind: str, fingerprint: str, block_size: int | None = None
    ) -> Iterator[SignatureBlock]:
        """The signatures of all canonical MKVs with this fingerprint, a block of rows at a time.

        Only the column of `kind` and the short ones beside it are read, so memory grows with the
        block and not with the pool. Rows come in the order of appending; rankings do not depend on
        it (see `similarity`).

        Args:
            kind: the signature.
            fingerprint: only MKVs of this fingerprint.
            block_size: rows; None for what `rows_per_block` says.
        """
        check_signature(kind)
        table = self._table
        if table is None or not len(self):
            return
        query = table.search().where(f"fingerprint = {quoted(fingerprint)} AND fact = id")
        query = query.select(["id", "node", "slot", kind]).limit(len(self))
        width = table.schema.field(kind).type.list_size
        for batch in query.to_batches(block_size or rows_per_block(width)):
            yield SignatureBlock(
                ids=batch["id"].to_pylist(),
                nodes=batch["node"].to_pylist(),
                slots=batch["slot"].to_pylist(),
                vectors=vectors_of(batch, kind),
            )

    def nearest(
        self,
        queries: Mapping[str, np.ndarray],
        kind: str,
        fingerprint: str,
        threshold: float,
        limit: int,
        exclude_ids: Mapping[str, Collection[str]] | None = None,
    ) -> dict[str, list[list[Match]]]:
        """For every node and query the most similar canonical MKVs, in one pass over the pool.

        Args:
            queries: node -> `(m, d)`, of any length other than zero.
            kind: the signature that the queries are compared with.
            fingerprint: only MKVs of this fingerprint take part.
            threshold: the least cosine, -1 to 1.
            limit: how many matches a query gets at most, >= 1.
            exclude_ids: node -> MKVs that take no part for it, such as those that it holds.

        Returns:
            node -> a list per query, the best first, ties by id.

        Raises:
            FedEditError: the queries are not as wide as the pool's signatures, or `limit` < 1.
        """
        if limit < 1:
            raise FedEditError(f"pool: limit {limit} found; it has to be at least 1")
        return nearest(queries, self.blocks(kind, fingerprint), threshold, limit, exclude_ids)

    def select(
        self,
        own: Mapping[str, np.ndarray],
        fingerprint: str,
        config: SelectionConfig,
        exclude_ids: Mapping[str, Collection[str]] | None = None,
    ) -> dict[str, list[Ranked]]:
        """Ranks the pool's canonical MKVs for every node, as `selection.select` does."""
        return select(own, lambda: self.blocks(config.signature, fingerprint), config, exclude_ids)

    def _facts_of(self, new: Sequence[Record]) -> dict[str, str]:
        """id -> fact of MKVs that the pool does not hold."""
        facts: dict[str, str] = {}
        for fingerprint in dict.fromkeys(mkv.fingerprint for mkv in new):
            group = [mkv for mkv in new if mkv.fingerprint == fingerprint]
            near = near_keys(group, self.blocks("key", fingerprint), self._same_fact.same_key)
            canonical = self.fetch(list({match.id for row in near for match in row}))
            known = {mkv.id: mkv for mkv in canonical}
            facts |= assign_facts(group, near, known, self._same_fact)
        return facts

    def _with_nodes(
        self, ids: Sequence[str], nodes: Mapping[str, list[str]], schema: pa.Schema
    ) -> pa.Table:
        """Whole rows of the pool, with other `nodes`."""
        rows = list(self._rows(ids, schema.names))
        return pa.Table.from_pylist([row | {"nodes": nodes[row["id"]]} for row in rows], schema)

    def _rows(self, values: Collection[str], columns: list[str], by: str = "id") -> Iterator[Row]:
        """The rows whose column `by` has one of these values, in no particular order."""
        if self._table is None:
            return
        wanted = list(values)
        for start in range(0, len(wanted), IDS_PER_QUERY):
            chunk = wanted[start : start + IDS_PER_QUERY]
            query = self._table.search().where(one_of(by, chunk)).select(columns)
            yield from query.limit(len(self)).to_arrow().to_pylist()


def _reason(error: Exception) -> str:
    """What LanceDB says, without where in its source."""
    return textwrap.shorten(str(error).partition(", location: ")[0], _REASON_WIDTH)
