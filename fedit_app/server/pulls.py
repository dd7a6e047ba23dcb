"""The messages of a stage and their answers, each fetched on its own, so that none delays another.

Flower's grid fetches the answers to one question in turn, and waits up to three minutes for the
parts of an answer whose sender has gone away, or stopped on purpose, while it sent them. So one
question asks which answers have arrived, and each of them is fetched by a thread of its own.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from fedit_app.flower_compat.answers import Fetch, arrived

logger = logging.getLogger(__name__)

_AT_ONCE = 8
_PATIENCE_SECONDS, _LOOK_SECONDS = 2.0, 0.1
_QUESTION = ""  # in the place of a message's id
_PUSHED_AT_ONCE = 4


def push(grid: Grid, messages: Sequence[Message]) -> None:
    """Send messages a few at a time, which gives them their ids.

    Flower announces all messages of one call before it sends their content. A node that hears of
    its own asks for its content every other second until it is there, and a stage with many nodes
    would begin with more such requests than all others together.
    """
    for start in range(0, len(messages), _PUSHED_AT_ONCE):
        grid.push_messages(messages[start : start + _PUSHED_AT_ONCE])


class Pulls:
    """Asks the SuperLink for the answers of one stage.

    Args:
        grid: Flower's, which other threads call.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._arrived: deque[tuple[str, Fetch]] = deque()
        self._begun: dict[str, float] = {}  # id, or the question -> since when
        self._ended: queue.SimpleQueue[tuple[str, list[Message] | Exception]] = queue.SimpleQueue()

    @property
    def unfinished(self) -> set[str]:
        """Ids whose answers are arriving for longer than a question to the SuperLink takes."""
        return self._begun.keys() - self._fresh() - {_QUESTION}

    def ask(self, ids: Iterable[str]) -> list[Message]:
        """Ask once for answers; those that are still arriving from before are not asked for again.

        Args:
            ids: Flower's ids of the messages that are to be answered.

        Returns:
            The answers that have arrived, also those from before. It does not wait for long for
            those that take their time; they are among a later call's.

        Raises:
            httpx.HTTPStatusError: the SuperLink refuses to say; an error of its own is logged.
        """
        wanted = [id_ for id_ in ids if id_ not in self._begun]
        if wanted and _QUESTION not in self._begun:
            self._begin(_QUESTION, partial(self._question, wanted))
        found: list[Message] = []
        while True:
            fresh = self._fresh()
            while self._arrived and len(fresh) < _AT_ONCE:
                id_, fetch = self._arrived.popleft()
                self._begin(id_, fetch)
                fresh.add(id_)
            try:
                found += self._next(_LOOK_SECONDS if fresh else 0.0)
            except queue.Empty:
                if not self._arrived and not self._fresh():
                    return found

    def _question(self, ids: Sequence[str]) -> list[Message]:
        """Notes which answers have arrived; of the answers themselves there are none yet."""
        self._arrived += arrived(self._grid, ids)
        return []

    def _fresh(self) -> set[str]:
        """What has begun so lately that its end is awaited."""
        now = time.monotonic()
        return {id_ for id_, since in self._begun.items() if now - since < _PATIENCE_SECONDS}

    def _begin(self, id_: str, fetch: Fetch) -> None:
        self._begun[id_] = time.monotonic()
        # The process may end while it waits.
        threading.Thread(target=self._run, args=(id_, fetch), name="pull", daemon=True).start()

    def _run(self, id_: str, fetch: Fetch) -> None:
        try:
            self._ended.put((id_, list(fetch())))
        except Exception as error:  # raised where the answers are taken
            self._ended.put((id_, error))

    def _next(self, seconds: float) -> list[Message]:
        """The answers of what ends next.

        Raises:
            queue.Empty: nothing has ended in time.
        """
        id_, result = self._ended.get(timeout=seconds)
        del self._begun[id_]
        if not isinstance(result, Exception):
            return result
        if not isinstance(result, httpx.HTTPStatusError) or not result.response.is_server_error:
            raise result
        status = result.response.status_code
        logger.warning("the SuperLink answered with error %d, see its log; asked again", status)
        return []
