"""Writes to the server's database, one transaction after another.

A SuperLink answers from some forty threads that share one SQLite file. SQLite lets one of them
write; the others look again every tenth of a second whether it is their turn, whoever looks at the
right moment gets it, and one that had no luck for 5 seconds fails with "database is locked". Flower
answers that with an error 500, over which a SuperNode ends and a run fails. Here they wait in front
of the database instead, where the next one is woken as soon as it can go.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from sqlalchemy import Connection, Engine, event

logger = logging.getLogger("flwr")

LONGEST_WAIT = 60.0
"""Seconds after which a write goes on without its turn: an error is better than to stand still."""
_TURN = "fedit-turn"
_READS = ("SELECT", "PRAGMA")


class Turns:
    """Gives out the turn to write to all engines of this process, see `take_turns`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def before_cursor_execute(
        self, connection: Connection, _cursor: Any, statement: str, *_: object
    ) -> None:
        """Take the turn before a transaction's first write."""
        if connection.info.get(_TURN) or statement.lstrip().upper().startswith(_READS):
            return
        if self._lock.acquire(timeout=LONGEST_WAIT):
            connection.info[_TURN] = True
        else:
            logger.error("another write to the database has taken %g s", LONGEST_WAIT)

    def checkin(self, _connection: Any, record: Any) -> None:
        """Give the turn back once the transaction has ended."""
        if record.info.pop(_TURN, False):
            self._lock.release()


def take_turns() -> None:
    """From now on all of this process's writes to databases wait for one another."""
    turns = Turns()
    event.listen(Engine, "before_cursor_execute", turns.before_cursor_execute)
    event.listen(Engine, "checkin", turns.checkin)
