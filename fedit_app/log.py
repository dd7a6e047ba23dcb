"""Plain log lines of FedEdit, for server and nodes alike."""

from __future__ import annotations

import logging
import sys


def set_up_logging() -> None:
    """Write FedEdit's log lines to stderr; calling it again changes nothing."""
    root = logging.getLogger("fedit_app")
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s fedit %(levelname).1s %(message)s", "%H:%M:%S")
    )
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
