"""The tables that a pool consists of, found again after a process was killed while it made one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyarrow.fs import FileSelector, FileSystem

if TYPE_CHECKING:  # takes seconds to import, and only the server holds a pool
    from lancedb.db import DBConnection
    from lancedb.table import Table


def open_table(database: DBConnection, name: str) -> Table | None:
    """A table of a pool, or None where there is none yet.

    A process that is killed while it makes a table leaves a folder without a version and without
    data, which LanceDB lists but cannot open. It counts as no table; `create_table` completes it.

    Raises:
        OSError, RuntimeError, ValueError: the table is there and cannot be opened.
    """
    if name not in database.list_tables().tables:
        return None
    try:
        return database.open_table(name)
    except ValueError:
        if _may_hold_data(database.uri, name):
            raise
        return None


def _may_hold_data(uri: str, name: str) -> bool:
    try:
        files, path = FileSystem.from_uri(uri)
        data = FileSelector(f"{path}/{name}.lance/data", allow_not_found=True)
        return bool(files.get_file_info(data))
    except (OSError, ValueError):
        return True
