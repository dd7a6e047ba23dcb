"""How an MKV becomes a row of the pool's LanceDB table."""

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

# `node` computed it, `nodes` uploaded it (the same content may come from several), `fact` is the
# id of the MKV that stands for the same fact.
COLUMNS = ("id", "node", "nodes", "slot", "fingerprint", "fact", *SIGNATURES, "payload")


def schema_for(mkv: Record) -> pa.Schema:
    """The columns of a pool whose MKVs have the widths of this one."""
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
    """Raises FedEditError unless a table has the columns of a pool."""
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
    """Raises FedEditError unless the MKV has the widths of the pool."""
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
    """The MKVs as rows; `facts` and `nodes` are those of each id."""
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
    """The signatures `(b, d)` float16 of some rows."""
    width = batch.schema.field(kind).type.list_size
    vectors: np.ndarray = batch[kind].flatten().to_numpy().reshape(-1, width)
    return vectors


def quoted(text: str) -> str:
    """A string literal of the table's filter language."""
    return "'" + text.replace("'", "''") + "'"


def one_of(column: str, values: Iterable[str]) -> str:
    """The filter for rows whose `column` has one of these values."""
    return f"{column} IN ({', '.join(map(quoted, values))})"
