"""The log of FedEdit: plain lines on standard error, the same for server and nodes."""

from __future__ import annotations

import logging
import sys


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
    handler.setFormatter(logging.Formatter("%(asctime)s fedit %(levelname).1s %(message)s", times))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
