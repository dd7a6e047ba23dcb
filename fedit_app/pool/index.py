"""An approximate index over a signature, for pools too large to be read for every question.

LanceDB's IVF_RQ: the vectors are grouped around centroids, and each is kept as one bit a number. A
search looks into the groups nearest to the query and gives more candidates than are wanted; they
are then compared exactly, so that scores are those of an exact ranking, and only the choice of
candidates is approximate. What was appended after the index was built is always looked at.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from fedit_app.mkv.similarity import unit_rows
from fedit_app.pool.blocks import SignatureBlock, rows_per_block
from fedit_app.pool.rows import quoted, vectors_of

logger = logging.getLogger(__name__)

INDEXES = ("none", "ivf")
# With fewer MKVs an exact pass takes seconds; with more than a tenth of them outside the index it
# is built anew.
FEWEST_ROWS = 100_000
_MOST_OUTSIDE = 0.1
# Groups hold 2 sqrt(n) of n vectors; a search looks into an eighth of them, at least 8.
_PROBED_PART = 8
_FEWEST_PROBES = 8
# Candidates for each match that is wanted: one bit a number is coarse.
_OVERSAMPLING = 8
_TRAINING_BYTES = 256 * 2**20
_FOUND_AT_ONCE = 100_000
_WIDTH_STEP = 8  # of what IVF_RQ can hold


class SignatureIndex:
    """The index over one signature column of a pool's table.

    Args:
        table: LanceDB's table.
        kind: the signature.
    """

    def __init__(self, table: Any, kind: str) -> None:
        self._table, self._kind = table, kind
        self._name = f"{kind}_ivf"
        self._width = table.schema.field(kind).type.list_size

    def ready(self) -> bool:
        """Whether the index can be asked; builds it if it is missing or outgrown.

        False in a small pool, and for a signature whose width is no multiple of 8.
        """
        rows = self._table.count_rows()
        if rows < FEWEST_ROWS or self._width % _WIDTH_STEP:
            return False
        outside = self._outside()
        if outside is None or outside > _MOST_OUTSIDE * rows:
            self._build(rows)
        return True

    def candidates(
        self,
        queries: Mapping[str, np.ndarray],
        fingerprint: str,
        limit: int,
        exclude_ids: Mapping[str, Collection[str]] | None = None,
    ) -> Iterator[SignatureBlock]:
        """Canonical MKVs among which are most of the nearest of every query, each once.

        Args:
            queries: node -> `(m, d)`.
            fingerprint: only MKVs of this fingerprint.
            limit: how many matches a query gets at most.
            exclude_ids: node -> MKVs that take no part for it.
        """
        rows: set[int] = set()
        for node, own in queries.items():
            held = (exclude_ids or {}).get(node, ())
            rows.update(self._search(own, fingerprint, limit * _OVERSAMPLING, held))
        columns = ["id", "node", "slot", self._kind]
        size = rows_per_block(self._width)
        ordered = sorted(rows)
        for start in range(0, len(ordered), size):
            taken = self._table.take_row_ids(ordered[start : start + size]).select(columns)
            yield from (block_of(batch, self._kind) for batch in taken.to_arrow().to_batches())
        yield from self._appended_since(columns, fingerprint, size)

    def _search(
        self, own: np.ndarray, fingerprint: str, wanted: int, held: Collection[str]
    ) -> Iterator[int]:
        """Row numbers of about `wanted` candidates for each query, none of them `held`."""
        where = f"fingerprint = {quoted(fingerprint)} AND fact = id"
        limit = wanted + len(held)
        probes = max(_FEWEST_PROBES, _groups(self._table.count_rows()) // _PROBED_PART)
        step = max(1, _FOUND_AT_ONCE // limit)
        for start in range(0, len(own), step):
            units = unit_rows(own[start : start + step]).astype(np.float32)
            query = self._table.search(list(units), vector_column_name=self._kind)
            query = query.distance_type("cosine").where(where).nprobes(probes).fast_search()
            query = query.with_row_id(True).select(["id", "_distance"]).limit(limit)
            found = query.to_arrow().sort_by("_distance")
            alone = [0] * found.num_rows  # LanceDB does not number a single query
            numbers = found["query_index"].to_pylist() if len(units) > 1 else alone
            left = [wanted] * len(units)
            ids, rows = found["id"].to_pylist(), found["_rowid"].to_pylist()
            for number, id_, row in zip(numbers, ids, rows, strict=True):
                if left[number] and id_ not in held:
                    left[number] -= 1
                    yield row

    def _appended_since(
        self, columns: list[str], fingerprint: str, size: int
    ) -> Iterator[SignatureBlock]:
        """The canonical MKVs that the index does not hold: they stand at the end of the table."""
        outside = self._outside()
        if not outside:
            return
        query = self._table.search().select([*columns, "fact", "fingerprint"])
        query = query.offset(self._table.count_rows() - outside).limit(outside)
        for batch in query.to_batches(size):
            meta = batch.select(["id", "fact", "fingerprint"]).to_pylist()
            wanted = [
                row["fact"] == row["id"] and row["fingerprint"] == fingerprint for row in meta
            ]
            yield block_of(batch.filter(wanted), self._kind)

    def _outside(self) -> int | None:
        """How many rows the index does not hold; None if there is no index."""
        found = self._table.index_stats(self._name)
        return None if found is None else found.num_unindexed_rows

    def _build(self, rows: int) -> None:
        from lancedb.index import IvfRq

        groups = _groups(rows)
        logger.info("pool: building the index over %s of %d MKVs ...", self._kind, rows)
        started = time.perf_counter()
        self._table.create_index(
            self._kind,
            config=IvfRq(
                distance_type="cosine",
                num_partitions=groups,
                sample_rate=min(256, max(16, _TRAINING_BYTES // (4 * self._width * groups))),
                max_iterations=10,
            ),
            name=self._name,
        )
        logger.info("pool: index built in %.0f s", time.perf_counter() - started)


def block_of(batch: Any, kind: str) -> SignatureBlock:
    """Some rows of the table, as ranking reads them."""
    return SignatureBlock(
        ids=batch["id"].to_pylist(),
        nodes=batch["node"].to_pylist(),
        slots=batch["slot"].to_pylist(),
        vectors=vectors_of(batch, kind),
    )


def _groups(rows: int) -> int:
    return max(1, round(rows**0.5 / 2))
