"""The pool: every MKV of a federation, in one LanceDB table on a disk or on object storage."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fedit_app.errors import FedEditError
from fedit_app.mkv.facts import SameFact, same_fact
from fedit_app.mkv.record import MKV, SIGNATURES, check_signature
from fedit_app.mkv.similarity import BestFirst, cosines, unit_rows
from fedit_app.mkv.wire import from_bytes, to_bytes

TABLE = "mkvs"
IDS_PER_QUERY = 1000
BLOCK_SIZE = 8192


@dataclass(frozen=True, eq=False)
class SignatureBlock:
    """Some rows of the pool as ranking reads them, without their payload.

    Attributes:
        ids, nodes, slots: `b` entries each.
        vectors: `(b, d)` float32, one signature a row, of length 1 (rounded to fp16) or zero.
    """

    ids: list[str]
    nodes: list[str]
    slots: list[int]
    vectors: np.ndarray


@dataclass(frozen=True)
class Match:
    """An MKV of the pool and the cosine of its signature with a query."""

    id: str
    cosine: float


class MKVPool:
    """An append-only store of MKVs in which each id occurs once.

    Args:
        uri: a directory (made if missing) or object storage (`s3://bucket/path`).
    """

    def __init__(self, uri: str, same: SameFact | None = None) -> None:
        self._same = same or SameFact()
        import lancedb  # takes seconds to import, and only the server holds a pool

        self._database = lancedb.connect(uri)
        exists = TABLE in self._database.list_tables().tables
        self._table = self._database.open_table(TABLE) if exists else None

    def __len__(self) -> int:
        return 0 if self._table is None else self._table.count_rows()

    def append(self, mkvs: Sequence[MKV]) -> list[str]:
        """Adds the MKVs whose id the pool does not hold yet, in one atomic step.

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
        unique = {mkv.id: mkv for mkv in reversed(mkvs)}
        known = {row["id"] for row in self._rows(list(unique), ["id"])}
        new = [id_ for id_ in dict.fromkeys(mkv.id for mkv in mkvs) if id_ not in known]
        if not new:
            return []
        facts = self._facts_of([unique[id_] for id_ in new])
        if self._table is None:
            self._table = self._database.create_table(TABLE, schema=schema, exist_ok=True)
        rows = _to_arrow([unique[id_] for id_ in new], facts, schema)
        # The merge leaves out what another process may have added since `known` was read.
        self._table.merge_insert("id").when_not_matched_insert_all().execute(rows)
        return new

    def check(self, mkvs: Sequence[MKV]) -> None:
        """Raises FedEditError if `append` would refuse one of the MKVs for its widths."""
        for mkv in mkvs if self._table is not None else ():
            _check_widths(mkv, self._table.schema)

    def facts(self, ids: Collection[str]) -> dict[str, str]:
        """Id -> id of the MKV that stands for its fact, of those ids that the pool holds."""
        return {row["id"]: row["fact"] for row in self._rows(list(ids), ["id", "fact"])}

    def authors(self, facts: Collection[str]) -> dict[str, set[str]]:
        """Fact -> the nodes that uploaded an MKV of it."""
        found: dict[str, set[str]] = {fact: set() for fact in facts}
        wanted = list(found)
        for start in range(0, len(wanted) if self._table is not None else 0, IDS_PER_QUERY):
            chunk = wanted[start : start + IDS_PER_QUERY]
            query = self._table.search().where(f"fact IN ({', '.join(map(_quoted, chunk))})")
            for row in query.select(["node", "fact"]).limit(len(self)).to_arrow().to_pylist():
                found[row["fact"]].add(row["node"])
        return found

    def _facts_of(self, mkvs: Sequence[MKV]) -> dict[str, str]:
        facts: dict[str, str] = {}
        first: list[MKV] = []
        ordered = sorted(mkvs, key=lambda mkv: (mkv.slot, mkv.id))
        for mkv in ordered:
            matches = self.nearest(
                mkv.lookup_key[None], "key", mkv.fingerprint, self._same.same_key - 1e-3, 16
            )[0]
            pooled = self.fetch([match.id for match in matches])
            twins = [other for other in [*pooled, *first] if same_fact(mkv, other, self._same)]
            facts[mkv.id] = twins[0].id if twins else mkv.id
            if not twins:
                first.append(mkv)
        return facts

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

    def blocks(
        self, kind: str, fingerprint: str, block_size: int = BLOCK_SIZE
    ) -> Iterator[SignatureBlock]:
        """The signatures of all MKVs with this fingerprint, at most `block_size` rows at a time.

        Only the column of `kind` and the short ones beside it are read, so memory grows with
        `block_size` and not with the pool. Rows come in the order of appending; rankings do not
        depend on it (see `similarity`).
        """
        check_signature(kind)
        if not len(self):
            return
        query = self._table.search().where(f"fingerprint = {_quoted(fingerprint)} AND id = fact")
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
        queries: np.ndarray,
        kind: str,
        fingerprint: str,
        threshold: float,
        limit: int,
        exclude_nodes: Collection[str] = (),
    ) -> list[list[Match]]:
        """For every query the most similar MKVs with cosine >= `threshold`, ties ordered by id.

        Args:
            queries: `(m, d)`, of any length other than zero.
            kind: the signature that the queries are compared with.
            fingerprint: only MKVs of this fingerprint take part.
            threshold: the least cosine, -1 to 1.
            limit: how many matches a query gets at most, >= 1.
            exclude_nodes: MKVs of these nodes take no part.

        Raises:
            FedEditError: the queries are not as wide as the pool's signatures, or `limit` < 1.
        """
        if limit < 1:
            raise FedEditError(f"pool: limit {limit} found; it has to be at least 1")
        best = [BestFirst(limit) for _ in queries]
        if not best:
            return []
        own = unit_rows(queries)
        for block in self.blocks(kind, fingerprint):
            check_width(own, block)
            allowed = np.array([node not in exclude_nodes for node in block.nodes], dtype=bool)
            for query_best, row in zip(best, cosines(own, block.vectors), strict=True):
                query_best.offer(block.ids, row, allowed & (row >= threshold))
        return [[Match(id_, cosine) for id_, cosine in one.ranking()] for one in best]

    def _rows(self, ids: Sequence[str], columns: list[str]) -> Iterator[dict]:
        """The rows with these ids, in no particular order."""
        for start in range(0, len(ids) if self._table is not None else 0, IDS_PER_QUERY):
            chunk = ids[start : start + IDS_PER_QUERY]
            query = self._table.search().where(f"id IN ({', '.join(map(_quoted, chunk))})")
            yield from query.select(columns).limit(len(chunk)).to_arrow().to_pylist()


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
            pa.field("slot", pa.int32()),
            pa.field("fingerprint", pa.string()),
            pa.field("fact", pa.string()),
            *signatures,
            pa.field("payload", pa.binary()),
        ]
    )


def _check_widths(mkv: MKV, schema: pa.Schema) -> None:
    for kind in SIGNATURES:
        width, expected = mkv.signature(kind).size, schema.field(kind).type.list_size
        if width != expected:
            raise FedEditError(
                f"pool: MKV {mkv.id} from node {mkv.node!r} has a {kind} of width {width}, this "
                f"pool holds width {expected}; use one pool directory for each base model"
            )


def _to_arrow(mkvs: Sequence[MKV], facts: dict[str, str], schema: pa.Schema) -> pa.Table:
    columns = {
        "id": [mkv.id for mkv in mkvs],
        "node": [mkv.node for mkv in mkvs],
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
