"""A node's resident process from outside: start it, find it, end it.

Its folder, readable by this user alone, holds

    worker.json     process id, socket and a random key
    worker.log      what it does, and why it ended; worker.log.1 is the previous log
    worker.lock     held by the ClientApp that it works for

The socket is in a folder of its own in the temporary directory: the path of a socket may have about
100 bytes at most, and not every file system supports sockets.
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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from fedit_app.support.errors import FedEditError
from fedit_app.support.files import replace_file

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
        key: what both sides have to know, 64 hex digits.
    """

    pid: int
    address: str
    key: str


@functools.cache
def code_fingerprint() -> str:
    """Hash of this package's source files, by which a process that runs older code is found."""
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


def start_worker(
    folder: Path, serves: Mapping[str, str | int | float]
) -> tuple[Record, subprocess.Popen[bytes]]:
    """Start a resident process; it accepts connections at once, and answers when it is ready.

    It imports the package from the same place as this process, and outlives this process. It gets
    the key through a pipe, so no command line and no environment holds it.

    Args:
        folder: made by `make_private`; no other process lives in it.
        serves: what it is for, see `worker.main`.

    Raises:
        FedEditError: the folder cannot be written to, or no process can be started.
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
            _write(record, folder)
            told = {"listener": listener.fileno(), "key": key, "serves": dict(serves)}
            _tell(child, told)
            undo.pop_all()
    except OSError as error:
        raise unusable(folder, error) from None
    return record, child


def read_record(folder: Path) -> Record | None:
    """The process that was started last and has not ended itself; None if there is none."""
    try:
        return Record(**json.loads((folder / _RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError):
        logger.warning("%s: damaged; a resident process may still be running", folder / _RECORD)
        return None


def is_running(record: Record, folder: Path) -> bool:
    """Whether a record's process is alive, and its process id not another's by now."""
    return _process(record, folder) is not None


def stop_worker(folder: Path) -> bool:
    """End a node's resident process, even during a message: a ledger is consistent at any time.

    A ClientApp that waits for an answer would start another one: end the SuperNode first.

    Args:
        folder: see `paths.worker_folder`.

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
    """Remove socket and record of a process that has ended, or is about to."""
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


def _write(record: Record, folder: Path) -> None:
    with replace_file(folder / _RECORD) as temporary:
        temporary.touch(0o600)
        temporary.write_text(json.dumps(asdict(record)), encoding="utf-8")


def _tell(child: subprocess.Popen[bytes], told: Mapping[str, object]) -> None:
    """Write to its standard input; if it has ended, connecting to it will fail."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:
        child.stdin.write(json.dumps(told).encode())


def _temporary() -> str:
    """The temporary directory, or another one if the path of a socket in it would be too long."""
    chosen = tempfile.gettempdir()
    return chosen if len(os.fsencode(chosen)) <= _LONGEST_TEMPORARY else "/tmp"


def _python_path() -> str:
    """The package's own folder before all others."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(_APP), *([given] if given else [])])
