"""Integrity check of a pool: every payload, every column, every fact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedit_app.mkv.record import SIGNATURES
from fedit_app.mkv.similarity import unit_rows
from fedit_app.mkv.wire import from_bytes
from fedit_app.pool.pool import ROWS_WITH_PAYLOAD, MKVPool
from fedit_app.pool.rows import COLUMNS, Row, vectors_of
from fedit_app.support.errors import FedEditError


@dataclass(frozen=True)
class Damage:
    """A damaged row.

    Attributes:
        id: id of its MKV; empty if the table itself cannot be read.
        reason: what is wrong.
    """

    id: str
    reason: str


def check(pool: MKVPool) -> Iterator[Damage]:
    """Yield all damage of a pool.

    Every payload must decode and hash to the row's id, the columns must match the payload, no id
    may occur twice, and every fact must be a canonical MKV of the pool with the same fingerprint.
    Of a sealed MKV, only the unsealed part is checked; nodes check that its id and sketches match
    its sealed part. Memory grows with the ids of the pool, not with its vectors.
    """
    canonical: dict[str, str] = {}  # id -> fingerprint
    folded: list[tuple[str, str, str]] = []  # id, fact, fingerprint
    seen: set[str] = set()
    try:
        for batch in pool.batches(COLUMNS, ROWS_WITH_PAYLOAD):
            vectors = {kind: vectors_of(batch, kind) for kind in SIGNATURES}
            meta = [name for name in COLUMNS if name not in SIGNATURES]
            for number, row in enumerate(batch.select(meta).to_pylist()):
                if row["id"] in seen:
                    yield Damage(row["id"], "is in the pool twice")
                seen.add(row["id"])
                if row["fact"] == row["id"]:
                    canonical[row["id"]] = row["fingerprint"]
                else:
                    folded.append((row["id"], row["fact"], row["fingerprint"]))
                signatures = {kind: vectors[kind][number] for kind in SIGNATURES}
                yield from (Damage(row["id"], reason) for reason in _wrong(row, signatures))
    except (OSError, RuntimeError, ValueError) as error:  # what LanceDB raises for a damaged file
        yield Damage("", f"the rest of the table cannot be read: {error}".splitlines()[0])
        return
    for id_, fact, fingerprint in folded:
        if canonical.get(fact) != fingerprint:
            yield Damage(id_, f"its fact {fact} is not a canonical MKV of the same fingerprint")


def _wrong(row: Row, signatures: dict[str, np.ndarray]) -> Iterator[str]:
    try:
        mkv = from_bytes(row["payload"])
    except FedEditError as error:
        yield f"damaged payload: {error}"
        return
    for name in ("id", "node", "slot", "fingerprint"):
        if row[name] != getattr(mkv, name):
            yield f"column {name} is {row[name]!r}, the payload has {getattr(mkv, name)!r}"
    if mkv.node not in row["nodes"] or len(set(row["nodes"])) != len(row["nodes"]):
        yield f"column nodes is {row['nodes']}; it lacks {mkv.node!r} or has a name twice"
    for kind, vector in signatures.items():
        if vector.tobytes() != unit_rows(mkv.signature(kind)).tobytes():
            yield f"column {kind} is not the signature of its payload"
