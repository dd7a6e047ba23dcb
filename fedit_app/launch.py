"""Running the app in Flower's simulation engine, from an empty room and leaving none behind.

`flwr run` alone starts a SuperLink that outlives it, keeps the environment of its first call,
installs the app's dependencies anew for every run, and exits 0 when a run fails. Here each run has
a SuperLink of its own, on a free loopback port, in a temporary folder, and its end is waited for.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import tomli_w
import torch

from fedit_app.config import ConfigValue
from fedit_app.errors import FedEditError

logger = logging.getLogger(__name__)

_CONNECTION = "fedit"
_START_SECONDS = 60
_STOP_SECONDS = 10
_LONGEST_TEMPORARY = 20
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def find_app(app: Path | None) -> Path:
    """The folder of the Flower app to run.

    Args:
        app: a checkout; None for the current folder if it is one, else the one this code is in.

    Raises:
        FedEditError: there is no app.
    """
    candidates = [app] if app else [Path.cwd(), Path(__file__).parents[1]]
    for folder in candidates:
        file = folder / "pyproject.toml"
        if file.is_file() and "[tool.flwr.app.components]" in file.read_text(encoding="utf-8"):
            return folder.resolve()
    raise FedEditError(
        f"app: {' and '.join(map(str, candidates))} holds no Flower app (pyproject.toml with "
        "[tool.flwr.app.components]); run in a checkout of FedEdit, or name one with --app"
    )


def simulate(
    app: Path,
    config: Mapping[str, ConfigValue],
    nodes: int,
    on_line: Callable[[str], None],
) -> str:
    """Run an app with virtual nodes and wait for its end.

    Args:
        app: the app's folder.
        config: run-config values to override.
        nodes: number of virtual nodes.
        on_line: called with every line of the run's log.

    Returns:
        Flower's final status, such as "finished:completed".

    Raises:
        FedEditError: Flower refuses the run, or its SuperLink does not start or ends early.
    """
    # Ray's sockets lie in here, and their paths may not be longer than 103 characters.
    room = None if len(tempfile.gettempdir()) <= _LONGEST_TEMPORARY else "/tmp"
    with tempfile.TemporaryDirectory(prefix="fedit-", dir=room, ignore_cleanup_errors=True) as name:
        home = Path(name)
        environment = _environment(home)
        with _superlink(home, environment) as address:
            _write_connection(home, address)
            run_id = _submit(app, config, nodes, home, environment)
            _stream(run_id, home, environment, on_line)
            return _status(run_id, home, environment)


def _environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_TMPDIR": str(home),
        # Threads that spin long starve each other when somebody else uses a core, too.
        "GOMP_SPINCOUNT": "2000",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


@contextmanager
def _superlink(home: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """A SuperLink for one run; it and all that it started are gone afterwards."""
    port = _free_port()
    address = f"127.0.0.1:{port}"
    log = home / "superlink.log"
    command = [_tool("flower-superlink"), "--insecure", "--simulation"]
    command += ["--isolation", "subprocess", "--disable-runtime-dependency-installation"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for_health(process, address, log)
        yield address
    finally:
        _stop(process, home)


def _wait_for_health(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"http://{address}/health", timeout=1).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    tail = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
    raise FedEditError(f"Flower's SuperLink did not start on {address}: {tail}")


def _stop(process: subprocess.Popen[bytes], home: Path) -> None:
    """End the SuperLink, its children, and whatever of Ray has left their family tree."""
    family = _family(process.pid, home)
    for member in family:
        _signal(member, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
    for member in [*alive, *_family(process.pid, home)]:
        _signal(member, signal.SIGKILL)
    process.wait(_STOP_SECONDS)


def _family(pid: int, home: Path) -> list[psutil.Process]:
    """The SuperLink's processes: its descendants, and those that run with its home folder."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["pid"]):
        try:
            ours = process.pid == pid or process.environ().get("FLWR_HOME") == str(home / "flwr")
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if ours and process.pid != os.getpid():
            found[process.pid] = process
    return list(found.values())


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        logger.debug("process %d has ended by itself", process.pid)


def _write_connection(home: Path, address: str) -> None:
    folder = home / "flwr"
    folder.mkdir(exist_ok=True)
    connection = {"address": address, "insecure": True}
    settings = {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}
    (folder / "config.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")


def _submit(
    app: Path,
    config: Mapping[str, ConfigValue],
    nodes: int,
    home: Path,
    environment: Mapping[str, str],
) -> str:
    overrides = home / "run-config.toml"
    overrides.write_text(tomli_w.dumps(dict(config)), encoding="utf-8")
    # One client at a time with the whole machine: each has a model of its own in memory.
    resources = {
        "num-supernodes": nodes,
        "client-resources-num-cpus": os.cpu_count() or 1,
        "client-resources-num-gpus": 1.0 if torch.cuda.is_available() else 0.0,
    }
    command = [_tool("flwr"), "run", str(app), _CONNECTION, "--format", "json"]
    command += ["--run-config", str(overrides)]
    command += ["--federation-config", " ".join(f"{k}={v}" for k, v in resources.items())]
    result = _flwr(command, home, environment)
    try:
        return str(json.loads(result.stdout)["run-id"])
    except (ValueError, KeyError):
        said = _ANSI.sub("", f"{result.stdout} {result.stderr}").split()
        raise FedEditError(f"Flower refused the run: {' '.join(said)}") from None


def _stream(
    run_id: str, home: Path, environment: Mapping[str, str], on_line: Callable[[str], None]
) -> None:
    """Hand on the run's log until the run ends."""
    command = [_tool("flwr"), "log", run_id, _CONNECTION, "--stream"]
    with subprocess.Popen(
        command,
        cwd=home,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                on_line(_ANSI.sub("", line.rstrip("\n")))
        finally:
            process.terminate()


def _status(run_id: str, home: Path, environment: Mapping[str, str]) -> str:
    """The run's final status; Flower may report it a moment after the log has ended."""
    command = [_tool("flwr"), "ls", _CONNECTION, "--run-id", run_id, "--format", "json"]
    deadline = time.monotonic() + _START_SECONDS
    status = "unknown"
    while time.monotonic() < deadline:
        result = _flwr(command, home, environment)
        try:
            status = json.loads(result.stdout)["runs"][0]["status"]
        except (ValueError, KeyError, IndexError):
            raise FedEditError(f"Flower does not know run {run_id} any more") from None
        if status.startswith("finished"):
            break
        time.sleep(0.5)
    return status


def _flwr(
    command: list[str], home: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=home,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _tool(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
