"""Looking for expired tasks less often.

Flower's SuperLink looks for tasks whose process has fallen silent whenever a node sends or fetches
a piece of a message: two writes to its database, in which it finds nothing, are a quarter of all
that such a request costs. A task has a minute to give a sign of itself, so a look a second is soon
enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fedit_app.flower_compat.contract import require

with require("looking for expired tasks less often"):
    from flwr.supercore.corestate.sql_corestate import SqlCoreState

    _look = SqlCoreState._cleanup_expired_task_tokens

SECONDS_BETWEEN_LOOKS = 1.0


def look_seldom() -> None:
    """Make this process's SuperLink look for expired tasks once a second at most."""
    SqlCoreState._cleanup_expired_task_tokens = seldom(_look)  # type: ignore[assignment, method-assign]


def seldom(look: Callable[[SqlCoreState], None]) -> Callable[[SqlCoreState], None]:
    """What looks for expired tasks, unless it has done so within the last second.

    Args:
        look: Flower's own way to look.
    """
    looked = -SECONDS_BETWEEN_LOOKS

    def look_if_due(state: SqlCoreState) -> None:
        nonlocal looked
        now = time.monotonic()
        if now - looked >= SECONDS_BETWEEN_LOOKS:
            looked = now
            look(state)

    return look_if_due
