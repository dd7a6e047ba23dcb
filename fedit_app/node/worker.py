"""A node's resident process: it keeps the model and answers the node's messages, one by one.

It ends after `worker-idle-seconds` without a message, when its SuperNode has ended, when it holds
too much memory after a message, and after an unexpected error; the next message starts another one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from pathlib import Path

import psutil
from flwr.app import RecordDict

from fedit_app.node.channel import check_size, receive, send, send_greeting, welcome
from fedit_app.node.worker_process import (
    LOG,
    MODULE,
    Greeting,
    Told,
    code_fingerprint,
    forget,
    read_record,
)
from fedit_app.protocol.messages import Call, pack_error
from fedit_app.support.errors import FedEditError
from fedit_app.support.log import set_up_logging

logger = logging.getLogger(MODULE)  # run as a program, its __name__ differs

_MEMORY_SHARE = 0.8
LARGEST_LOG = 4 * 2**20
NICENESS = 5
"""Flower's processes have priority: a node that misses its heartbeats counts as lost."""
_OWNER_SECONDS = 1.0

AnswerFunction = Callable[[Call, RecordDict], tuple[RecordDict, bool]]


def main(folder: Path, told: Told, answer: AnswerFunction) -> None:
    """Answer messages until the process has to end.

    Args:
        folder: the node's folder for this process.
        told: what `start_worker` has written to the standard input.
        answer: see `handlers.answer`.
    """
    set_up_logging(dated=True)
    faulthandler.enable()
    serves = told["serves"]
    threading.Thread(target=_end_with, args=(serves["owner"], folder), daemon=True).start()
    most = serves["memory_gb"] * 1e9 or _MEMORY_SHARE * psutil.virtual_memory().total
    greeting = Greeting(code=code_fingerprint(), serves=serves)
    logger.info("node %s: resident process %d is ready", serves["node"], os.getpid())
    with socket.socket(fileno=told["listener"]) as listener:
        listener.settimeout(min(serves["idle_seconds"], threading.TIMEOUT_MAX))
        reason = None
        while reason is None:
            reason = serve_one(listener, bytes.fromhex(told["key"]), greeting, answer)
            reason = reason or _grown(most)
            turn_over(folder / LOG)
    _leave(folder, reason)


def serve_one(
    listener: socket.socket, key: bytes, greeting: Greeting, answer: AnswerFunction
) -> str | None:
    """Wait for a connection and answer its message.

    Args:
        listener: listening socket with a time-out.
        key: the secret of both sides.
        greeting: what this process is.
        answer: see `handlers.answer`.

    Returns:
        Why this process should end, if it should.
    """
    try:
        accepted, _ = listener.accept()
    except TimeoutError:
        return f"no message for {listener.gettimeout():g} s"
    sound = True
    try:
        with welcome(accepted, key) as connection:
            send_greeting(connection, greeting)
            head, content = receive(connection)
            call = Call(**head)
            reply, sound = answer(call, content)
            send(connection, {}, _sendable(reply, call))
    except AuthenticationError:
        logger.warning("a connection was refused: wrong key")
    except (EOFError, OSError) as error:
        logger.info(
            "a ClientApp closed its connection before the answer (%s)", type(error).__name__
        )
    return None if sound else "an unexpected error; the next message starts a new process"


def turn_over(log: Path) -> None:
    """Rotate the log of this process once it is large; the previous one is kept as LOG.1."""
    if log.stat().st_size < LARGEST_LOG:
        return
    log.replace(log.with_name(f"{log.name}.1"))
    with log.open("ab") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)


def _sendable(reply: RecordDict, call: Call) -> RecordDict:
    try:
        check_size(reply)
    except FedEditError as error:
        logger.error("node %s: %s failed: %s", call.node, call.stage, error)
        return pack_error(call.node, call.stage, error)
    return reply


def _grown(most: float) -> str | None:
    held = psutil.Process().memory_info().rss
    if held <= most:
        return None
    return f"{held / 1e9:.1f} GB of memory held, {most / 1e9:.1f} allowed (worker-memory-gb)"


def _end_with(owner: int, folder: Path) -> None:
    """End this process, even in the middle of a message, once its owner has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(owner)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_OWNER_SECONDS)
    _leave(folder, "the SuperNode has ended")
    os._exit(0)


def _leave(folder: Path, reason: str) -> None:
    logger.info("resident process %d ends: %s", os.getpid(), reason)
    record = read_record(folder)
    if record is not None and record.pid == os.getpid():
        forget(record, folder)


if __name__ == "__main__":
    os.nice(NICENESS)

    from fedit_app.node import handlers

    main(Path(sys.argv[1]), json.load(sys.stdin), handlers.answer)
