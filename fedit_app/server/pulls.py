"""The answers of a stage, each fetched on its own: one that never arrives whole delays no other.

Flower's grid fetches the answers to one question in turn, and waits up to three minutes for the
parts of an answer whose sender has gone away, or stopped on purpose, while it sent them.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import httpx
from flwr.app import Message

logger = logging.getLogger(__name__)

_AT_ONCE = 8
_PATIENCE_SECONDS, _LOOK_SECONDS = 2.0, 0.1


class Pulls:
    """Asks the SuperLink for the answers of one stage.

    Args:
        pull: Flower's `Grid.pull_messages`, which other threads call: once for each message.
    """

    def __init__(self, pull: Callable[[Sequence[str]], Iterable[Message]]) -> None:
        self._pull = pull
        self._asking: dict[str, float] = {}  # id -> since when
        self._ended: queue.SimpleQueue[tuple[str, list[Message] | Exception]] = queue.SimpleQueue()

    @property
    def unfinished(self) -> set[str]:
        """Ids whose answers are arriving for longer than a question to the SuperLink takes."""
        return self._asking.keys() - self._fresh()

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
        left = deque(id_ for id_ in ids if id_ not in self._asking)
        found: list[Message] = []
        while True:
            fresh = self._fresh()
            while left and len(fresh) < _AT_ONCE:
                fresh.add(left[0])
                self._start(left.popleft())
            try:
                found += self._next(_LOOK_SECONDS if fresh else 0.0)
            except queue.Empty:
                if not left and not self._fresh():
                    return found

    def _fresh(self) -> set[str]:
        """Ids that were asked for so lately that their answers, if there are any, are awaited."""
        now = time.monotonic()
        return {id_ for id_, since in self._asking.items() if now - since < _PATIENCE_SECONDS}

    def _start(self, id_: str) -> None:
        self._asking[id_] = time.monotonic()
        # The process may end while it waits.
        threading.Thread(target=self._fetch, args=(id_,), name="pull", daemon=True).start()

    def _fetch(self, id_: str) -> None:
        try:
            self._ended.put((id_, list(self._pull([id_]))))
        except Exception as error:  # raised where the answers are taken
            self._ended.put((id_, error))

    def _next(self, seconds: float) -> list[Message]:
        """The answers of the next question that has ended.

        Raises:
            queue.Empty: none has ended in time.
        """
        id_, result = self._ended.get(timeout=seconds)
        del self._asking[id_]
        if not isinstance(result, Exception):
            return result
        if not isinstance(result, httpx.HTTPStatusError) or not result.response.is_server_error:
            raise result
        status = result.response.status_code
        logger.warning("the SuperLink answered with error %d, see its log; asked again", status)
        return []
