"""A node's resident process from outside: start it, find it, stop it.

Its folder, which only this user can read, holds

    worker.json     process id, socket and a random key
    worker.log      its log, with the reason of its end; worker.log.1 is the previous log
    worker.lock     held by the ClientApp whose message it answers

The socket is in a folder of its own in the temporary directory, because the path of a socket is
limited to about 100 bytes and not every file system supports sockets.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import psutil

from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_file

logger = logging.getLogger(__name__)

MODULE = "fedit_app.node.worker"
LOG, LOCK = "worker.log", "worker.lock"
_RECORD = "worker.json"
_LONGEST_TEMPORARY = 60
_STOP_SECONDS = 5
_APP = Path(__file__).parents[2]


@dataclass(frozen=True)
class Record:
    """How to reach a resident process.

    Attributes:
        pid: its process id.
        address: path of its socket.
        key: the secret of both sides, 64 hex digits.
    """

    pid: int
    address: str
    key: str


class Serves(TypedDict):
    """What a process is for: it answers only messages for which all of this is the same.

    Attributes:
        node: the node's name.
        owner: id of the process that starts the node's ClientApps.
        idle_seconds, memory_gb: see `resident.WorkerSettings`.
        model: settings of the model by key.
        files: hash of names, sizes and times of the files that the process keeps in memory.
    """

    node: str
    owner: int
    idle_seconds: float
    memory_gb: float
    model: dict[str, str | None]
    files: str


class Greeting(TypedDict):
    """What a process is: hash of its code, and what it is for."""

    code: str
    serves: Serves


class Told(TypedDict):
    """What a process reads from its standard input.

    Attributes:
        listener: file descriptor of a listening socket.
        key: see `Record`.
        serves: what it is for.
    """

    listener: int
    key: str
    serves: Serves


@functools.cache
def code_fingerprint() -> str:
    """Hash of this package's source files; a process with older code has another one."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def make_private(folder: Path) -> None:
    """Make a folder that only this user can read.

    Raises:
        FedEditError: it cannot be made, or belongs to another user.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise unusable(folder, error) from None


def unusable(folder: Path, error: OSError) -> FedEditError:
    """The error of a folder that a resident process cannot use."""
    return FedEditError(
        f"resident process: {error.strerror or error} in {folder}; give the node a state-dir that "
        "this user can write to and that has room, or worker-idle-seconds = 0"
    )


def start_worker(folder: Path, serves: Serves) -> tuple[Record, subprocess.Popen[bytes]]:
    """Start a resident process; it accepts connections at once, and answers when it is ready.

    It imports the package from the same place as this process, and outlives this process. It gets
    the key through a pipe, so no command line and no environment holds it.

    Args:
        folder: made by `make_private`; no other process uses it.
        serves: what it is for.

    Raises:
        FedEditError: the folder is not writable, or no process can be started.
    """
    key = secrets.token_hex(32)
    try:
        with contextlib.ExitStack() as undo, socket.socket(socket.AF_UNIX) as listener:
            room = tempfile.mkdtemp(prefix="fedit-", dir=_temporary())
            undo.callback(shutil.rmtree, room, ignore_errors=True)
            address = f"{room}/worker.sock"
            listener.bind(address)
            listener.listen()
            with (folder / LOG).open("ab") as log:
                child = subprocess.Popen(
                    [sys.executable, "-P", "-m", MODULE, str(folder)],
                    cwd=folder,
                    env={**os.environ, "PYTHONPATH": _python_path()},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=[listener.fileno()],
                    start_new_session=True,
                )
            undo.callback(child.kill)
            record = Record(child.pid, address, key)
            write_file(folder / _RECORD, json.dumps(asdict(record)), 0o600)
            _tell(child, Told(listener=listener.fileno(), key=key, serves=serves))
            undo.pop_all()
    except OSError as error:
        raise unusable(folder, error) from None
    return record, child


def read_record(folder: Path) -> Record | None:
    """The process that was started last, unless it has removed its record at its end."""
    try:
        return Record(**json.loads((folder / _RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError):
        logger.warning("%s: damaged; a resident process may still be running", folder / _RECORD)
        return None


def is_running(record: Record, folder: Path) -> bool:
    """Whether a record's process is alive; another process may have its id by now."""
    return _process(record, folder) is not None


def stop_worker(folder: Path) -> bool:
    """Stop a node's resident process, even during a message: a ledger is consistent at any time.

    A ClientApp that waits for an answer starts another process: stop the SuperNode first.

    Args:
        folder: see `folders.worker_folder`.

    Returns:
        Whether one was running.
    """
    record = read_record(folder)
    if record is None:
        return False
    process = _process(record, folder)
    if process is not None:
        for end in (process.terminate, process.kill):
            with contextlib.suppress(psutil.NoSuchProcess):
                end()
            if psutil.wait_procs([process], timeout=_STOP_SECONDS)[0]:
                break
    forget(record, folder)
    return process is not None


def forget(record: Record, folder: Path) -> None:
    """Remove socket and record of a process that has ended or is ending."""
    shutil.rmtree(Path(record.address).parent, ignore_errors=True)
    (folder / _RECORD).unlink(missing_ok=True)


def log_size(folder: Path) -> int:
    """Bytes in the log."""
    log = folder / LOG
    return log.stat().st_size if log.exists() else 0


def last_line(folder: Path, since: int) -> str:
    """The last line of the log after its first `since` bytes, such as the error of a start."""
    with (folder / LOG).open("rb") as stream:
        stream.seek(since)
        lines = stream.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _process(record: Record, folder: Path) -> psutil.Process | None:
    try:
        process = psutil.Process(record.pid)
        return process if process.cmdline()[-2:] == [MODULE, str(folder)] else None
    except psutil.Error:  # ended, a zombie, or another user's
        return None


def _tell(child: subprocess.Popen[bytes], told: Told) -> None:
    """Write to its standard input; if it has ended already, connecting to it fails later."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:
        child.stdin.write(json.dumps(told).encode())


def _temporary() -> str:
    """The temporary directory, or /tmp where the path of a socket in it would be too long."""
    chosen = tempfile.gettempdir()
    return chosen if len(os.fsencode(chosen)) <= _LONGEST_TEMPORARY else "/tmp"


def _python_path() -> str:
    """PYTHONPATH with the package's own folder first."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(_APP), *([given] if given else [])])
