"""Running one Flower process in the foreground, and ending all that it has started."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from fedit_app.flower_compat.connection import plain
from fedit_app.support.errors import FedEditError
from fedit_app.support.processes import STOP_SECONDS, environment, start, stop_family

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Hold the lock of a server or node, and end what an earlier start has left running.

    Args:
        home: working directory of its Flower process; made if it does not exist.

    Raises:
        FedEditError: it runs already.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _lock(home)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FedEditError(f"{home.parent}: is already running; stop it first") from None
    try:
        left = stop_family(home)
        if left:
            logger.warning("ended %d processes that an earlier start had left", left)
        yield
    finally:
        lock.release()


def is_running(home: Path) -> bool:
    """Whether a server or node runs with this folder as its Flower home."""
    if not home.is_dir():
        return False
    lock = _lock(home)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _lock(home: Path) -> FileLock:
    return FileLock(home / "running.lock")


@contextmanager
def foreground(command: Sequence[str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process and pass on its output; afterwards end it and all that it has started.

    Args:
        command: the program and its arguments.
        home: its working directory.
    """
    os.umask(0o077)
    process = start(command, home, environment(home), subprocess.PIPE)
    relay = threading.Thread(target=_relay, args=(process.stdout,), daemon=True)
    relay.start()
    try:
        yield process
    finally:
        # A second signal does not interrupt the clean-up.
        before = [signal.signal(number, signal.SIG_IGN) for number in _SIGNALS]
        stop_family(home, process.pid)
        process.wait(STOP_SECONDS)
        relay.join(STOP_SECONDS)
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _relay(output: IO[bytes]) -> None:
    for line in output:
        sys.stdout.write(plain(line.decode(errors="replace")) + "\n")
        sys.stdout.flush()
