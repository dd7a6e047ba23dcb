"""The pool: all MKVs of a federation in one LanceDB table, on a disk or on object storage."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
from fedit_app.pool.superseded import superseded, superseded_by
from fedit_app.pool.tables import open_table
from fedit_app.support.errors import FedEditError

TABLE = "mkvs"
IDS_PER_QUERY = 1000
ROWS_WITH_PAYLOAD = 64
# LanceDB would keep gigabytes of what it has read.
_CACHE_BYTES = 128 * 2**20
_REASON_WIDTH = 400


class MKVPool:
    """A store of MKVs. Each id occurs once, and each fact has one canonical MKV.

    Sealed MKVs are ranked and folded by their sketches. Only one process at a time may append.

    Args:
        uri: a directory, made if it does not exist, or object storage (`s3://bucket/path`).
        same_fact: when two MKVs are the same fact.

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
        """Whether the pool has a table, which the first `append` creates."""
        return self._table is not None

    def append(self, mkvs: Sequence[Record]) -> list[str]:
        """Add the MKVs whose id the pool does not hold, in one atomic step.

        A new MKV is folded under the canonical MKV of its fact, or is canonical itself. New MKVs
        are processed by (slot, id); their order in `mkvs` does not matter. If the pool holds an MKV
        already, only the node that uploads it is added to its `nodes`.

        Returns:
            The new ids, in the order of `mkvs`.

        Raises:
            FedEditError: a vector differs in width from those of the pool, which the first MKV
                sets; nothing is added.
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
        # A row that exists gets another uploader. The condition spares rows that another process
        # has changed since `known` was read.
        merge = self._table.merge_insert("id")
        merge = merge.when_matched_update_all(
            where="source.node = target.node AND source.nodes > target.nodes"
        )
        merge.when_not_matched_insert_all().execute(rows)
        return [mkv.id for mkv in new]

    def check(self, mkvs: Sequence[Record]) -> None:
        """Raise FedEditError if `append` would refuse one of these MKVs."""
        if self._table is not None:
            schema = self._table.schema
            for mkv in mkvs:
                check_widths(mkv, schema)

    def facts(self, ids: Collection[str]) -> dict[str, str]:
        """Id -> id of the canonical MKV of its fact, for the ids that the pool holds."""
        return {row["id"]: row["fact"] for row in self._rows(ids, ["id", "fact"])}

    def authors(self, fact_ids: Collection[str]) -> dict[str, set[str]]:
        """Id of a canonical MKV -> the nodes that have uploaded an MKV of its fact."""
        authors: dict[str, set[str]] = {}
        for row in self._rows(fact_ids, ["fact", "nodes"], by="fact"):
            authors.setdefault(row["fact"], set()).update(row["nodes"])
        return authors

    def of_facts(self, fact_ids: Collection[str]) -> dict[str, list[str]]:
        """Id of a canonical MKV -> ids of all MKVs of its fact, rising."""
        found: dict[str, list[str]] = {}
        for row in self._rows(fact_ids, ["id", "fact"], by="fact"):
            found.setdefault(row["fact"], []).append(row["id"])
        return {fact: sorted(ids) for fact, ids in found.items()}

    def uploaders(self, ids: Collection[str]) -> dict[str, list[str]]:
        """Id -> the nodes that have uploaded the MKV, for the ids that the pool holds."""
        return {row["id"]: row["nodes"] for row in self._rows(ids, ["id", "nodes"])}

    def keys(self, ids: Collection[str]) -> dict[str, np.ndarray]:
        """Id -> the lookup key, or its sketch, `(d,)` float64 of length 1, for those it holds."""
        rows = self._rows(ids, ["id", "key"])
        return {row["id"]: np.array(row["key"], np.float64) for row in rows}

    def fetch(self, ids: Sequence[str]) -> list[Record]:
        """The MKVs with these ids, in this order.

        Raises:
            FedEditError: the pool does not hold all of them, or a payload is damaged.
        """
        found = {row["id"]: row["payload"] for row in self._rows(ids, ["id", "payload"])}
        missing = [id_ for id_ in ids if id_ not in found]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise FedEditError(f"pool: no MKV with id {', '.join(missing[:5])}{more}")
        return [from_bytes(found[id_]) for id_ in ids]

    def batches(self, columns: Sequence[str], rows: int = MOST_ROWS) -> Iterator[pa.RecordBatch]:
        """Columns of all MKVs, canonical and folded, in the order in which they were appended.

        Args:
            columns: some of `COLUMNS`.
            rows: the largest number of rows in a batch; keep it small if `payload` is read.
        """
        if self._table is not None:
            query = self._table.search().select(list(columns)).limit(len(self))
            yield from query.to_batches(rows)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The same as `batches`, row by row."""
        for batch in self.batches(columns):
            yield from batch.to_pylist()

    def rewrite(self, change: Callable[[pa.RecordBatch], pa.RecordBatch]) -> None:
        """Replace the table in one atomic step, and delete its earlier versions from the disk.

        No other process may use the pool.

        Args:
            change: a batch of rows with all columns -> the rows that replace them.

        Raises:
            FedEditError: another process has written to the pool; the pool is unchanged.
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
        """Size of the pool's files, those of older versions included; None if it is unknown."""
        try:
            files, path = FileSystem.from_uri(self.database.uri)
            found = files.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
        except (OSError, ValueError):
            return None
        return sum(info.size or 0 for info in found)

    def blocks(
        self, kind: str, fingerprint: str, block_size: int | None = None
    ) -> Iterator[SignatureBlock]:
        """The signatures of the canonical MKVs with a fingerprint, in blocks of rows.

        MKVs in whose place another one holds are left out.

        Reads one signature and the short columns only: memory grows with the block, not with the
        pool. The rows are in the order in which they were appended.

        Args:
            kind: the signature.
            fingerprint: the fingerprint.
            block_size: rows in a block; None: see `rows_per_block`.
        """
        check_signature(kind)
        table = self._table
        if table is None or not len(self):
            return
        query = table.search().where(f"fingerprint = {quoted(fingerprint)} AND fact = id")
        query = query.select(["id", "node", "slot", kind]).limit(len(self))
        width = table.schema.field(kind).type.list_size
        replaced = pa.array(sorted(superseded(self)), pa.string())
        for batch in query.to_batches(block_size or rows_per_block(width)):
            if len(replaced):
                batch = batch.filter(pc.invert(pc.is_in(batch["id"], value_set=replaced)))
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
        """The canonical MKVs that are most similar to queries, in one pass over the pool.

        Args:
            queries: node -> (m, d), rows of any norm above 0.
            kind: the signature that is compared.
            fingerprint: only MKVs with this fingerprint are compared.
            threshold: smallest cosine of a match, -1 to 1.
            limit: largest number of matches of a query, at least 1.
            exclude_ids: node -> ids that are no matches for it, such as those in its ledger.

        Returns:
            Node -> the matches of each query, by falling cosine, then by id.

        Raises:
            FedEditError: the queries differ in width from the signatures, or `limit` < 1.
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
        """Rank the canonical MKVs of a fingerprint for every node; see `selection.select`."""
        return select(own, lambda: self.blocks(config.signature, fingerprint), config, exclude_ids)

    def _facts_of(self, new: Sequence[Record]) -> dict[str, str]:
        """Id -> id of the canonical MKV, for MKVs that the pool does not hold.

        An MKV that a new one supersedes stands for none: it is served no more, and what is folded
        under it would not be either.
        """
        facts: dict[str, str] = {}
        older = superseded_by(self, [mkv.id for mkv in new])
        replaced = {id_ for ids in older.values() for id_ in ids}
        for fingerprint in dict.fromkeys(mkv.fingerprint for mkv in new):
            group = [mkv for mkv in new if mkv.fingerprint == fingerprint]
            found = near_keys(group, self.blocks("key", fingerprint), self._same_fact.same_key)
            near = [[match for match in row if match.id not in replaced] for row in found]
            canonical = self.fetch(list({match.id for row in near for match in row}))
            known = {mkv.id: mkv for mkv in canonical}
            facts |= assign_facts(group, near, known, self._same_fact)
        return facts

    def _with_nodes(
        self, ids: Sequence[str], nodes: Mapping[str, list[str]], schema: pa.Schema
    ) -> pa.Table:
        """Rows of the pool with another value of `nodes`."""
        rows = list(self._rows(ids, schema.names))
        return pa.Table.from_pylist([row | {"nodes": nodes[row["id"]]} for row in rows], schema)

    def _rows(self, values: Collection[str], columns: list[str], by: str = "id") -> Iterator[Row]:
        """The rows whose column `by` has one of these values, in any order."""
        if self._table is None:
            return
        wanted = list(values)
        for start in range(0, len(wanted), IDS_PER_QUERY):
            chunk = wanted[start : start + IDS_PER_QUERY]
            query = self._table.search().where(one_of(by, chunk)).select(columns)
            yield from query.limit(len(self)).to_arrow().to_pylist()


def _reason(error: Exception) -> str:
    """LanceDB's message without the place in its source."""
    return textwrap.shorten(str(error).partition(", location: ")[0], _REASON_WIDTH)
