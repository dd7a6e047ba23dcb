"""Stores that a ledger could be kept in: its own files, SQLite and Lance, with the same MKVs.

Every store keeps the same rows: what the ledger's index says of an MKV, and the MKV as bytes. The
steps are those of `ledger`: opening reads what is said of all MKVs, a page reads 50 MKVs, 100 are
appended and 1,000 taken out. An append is on the disk when it returns: SQLite runs in WAL mode with
synchronous = FULL, Lance writes a version. Each step begins with the store closed. The ledger's own
files do more: they hash every change into the journal.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
from lancedb.index import BTree

from benchmarks.harness import MIB, Cell, Figures, benchmark, count, main, option, table
from benchmarks.ledger import APPENDED, FINGERPRINT, PAGE, ROLLED_BACK, random_mkvs
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV, mkv_from_bytes, to_bytes

_ROWS_PER_WRITE = 5000
_COLUMNS = {
    "open, s": "open",
    f"a page of {PAGE}, s": "page",
    f"append {APPENDED}, s": "append",
    f"take out {ROLLED_BACK:,}, s": "take_out",
    "disk, MiB": "mib",
}


class Store(ABC):
    """MKVs in a folder.

    Args:
        folder: where it is; made when it is first opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def open(self) -> Sequence[str]:
        """Open it and read what is said of all MKVs; returns their ids."""

    @abstractmethod
    def append(self, mkvs: Sequence[MKV]) -> None:
        """Add MKVs, each with a request."""

    @abstractmethod
    def page(self, ids: Sequence[str]) -> list[MKV]:
        """Read MKVs."""

    @abstractmethod
    def take_out(self, ids: Sequence[str]) -> None:
        """Take MKVs out."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what opening has taken."""


class OwnFiles(Store):
    """The ledger as it is."""

    def open(self) -> Sequence[str]:
        self._ledger = Ledger.open(self.folder, FINGERPRINT)
        return list(self._ledger.entries)

    def append(self, mkvs: Sequence[MKV]) -> None:
        self._ledger.accept(mkvs, 1, {mkv.id: [f"request-{mkv.id}"] for mkv in mkvs})

    def page(self, ids: Sequence[str]) -> list[MKV]:
        found = [self._ledger.entries[id_].mkv for id_ in ids]
        for mkv in found:
            len(mkv.keys)  # its file is read now
        return found

    def take_out(self, ids: Sequence[str]) -> None:
        self._ledger.refuse(ids, "rolled back")

    def close(self) -> None:
        del self._ledger


class SQLite(Store):
    """A table of rows with the MKVs as blobs in another one."""

    def open(self) -> Sequence[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self.folder / "ledger.sqlite")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        with self._database:
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS entry (id TEXT PRIMARY KEY, node TEXT, row TEXT)"
            )
            self._database.execute("CREATE TABLE IF NOT EXISTS mkv (id TEXT PRIMARY KEY, mkv BLOB)")
        found = self._database.execute("SELECT id, node, row FROM entry").fetchall()
        return list({id_: (node, json.loads(row)) for id_, node, row in found})

    def append(self, mkvs: Sequence[MKV]) -> None:
        with self._database as change:
            rows = [(mkv.id, mkv.node, json.dumps(_said(mkv))) for mkv in mkvs]
            change.executemany("INSERT INTO entry VALUES (?, ?, ?)", rows)
            blobs = ((mkv.id, to_bytes(mkv)) for mkv in mkvs)
            change.executemany("INSERT INTO mkv VALUES (?, ?)", blobs)

    def page(self, ids: Sequence[str]) -> list[MKV]:
        find = "SELECT mkv FROM mkv WHERE id = ?"
        return [mkv_from_bytes(self._database.execute(find, (id_,)).fetchone()[0]) for id_ in ids]

    def take_out(self, ids: Sequence[str]) -> None:
        with self._database as change:
            for name in ("entry", "mkv"):
                change.executemany(f"DELETE FROM {name} WHERE id = ?", [(id_,) for id_ in ids])

    def close(self) -> None:
        self._database.close()


class Lance(Store):
    """A LanceDB table, as the pool has one, with an index on the ids."""

    def open(self) -> Sequence[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        database = lancedb.connect(self.folder)
        schema = pa.schema(
            [(name, pa.string()) for name in ("id", "node", "row")] + [("mkv", pa.large_binary())]
        )
        self._table: Any = database.create_table("entry", schema=schema, exist_ok=True)
        found = self._table.search().select(["id", "node", "row"]).to_arrow().to_pylist()
        return list({one["id"]: (one["node"], json.loads(one["row"])) for one in found})

    def append(self, mkvs: Sequence[MKV]) -> None:
        self._table.add(
            [
                {"id": m.id, "node": m.node, "row": json.dumps(_said(m)), "mkv": to_bytes(m)}
                for m in mkvs
            ]
        )

    def page(self, ids: Sequence[str]) -> list[MKV]:
        found = self._table.search().where(_among(ids)).select(["mkv"]).limit(len(ids)).to_list()
        return [mkv_from_bytes(one["mkv"]) for one in found]

    def take_out(self, ids: Sequence[str]) -> None:
        self._table.delete(_among(ids))

    def index(self) -> None:
        """Index the ids, once all are there."""
        self._table.create_index("id", config=BTree())

    def close(self) -> None:
        del self._table


def _among(ids: Sequence[str]) -> str:
    return "id IN ({})".format(", ".join(f"'{id_}'" for id_ in ids))


def _said(mkv: MKV) -> dict[str, object]:
    """What the ledger's index says of an MKV, with a request of its own."""
    return {
        "slot": mkv.slot,
        "requests": [f"request-{mkv.id}"],
        "overruled_by": "",
        "votes": 1,
        "signature": None,
        "warm_started": False,
    }


STORES: dict[str, type[Store]] = {"files": OwnFiles, "SQLite": SQLite, "Lance": Lance}


@benchmark(
    count("--mkvs", 100_000, "in each store"),
    option("--folder", "where the stores are made; None: the system's", type=Path),
    model=False,
    data=False,
)
def run(options: argparse.Namespace) -> Figures:
    """Fill every store and take the steps."""
    figures: Figures = {}
    rows: list[list[Cell]] = []
    for name, kind in STORES.items():
        with tempfile.TemporaryDirectory(prefix="fedit-stores-", dir=options.folder) as folder:
            found = _measured(kind(Path(folder, "store")), options.mkvs)
        figures |= {f"stores/{name}/{step}": value for step, value in found.items()}
        rows.append([name, *(found[step] for step in _COLUMNS.values())])
    print(table([f"{options.mkvs:,} MKVs", *_COLUMNS], rows))
    return figures


def _measured(store: Store, mkvs: int) -> Figures:
    _fill(store, mkvs)
    found: Figures = {"mib": _disk(store.folder) / MIB}
    started = time.perf_counter()
    ids = sorted(store.open())
    found["open"] = time.perf_counter() - started
    started = time.perf_counter()
    page = store.page(ids[:PAGE])
    found["page"] = time.perf_counter() - started
    assert sorted(mkv.id for mkv in page) == ids[:PAGE]
    new = random_mkvs(mkvs, mkvs + APPENDED)
    started = time.perf_counter()
    store.append(new)
    found["append"] = time.perf_counter() - started
    gone = ids[: min(ROLLED_BACK, mkvs // 2)]
    started = time.perf_counter()
    store.take_out(gone)
    found["take_out"] = time.perf_counter() - started
    store.close()
    assert len(store.open()) == mkvs + APPENDED - len(gone)
    store.close()
    return found


def _fill(store: Store, mkvs: int) -> None:
    """Put MKVs into an empty store."""
    store.open()
    for begin in range(0, mkvs, _ROWS_PER_WRITE):
        store.append(random_mkvs(begin, min(begin + _ROWS_PER_WRITE, mkvs)))
    if isinstance(store, Lance):
        store.index()
    store.close()


def _disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main(run)
