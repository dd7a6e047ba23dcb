"""How much memory this process has taken."""

from __future__ import annotations

from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """Most bytes that this process has held so far; where the system does not say, those of now.

    `getrusage` tells that of the program that started it, if this was larger (Linux keeps it).
    """
    if not _STATUS.exists():
        return int(psutil.Process().memory_info().rss)
    lines = dict(line.split(":", 1) for line in _STATUS.read_text("ascii").splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024
