"""A node's resident process, seen from its ClientApp: find or start it, ask it, replace it.

Flower starts a ClientApp process for every message to a real node. The model stays in a process of
its own, which serves one node and SuperNode, one model and one version of the code. If any of these
differs, the process is replaced, so that no stale code or model answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path

from filelock import FileLock, Timeout
from flwr.app import RecordDict

from fedit_app.config.folders import worker_folder
from fedit_app.config.model import ModelSettings
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.config.settings import key_name
from fedit_app.node.channel import check_size, receive, receive_greeting, send
from fedit_app.node.worker_process import (
    LOCK,
    LOG,
    Greeting,
    Record,
    Serves,
    code_fingerprint,
    is_running,
    last_line,
    log_size,
    make_private,
    read_record,
    start_worker,
    stop_worker,
    unusable,
)
from fedit_app.protocol.messages import Call
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

_GONE = (EOFError, OSError, AuthenticationError)
_EXIT_SECONDS = 5


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of a node's resident process, from its configuration.

    Attributes:
        idle_seconds: `worker-idle-seconds`: it ends after this time without a message. With 0 the
            node has no resident process, and loads the model for every message.
        memory_gb: `worker-memory-gb`: it ends after a message if it holds more memory than this,
            in 10^9 bytes; with 0, more than 80 % of the machine's.
    """

    idle_seconds: float = 1800.0
    memory_gb: float = 0.0

    @staticmethod
    def of(node_config: Mapping[str, ConfigValue]) -> WorkerSettings:
        """Read them from Flower's node configuration.

        Raises:
            FedEditError: a value is not a number of at least 0.
        """
        return WorkerSettings(
            _number(node_config, "worker-idle-seconds", WorkerSettings.idle_seconds),
            _number(node_config, "worker-memory-gb", WorkerSettings.memory_gb),
        )


def ask(
    call: Call, content: RecordDict, config: RunConfig, node: str, settings: WorkerSettings
) -> RecordDict:
    """Have a node's resident process answer a message.

    A process that ends during a message is replaced once and asked again: handlers answer a
    repeated message from the ledger.

    Args:
        call: which message, to which node, in which run.
        content: the message's content.
        config: the run configuration of `call`.
        node: the node's name.
        settings: settings of the node's resident process.

    Raises:
        FedEditError: the message is too large, or the process does not start, does not answer
            within `slot-timeout`, or ends twice.
    """
    check_size(content)
    folder = worker_folder(config.state_dir, node)
    resident = _Resident(folder, _serves(config, node, settings), config.slot_timeout)
    started = time.perf_counter()
    with resident.turn():
        answer = resident.answer(call, content)
    seconds = time.perf_counter() - started
    logger.info("node %s: %s answered in %.1f s, see %s", node, call.stage, seconds, folder / LOG)
    return answer


class _Link:
    """An open connection to a resident process, which is killed when the deadline passes.

    Args:
        record: the process.
        deadline: on the clock of `time.monotonic()`.
        child: the process if it is a child of this one.

    Raises:
        OSError, EOFError, AuthenticationError, ValueError: it has ended, or is another program.
    """

    def __init__(
        self, record: Record, deadline: float, child: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.pid, self.child = record.pid, child
        left = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        self._alarm = threading.Timer(left, self._kill)
        self._alarm.daemon = True
        self._alarm.start()
        try:
            key = bytes.fromhex(record.key)
            self._connection = Client(record.address, "AF_UNIX", authkey=key)
            self.greeting = receive_greeting(self._connection)
        except BaseException:
            self._alarm.cancel()
            raise

    def ask(self, call: Call, content: RecordDict) -> RecordDict:
        """Have a message answered; raises what `channel.receive` does if the process ends."""
        send(self._connection, dataclasses.asdict(call), content)
        return receive(self._connection)[1]

    def close(self) -> None:
        """Close the connection; the process waits for the next one."""
        self._alarm.cancel()
        self._connection.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class _Resident:
    """The resident process of one node, during one message.

    Args:
        folder: the folder of the node's resident process.
        serves: what the process has to serve.
        seconds: time limit of the message.
    """

    def __init__(self, folder: Path, serves: Serves, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._wanted = Greeting(code=code_fingerprint(), serves=serves)
        self._deadline = time.monotonic() + seconds

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until the process is free, so that two messages never start two processes."""
        make_private(self._folder)
        lock = FileLock(self._folder / LOCK, timeout=self._seconds)
        try:
            lock.acquire()
        except Timeout:
            raise FedEditError(
                f"resident process: other messages have kept it busy for {self._seconds:g} s "
                "(slot-timeout)"
            ) from None
        except OSError as error:
            raise unusable(self._folder, error) from None
        try:
            yield
        finally:
            lock.release()

    def answer(self, call: Call, content: RecordDict) -> RecordDict:
        """Ask the process; if it ends during the message, start another one and ask again, once."""
        for attempt in (1, 2):
            link = self._found() or self._started()
            try:
                return link.ask(call, content)
            except _GONE:
                self._check_time()
                logger.warning(
                    "resident process %d ended over %s (attempt %d of 2)",
                    link.pid,
                    call.stage,
                    attempt,
                )
            finally:
                link.close()
        raise FedEditError(
            f"resident process: ended twice over {call.stage}, the second time with "
            f"{_status(link.child)}; see the end of {self._folder / LOG} on the node (SIGKILL is "
            "mostly a lack of memory)"
        )

    def _found(self) -> _Link | None:
        """The running process if it is the wanted one; another one is stopped."""
        record = read_record(self._folder)
        if record is None:
            return None
        link = self._open(record) if is_running(record, self._folder) else None
        if link is not None:
            if link.greeting == self._wanted:
                return link
            link.close()
            logger.info("resident process %d: replaced (%s)", link.pid, self._other(link.greeting))
        stop_worker(self._folder)
        return None

    def _started(self) -> _Link:
        before = log_size(self._folder)
        record, child = start_worker(self._folder, self._wanted["serves"])
        link = self._open(record, child)
        if link is None:
            # It has not read a request yet, so its last line cannot quote one.
            said = last_line(self._folder, before)
            raise FedEditError(
                f"resident process: did not start ({_status(child)}: {said}); see "
                f"{self._folder / LOG} on the node"
            )
        if link.greeting != self._wanted:
            link.close()
            stop_worker(self._folder)
            raise FedEditError(
                f"resident process: started with {self._other(link.greeting)}; the node's "
                "Python finds another FedEdit than its ClientApp does"
            )
        return link

    def _open(self, record: Record, child: subprocess.Popen[bytes] | None = None) -> _Link | None:
        """A connection to a process; None if it has ended."""
        try:
            return _Link(record, self._deadline, child)
        except (*_GONE, ValueError):
            self._check_time()
            return None

    def _check_time(self) -> None:
        if time.monotonic() >= self._deadline:
            raise FedEditError(
                f"resident process: no answer within {self._seconds:g} s (slot-timeout); it was "
                "ended"
            )

    def _other(self, greeting: object) -> str:
        """The difference between a process and the one that is wanted."""
        serves = greeting.get("serves") if isinstance(greeting, dict) else None
        if not isinstance(greeting, dict) or not isinstance(serves, dict):
            return "another version"
        names = ["code"] if greeting.get("code") != self._wanted["code"] else []
        wanted = self._wanted["serves"].items()
        names += [key_name(name) for name, value in wanted if serves.get(name) != value]
        return "another " + ", ".join(names)


def _status(child: subprocess.Popen[bytes] | None) -> str:
    """How a process has ended, as far as this process can know."""
    if child is None:
        return "an unknown status"
    try:
        code = child.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        return "its connection closed"
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _serves(config: RunConfig, node: str, settings: WorkerSettings) -> Serves:
    """What has to be equal for two messages to be answered by one process.

    The owner is this process's parent: it ends with the SuperNode and passes on its environment.
    """
    return Serves(
        node=node,
        owner=os.getppid(),
        idle_seconds=settings.idle_seconds,
        memory_gb=settings.memory_gb,
        model=config.part(ModelSettings).model_dump(),
        files=_files_state(config.model, config.device_map, config.covariance_source),
    )


def _files_state(*names: str | None) -> str:
    """Hash of names, sizes and times of the files that the process keeps in memory."""
    digest = hashlib.sha256()
    for name in filter(None, names):
        path = Path(name).expanduser()
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                state = file.stat()
                digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def _number(node_config: Mapping[str, ConfigValue], key: str, default: float) -> float:
    value = node_config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise FedEditError(f"node config: {key} = {value!r} must be a number that is at least 0")
    return float(value)
