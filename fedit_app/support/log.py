"""The log of FedEdit: plain lines on standard error, the same for server and nodes."""

from __future__ import annotations

import logging
import sys

from fedit_app.support.formats import printable


class _Plain(logging.Formatter):
    """Writes lines that a terminal shows and nothing more: what others have sent may be in them."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def set_up_logging(dated: bool = False) -> None:
    """Write FedEdit's log lines to standard error; further calls have no effect.

    Args:
        dated: begin each line with the date, for a log that is kept for days.
    """
    root = logging.getLogger("fedit_app")
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    times = "%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S"
    handler.setFormatter(_Plain("%(asctime)s fedit %(levelname).1s %(message)s", times))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
