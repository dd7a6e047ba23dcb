"""Flower's processes: the environment and the cores they run on, and ending all of them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

logger = logging.getLogger(__name__)

STOP_SECONDS = 10


def flower_home(home: Path) -> Path:
    """Flower's own folder (`FLWR_HOME`) of the processes that run in `home`."""
    return home / "flwr"


def environment(home: Path) -> dict[str, str]:
    """The environment of Flower's processes that run in a folder.

    The variables that turn off telemetry, the update check and the installation of dependencies at
    run time must be set before the first call of Flower.
    """
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(flower_home(home)),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_TMPDIR": str(home),
        # How often Flower looks for a task to start, in seconds; its own default is 1.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        # Threads that spin for long starve each other when another process uses a core as well.
        "GOMP_SPINCOUNT": "2000",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def interrupt_when_terminated(hangup: bool = True) -> None:
    """Let SIGTERM and the loss of the terminal interrupt this process, as Ctrl-C does.

    Python would end at once, and the processes that it has started would go on. What is ignored,
    as under nohup, stays so.

    Args:
        hangup: whether the loss of the terminal does; else it ends the process as before.
    """
    for number in (signal.SIGTERM, *((signal.SIGHUP,) if hangup else ())):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def tool(name: str) -> str:
    """Path of a command that is installed with this Python."""
    return str(Path(sys.executable).parent / name)


def start(
    command: Sequence[str], home: Path, environment: Mapping[str, str], output: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that a terminal's signals do not reach it.

    Args:
        command: the program and its arguments.
        home: its working directory: Flower's workers import from there first, so it holds no code.
        environment: see `environment`.
        output: where its output and errors go.
    """
    return subprocess.Popen(
        command,
        cwd=home,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def family(home: Path, root: int | None = None) -> list[psutil.Process]:
    """The processes that run with a folder as Flower's home, and the descendants of `root`.

    Both are searched, as some of Flower's processes leave the process tree, and some hide their
    environment from a user who is not root.

    Args:
        home: the folder, see `environment`.
        root: id of a process that is included with its descendants.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["pid"]):
        try:
            ours = process.environ().get("FLWR_HOME") == str(flower_home(home))
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if ours:
            found[process.pid] = process
    if root is not None and psutil.pid_exists(root):
        parent = psutil.Process(root)
        found |= {process.pid: process for process in [parent, *parent.children(recursive=True)]}
    found.pop(os.getpid(), None)
    return list(found.values())


def stop_family(home: Path, root: int | None = None) -> int:
    """Terminate the processes of a folder; kill those that still run after ten seconds.

    Args:
        home: see `family`.
        root: see `family`.

    Returns:
        The number of processes.
    """
    members = family(home, root)
    for member in members:
        _signal(member, signal.SIGTERM)
    _, alive = psutil.wait_procs(members, timeout=STOP_SECONDS)
    for member in [*alive, *family(home, root)]:
        _signal(member, signal.SIGKILL)
    return len(members)


def kill_tool(home: Path, name: str) -> None:
    """Kill the processes of a folder that run a command which is installed with this Python.

    Args:
        home: see `family`.
        name: of the command.
    """
    for member in family(home):
        try:
            runs = tool(name) in member.cmdline()
        except psutil.NoSuchProcess:
            continue
        if runs:
            _signal(member, signal.SIGKILL)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        logger.debug("process %d has exited already", process.pid)


def cores() -> int:
    """How many processor cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
