"""The pool: every MKV of a federation, in one LanceDB table on a disk or on object storage."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fedit_app.errors import FedEditError
from fedit_app.mkv.facts import SameFact, assign_facts, near_keys
from fedit_app.mkv.record import MKV, SIGNATURES, check_signature
from fedit_app.mkv.similarity import BestFirst, cosines, unit_rows
from fedit_app.mkv.wire import from_bytes, to_bytes

TABLE = "mkvs"
IDS_PER_QUERY = 1000
BLOCK_SIZE = 8192
# What a row has beside its signatures: `node` computed it, `nodes` uploaded it (the same content
# may come from several), `fact` is the id of the MKV that stands for the same fact.
COLUMNS = ("id", "node", "nodes", "slot", "fingerprint", "fact", *SIGNATURES, "payload")


@dataclass(frozen=True, eq=False)
class SignatureBlock:
    """Some canonical MKVs of the pool as ranking reads them, without their payload.

    Attributes:
        ids, nodes, slots: `b` entries each.
        vectors: `(b, d)` float32, one signature a row, of length 1 (rounded to fp16) or zero.
    """

    ids: list[str]
    nodes: list[str]
    slots: list[int]
    vectors: np.ndarray

    def allowed(
        self, node: str, exclude_ids: Collection[str], exclude_own: bool = True
    ) -> np.ndarray:
        """Which rows `(b,)` take part for a node: not these ids, nor its own if `exclude_own`."""
        rows = zip(self.ids, self.nodes, strict=True)
        return np.array(
            [id_ not in exclude_ids and not (exclude_own and of == node) for id_, of in rows],
            dtype=bool,
        )


@dataclass(frozen=True)
class Match:
    """An MKV of the pool and the cosine of its signature with a query."""

    id: str
    cosine: float


class MKVPool:
    """A store of MKVs in which each id occurs once, and each fact has one canonical MKV.

    One process at a time appends to it.

    Args:
        uri: a directory (made if missing) or object storage (`s3://bucket/path`).
        same_fact: when two MKVs stand for the same fact.

    Raises:
        FedEditError: the pool was not written by this version of FedEdit.
    """

    def __init__(self, uri: str, same_fact: SameFact = SameFact()) -> None:  # noqa: B008 (frozen)
        import lancedb  # takes seconds to import, and only the server holds a pool

        self._same_fact = same_fact
        self._database = lancedb.connect(uri)
        exists = TABLE in self._database.list_tables().tables
        self._table = self._database.open_table(TABLE) if exists else None
        if self._table is not None:
            _check_columns(self._table.schema, uri)

    def __len__(self) -> int:
        return 0 if self._table is None else self._table.count_rows()

    def append(self, mkvs: Sequence[MKV]) -> list[str]:
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
        schema = _schema(mkvs[0]) if self._table is None else self._table.schema
        for mkv in mkvs:
            _check_widths(mkv, schema)
        uploads: dict[str, list[MKV]] = {}
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
            self._table = self._database.create_table(TABLE, schema=schema, exist_ok=True)
        rows = pa.concat_tables(
            [_to_arrow(new, facts, nodes, schema), self._with_nodes(again, nodes, schema)]
        )
        # Matched are rows that get another author. The condition leaves alone what another process
        # may have added since `known` was read.
        merge = self._table.merge_insert("id")
        merge = merge.when_matched_update_all(
            where="source.node = target.node AND source.nodes > target.nodes"
        )
        merge.when_not_matched_insert_all().execute(rows)
        return [mkv.id for mkv in new]

    def check(self, mkvs: Sequence[MKV]) -> None:
        """Raises FedEditError if `append` would refuse one of these MKVs."""
        for mkv in mkvs if self._table is not None else ():
            _check_widths(mkv, self._table.schema)

    def facts(self, ids: Collection[str]) -> dict[str, str]:
        """id -> the id of the MKV that stands for its fact, of those that the pool holds."""
        return {row["id"]: row["fact"] for row in self._rows(ids, ["id", "fact"])}

    def authors(self, fact_ids: Collection[str]) -> dict[str, set[str]]:
        """fact id -> the nodes that uploaded an MKV of that fact, of those that the pool holds."""
        authors: dict[str, set[str]] = {}
        for row in self._rows(fact_ids, ["fact", "nodes"], by="fact"):
            authors.setdefault(row["fact"], set()).update(row["nodes"])
        return authors

    def fetch(self, ids: Sequence[str]) -> list[MKV]:
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

    def rows(self, columns: Sequence[str]) -> Iterator[dict]:
        """These columns of every MKV, folded ones too, in the order of appending."""
        if self._table is not None:
            query = self._table.search().select(list(columns)).limit(len(self))
            for batch in query.to_batches(BLOCK_SIZE):
                yield from batch.to_pylist()

    def blocks(
        self, kind: str, fingerprint: str, block_size: int = BLOCK_SIZE
    ) -> Iterator[SignatureBlock]:
        """The signatures of all canonical MKVs with this fingerprint, `block_size` rows at most.

        Only the column of `kind` and the short ones beside it are read, so memory grows with
        `block_size` and not with the pool. Rows come in the order of appending; rankings do not
        depend on it (see `similarity`).
        """
        check_signature(kind)
        if not len(self):
            return
        query = self._table.search().where(f"fingerprint = {_quoted(fingerprint)} AND fact = id")
        query = query.select(["id", "node", "slot", kind]).limit(len(self))
        for batch in query.to_batches(block_size):
            width = batch.schema.field(kind).type.list_size
            halves = batch[kind].flatten().to_numpy().reshape(-1, width)
            yield SignatureBlock(
                ids=batch["id"].to_pylist(),
                nodes=batch["node"].to_pylist(),
                slots=batch["slot"].to_pylist(),
                vectors=halves.astype(np.float32),
            )

    def nearest(
        self,
        queries: Mapping[str, np.ndarray],
        kind: str,
        fingerprint: str,
        threshold: float,
        limit: int,
        exclude_ids: Mapping[str, Collection[str]] | None = None,
        exclude_own: bool = True,
    ) -> dict[str, list[list[Match]]]:
        """For every node and query the most similar canonical MKVs, in one pass over the pool.

        Args:
            queries: node -> `(m, d)`, of any length other than zero.
            kind: the signature that the queries are compared with.
            fingerprint: only MKVs of this fingerprint take part.
            threshold: the least cosine, -1 to 1.
            limit: how many matches a query gets at most, >= 1.
            exclude_ids: node -> MKVs that take no part for it, such as those that it holds.
            exclude_own: whether a node's own MKVs take no part for it.

        Returns:
            node -> a list per query, the best first, ties by id.

        Raises:
            FedEditError: the queries are not as wide as the pool's signatures, or `limit` < 1.
        """
        if limit < 1:
            raise FedEditError(f"pool: limit {limit} found; it has to be at least 1")
        best = {node: [BestFirst(limit) for _ in rows] for node, rows in queries.items()}
        units = {node: unit_rows(rows) for node, rows in queries.items() if len(rows)}
        for block in self.blocks(kind, fingerprint) if units else ():
            for node, own in units.items():
                check_width(own, block)
                excluded = (exclude_ids or {}).get(node, ())
                allowed = block.allowed(node, excluded, exclude_own)
                for query_best, row in zip(best[node], cosines(own, block.vectors), strict=True):
                    query_best.offer(block.ids, row, allowed & (row >= threshold))
        return {
            node: [[Match(id_, cosine) for id_, cosine in one.ranking()] for one in ones]
            for node, ones in best.items()
        }

    def _facts_of(self, new: Sequence[MKV]) -> dict[str, str]:
        """id -> fact of MKVs that the pool does not hold."""
        facts: dict[str, str] = {}
        for fingerprint in dict.fromkeys(mkv.fingerprint for mkv in new):
            group = [mkv for mkv in new if mkv.fingerprint == fingerprint]
            blocks = ((block.ids, block.vectors) for block in self.blocks("key", fingerprint))
            near = near_keys(group, blocks, self._same_fact.same_key)
            canonical = self.fetch(list({id_ for row in near for _, id_ in row}))
            known = {mkv.id: mkv for mkv in canonical}
            facts |= assign_facts(group, near, known, self._same_fact)
        return facts

    def _with_nodes(
        self, ids: Sequence[str], nodes: Mapping[str, list[str]], schema: pa.Schema
    ) -> pa.Table:
        """Whole rows of the pool, with other `nodes`."""
        rows = list(self._rows(ids, schema.names))
        return pa.Table.from_pylist([row | {"nodes": nodes[row["id"]]} for row in rows], schema)

    def _rows(self, values: Collection[str], columns: list[str], by: str = "id") -> Iterator[dict]:
        """The rows whose column `by` has one of these values, in no particular order."""
        values = list(values) if self._table is not None else []
        for start in range(0, len(values), IDS_PER_QUERY):
            chunk = ", ".join(map(_quoted, values[start : start + IDS_PER_QUERY]))
            query = self._table.search().where(f"{by} IN ({chunk})").select(columns)
            yield from query.limit(len(self)).to_arrow().to_pylist()


def check_width(own: np.ndarray, block: SignatureBlock) -> None:
    """Raises FedEditError unless `own` `(m, d)` is as wide as the block's vectors."""
    if own.ndim != 2 or own.shape[1] != block.vectors.shape[1]:
        raise FedEditError(
            f"signatures of shape {own.shape} found; they have to be (m, {block.vectors.shape[1]}) "
            "to be compared with the pool's"
        )


def _schema(mkv: MKV) -> pa.Schema:
    """The columns of a pool whose MKVs have the widths of this one."""
    signatures = [
        pa.field(kind, pa.list_(pa.float16(), mkv.signature(kind).size)) for kind in SIGNATURES
    ]
    return pa.schema(
        [
            pa.field("id", pa.string()),
            pa.field("node", pa.string()),
            pa.field("nodes", pa.list_(pa.string())),
            pa.field("slot", pa.int32()),
            pa.field("fingerprint", pa.string()),
            pa.field("fact", pa.string()),
            *signatures,
            pa.field("payload", pa.binary()),
        ]
    )


def _check_columns(schema: pa.Schema, uri: str) -> None:
    missing = [name for name in COLUMNS if name not in schema.names]
    if missing:
        raise FedEditError(
            f"pool {uri}: its table has no column {', '.join(missing)}; it was made by another "
            "version of FedEdit, so name another pool-uri"
        )


def _check_widths(mkv: MKV, schema: pa.Schema) -> None:
    for kind in SIGNATURES:
        width, expected = mkv.signature(kind).size, schema.field(kind).type.list_size
        if width != expected:
            raise FedEditError(
                f"pool: MKV {mkv.id} from node {mkv.node!r} has a {kind} of width {width}, this "
                f"pool holds width {expected}; use one pool directory for each base model"
            )


def _to_arrow(
    mkvs: Sequence[MKV],
    facts: Mapping[str, str],
    nodes: Mapping[str, list[str]],
    schema: pa.Schema,
) -> pa.Table:
    if not mkvs:
        return schema.empty_table()
    columns = {
        "id": [mkv.id for mkv in mkvs],
        "node": [mkv.node for mkv in mkvs],
        "nodes": [nodes[mkv.id] for mkv in mkvs],
        "slot": [mkv.slot for mkv in mkvs],
        "fingerprint": [mkv.fingerprint for mkv in mkvs],
        "fact": [facts[mkv.id] for mkv in mkvs],
        "payload": [to_bytes(mkv) for mkv in mkvs],
    }
    for kind in SIGNATURES:
        units = unit_rows(np.stack([mkv.signature(kind) for mkv in mkvs]))
        flat = pa.array(units.reshape(-1))
        columns[kind] = pa.FixedSizeListArray.from_arrays(flat, units.shape[1])
    return pa.table(columns, schema=schema)


def _quoted(text: str) -> str:
    """A string literal of the table's filter language."""
    return "'" + text.replace("'", "''") + "'"
