"""The rows of the pool's LanceDB table: one for each MKV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fedit_app.mkv.record import SIGNATURES
from fedit_app.mkv.similarity import unit_rows
from fedit_app.mkv.wire import Record, to_bytes
from fedit_app.support.errors import FedEditError

Row = dict[str, Any]
"""A row of the table: column -> value."""

# `node` is the author, `nodes` are all that uploaded the same content, and `fact` is the id of the
# canonical MKV of the fact.
COLUMNS = ("id", "node", "nodes", "slot", "fingerprint", "fact", *SIGNATURES, "payload")


def schema_for(mkv: Record) -> pa.Schema:
    """The schema of a pool whose MKVs have vectors of the same widths as this one."""
    types = {
        "id": pa.string(),
        "node": pa.string(),
        "nodes": pa.list_(pa.string()),
        "slot": pa.int32(),
        "fingerprint": pa.string(),
        "fact": pa.string(),
        **{kind: pa.list_(pa.float16(), mkv.signature(kind).size) for kind in SIGNATURES},
        "payload": pa.binary(),
    }
    return pa.schema([pa.field(name, types[name]) for name in COLUMNS])


def check_schema(schema: pa.Schema, uri: str) -> None:
    """Raise FedEditError unless a table has exactly the columns of a pool."""
    missing = [name for name in COLUMNS if name not in schema.names]
    unknown = [name for name in schema.names if name not in COLUMNS]
    if missing or unknown:
        found = [f"has no column {', '.join(missing)}"] if missing else []
        found += [f"has an unknown column {', '.join(unknown)}"] if unknown else []
        raise FedEditError(
            f"pool {uri}: its table {' and '.join(found)}; it was made by another version of "
            "FedEdit, so name another pool-uri"
        )


def check_widths(mkv: Record, schema: pa.Schema) -> None:
    """Raise FedEditError unless the signatures of an MKV are as wide as those of the pool."""
    for kind in SIGNATURES:
        width, expected = mkv.signature(kind).size, schema.field(kind).type.list_size
        if width != expected:
            raise FedEditError(
                f"pool: MKV {mkv.id} from node {mkv.node!r} has a {kind} of width {width}, this "
                f"pool holds width {expected}; use one pool directory for each base model, and "
                "another for sealed MKVs"
            )


def to_rows(
    mkvs: Sequence[Record],
    facts: Mapping[str, str],
    nodes: Mapping[str, list[str]],
    schema: pa.Schema,
) -> pa.Table:
    """MKVs as rows.

    Args:
        mkvs: n MKVs.
        facts: id -> id of the canonical MKV of its fact.
        nodes: id -> the nodes that have uploaded it.
        schema: see `schema_for`.
    """
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


def vectors_of(batch: pa.RecordBatch, kind: str) -> np.ndarray:
    """The signatures (b, d) float16 of b rows."""
    width = batch.schema.field(kind).type.list_size
    vectors: np.ndarray = batch[kind].flatten().to_numpy().reshape(-1, width)
    return vectors


def quoted(text: str) -> str:
    """A string literal in a filter of LanceDB."""
    return "'" + text.replace("'", "''") + "'"


def one_of(column: str, values: Iterable[str]) -> str:
    """The filter for the rows whose `column` has one of these values."""
    return f"{column} IN ({', '.join(map(quoted, values))})"
