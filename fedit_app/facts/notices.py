"""What is said of requests that are read: what was made plain in them, and what is odd."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter

from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.facts.texts import code_point, look_alikes
from fedit_app.support.formats import listing, plural

logger = logging.getLogger(__name__)

_MOST = 10


class Notices:
    """Gathers what is to be said of the requests of a file. No text is quoted.

    Args:
        place: what the numbers of requests count: "record", "line" or "row".
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._changes: Counter[str] = Counter()
        self._odd: list[str] = []
        self._asked: dict[tuple[str, str, int | None], tuple[int, str]] = {}

    def see(self, number: int, request: EditRequest) -> None:
        """Take note of a request.

        Args:
            number: where it stands.
            request: the next request of the file.
        """
        self._changes.update(request.changes)
        for name in ("subject", "prompt", "target_new", "target_true"):
            for char in dict.fromkeys(look_alikes(getattr(request, name) or "")):
                what = f"{code_point(char)}, {unicodedata.name(char)}"
                self._say(number, f"{name} has {what}, in a word of Latin letters")
        if request.subject.casefold() == request.target_new.casefold():
            self._say(number, "target_new is the subject itself")
        if request.prompt == SLOT:
            self._say(number, "the whole prompt is the subject; it is learned at its last token")
        if request.subject in request.prompt:
            self._say(number, "the subject is in the prompt again; the place of {} counts")
        key = request.subject, request.prompt, request.slot
        first, target = self._asked.get(key, (number, request.target_new))
        if target != request.target_new:
            self._say(
                number,
                f"asks the same as {self._place} {first} with another target; the later one counts",
            )
        self._asked[key] = number, request.target_new

    def _say(self, number: int, what: str) -> None:
        self._odd.append(f"{self._place} {number}: {what}")

    def log(self, source: str) -> None:
        """Write them to the log, at most ten that are odd.

        Args:
            source: what the requests were read from.
        """
        if self._changes:
            counts = [plural(count, kind) for kind, count in sorted(self._changes.items())]
            logger.info("%s: texts were made plain: %s", source, listing(counts))
        for what in self._odd[:_MOST]:
            logger.warning("%s: %s", source, what)
        if len(self._odd) > _MOST:
            logger.warning("%s: and %d more such notices", source, len(self._odd) - _MOST)
