"""Whether a pool is sound: every payload, every column, every fact."""

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
    """What is wrong with a row.

    Attributes:
        id: of its MKV; empty if the table itself cannot be read.
        reason: in a few words.
    """

    id: str
    reason: str


def check(pool: MKVPool) -> Iterator[Damage]:
    """Everything that is wrong with a pool; nothing if it is sound.

    Every payload has to decode and to hash to the row's id, the columns have to be those of the
    payload, no id may occur twice, and every fact has to be that of a canonical MKV of the pool
    with the same fingerprint. Of a sealed MKV what stands outside is checked; what its payload
    holds, and that its id and sketches are those of it, only nodes can tell, and do. Memory grows
    with the ids of the pool, not with its vectors.
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
                    yield Damage(row["id"], "stands in the pool twice")
                seen.add(row["id"])
                if row["fact"] == row["id"]:
                    canonical[row["id"]] = row["fingerprint"]
                else:
                    folded.append((row["id"], row["fact"], row["fingerprint"]))
                signatures = {kind: vectors[kind][number] for kind in SIGNATURES}
                yield from (Damage(row["id"], reason) for reason in _wrong(row, signatures))
    except (OSError, RuntimeError, ValueError) as error:  # what LanceDB raises of a damaged file
        yield Damage("", f"the table cannot be read further: {error}".splitlines()[0])
        return
    for id_, fact, fingerprint in folded:
        if canonical.get(fact) != fingerprint:
            yield Damage(id_, f"its fact {fact} is no canonical MKV of the same fingerprint")


def _wrong(row: Row, signatures: dict[str, np.ndarray]) -> Iterator[str]:
    try:
        mkv = from_bytes(row["payload"])
    except FedEditError as error:
        yield f"its payload is damaged: {error}"
        return
    for name in ("id", "node", "slot", "fingerprint"):
        if row[name] != getattr(mkv, name):
            yield f"column {name} is {row[name]!r}, its payload says {getattr(mkv, name)!r}"
    if mkv.node not in row["nodes"] or len(set(row["nodes"])) != len(row["nodes"]):
        yield f"column nodes is {row['nodes']}, without {mkv.node!r} or with a name twice"
    for kind, vector in signatures.items():
        if vector.tobytes() != unit_rows(mkv.signature(kind)).tobytes():
            yield f"column {kind} is not the signature of its payload"
