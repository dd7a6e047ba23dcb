"""Serialising the writes to a SuperLink's database.

A SuperLink answers from some forty threads that share one SQLite file. SQLite lets one of them
write; the others poll every tenth of a second, in no order, and one that has not succeeded after 5
seconds fails with "database is locked". Flower answers that with an error 500, which ends a
SuperNode and fails a run. Here writers queue for a lock in front of the database instead.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from sqlalchemy import Connection, Engine, event

logger = logging.getLogger("flwr")

LONGEST_WAIT = 60.0
"""Seconds after which a write proceeds without the lock: an error is better than a deadlock."""
_TURN = "fedit-turn"
_READS = ("SELECT", "PRAGMA")


class Turns:
    """The lock that all writes of this process share, see `take_turns`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def before_cursor_execute(
        self, connection: Connection, _cursor: Any, statement: str, *_: object
    ) -> None:
        """Take the lock before a transaction's first write."""
        if connection.info.get(_TURN) or statement.lstrip().upper().startswith(_READS):
            return
        if self._lock.acquire(timeout=LONGEST_WAIT):
            connection.info[_TURN] = True
        else:
            logger.error("another write to the database has taken %g s", LONGEST_WAIT)

    def checkin(self, _connection: Any, record: Any) -> None:
        """Release the lock once the transaction has ended."""
        if record.info.pop(_TURN, False):
            self._lock.release()


def take_turns() -> None:
    """Make all of this process's writes to databases wait for one another from now on."""
    turns = Turns()
    event.listen(Engine, "before_cursor_execute", turns.before_cursor_execute)
    event.listen(Engine, "checkin", turns.checkin)
