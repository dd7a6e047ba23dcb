"""Running the app on Flower: in its simulation engine, or on the nodes of a SuperLink.

`flwr run` alone starts a SuperLink that outlives it, keeps the environment of its first call,
installs the app's dependencies for every run, and exits 0 when a run fails. Here each simulated run
has its own SuperLink on a free loopback port and in a temporary folder, which end with the run.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch

from fedit_app.config.run_config import ConfigValue
from fedit_app.flower_compat.connection import Connection, SuperLink
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml
from fedit_app.support.processes import (
    STOP_SECONDS,
    cores,
    environment,
    free_port,
    kill_tool,
    start,
    stop_family,
    tool,
)

_PROJECT = "fedit"  # in pyproject.toml
_PACKAGE = Path(__file__).resolve().parents[1]
_START_SECONDS = 60
_LONGEST_TEMPORARY = 20


def find_app(app: Path | None) -> Path:
    """The folder of the Flower app to run.

    Args:
        app: a folder with a Flower app; None for FedEdit's own: the current folder if it is a
            checkout of FedEdit, else the one that this code is in.

    Raises:
        FedEditError: there is no app.
    """
    candidates = [app] if app else [Path.cwd(), Path(__file__).parents[2]]
    for folder in candidates:
        file = folder / "pyproject.toml"
        project = read_toml(file, str(file)) if file.is_file() else {}
        own = project.get("project", {}).get("name") == _PROJECT
        if (app or own) and "components" in project.get("tool", {}).get("flwr", {}).get("app", {}):
            return folder.resolve()
    places = " and ".join(map(str, candidates))
    raise FedEditError(
        f"app: {places} holds no Flower app{'' if app else ' of FedEdit'} (pyproject.toml with "
        "[tool.flwr.app.components]); run in a checkout of FedEdit, or name one with --app"
    )


def with_other_code(app: Path) -> Path | None:
    """The folder of an app that does not run the FedEdit that is running here; None if it does."""
    same = (app / _PACKAGE.name).resolve() == _PACKAGE
    return None if same else app


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A temporary folder for Flower's processes, whose path is short enough for Ray's sockets."""
    # Ray's sockets lie in here, and their paths may not be longer than 103 characters.
    room = None if len(tempfile.gettempdir()) <= _LONGEST_TEMPORARY else "/tmp"
    with tempfile.TemporaryDirectory(prefix="fedit-", dir=room, ignore_cleanup_errors=True) as name:
        yield Path(name)


def simulate(
    app: Path,
    config: Mapping[str, ConfigValue],
    nodes: int,
    on_line: Callable[[str], None],
    given_cores: int | None = None,
) -> str:
    """Run an app with virtual nodes and wait for its end.

    Args:
        app: the app's folder.
        config: run-config values to override.
        nodes: number of virtual nodes.
        on_line: called with every line of the run's log.
        given_cores: how many the nodes use; None for all that this process may use.

    Returns:
        Flower's final status, such as "finished:completed".

    Raises:
        FedEditError: Flower refuses the run, or its SuperLink does not start or ends early.
    """
    # One client at a time with all of them: each has a model of its own in memory.
    federation: dict[str, ConfigValue] = {
        "num-supernodes": nodes,
        "init-args-num-cpus": given_cores or cores(),
        "client-resources-num-cpus": given_cores or cores(),
        "client-resources-num-gpus": 1.0 if torch.cuda.is_available() else 0.0,
    }
    with temporary_home() as home, simulation_superlink(home) as superlink:
        connection = Connection.to(superlink, home)
        return connection.follow(connection.submit(app, config, federation), on_line)


def deploy(
    app: Path,
    config: Mapping[str, ConfigValue],
    superlink: SuperLink,
    on_line: Callable[[str], None],
) -> str:
    """Run an app on the nodes of a SuperLink and wait for its end.

    An interrupt stops the run. (If the process is killed, the run continues.)

    Args:
        app: the app's folder.
        config: run-config values to override.
        superlink: a running SuperLink.
        on_line: called with every line of the run's log.

    Returns:
        Flower's final status, such as "finished:completed".

    Raises:
        FedEditError: Flower refuses the run, or the SuperLink stops answering.
    """
    with temporary_home() as home:
        connection = Connection.to(superlink, home)
        run_id = connection.submit(app, config)
        try:
            return connection.follow(run_id, on_line)
        except KeyboardInterrupt:
            connection.stop(run_id)
            raise


@contextmanager
def simulation_superlink(home: Path) -> Iterator[SuperLink]:
    """A SuperLink for one simulated run; afterwards it and all that it started are ended.

    Args:
        home: its folder.

    Yields:
        Where it is.

    Raises:
        FedEditError: it does not start.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"
    log = home / "superlink.log"
    command = [tool("flower-superlink"), "--insecure", "--simulation"]
    command += ["--isolation", "subprocess", "--disable-runtime-dependency-installation"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = start(command, home, environment(home), output.fileno())
    try:
        _wait_for_health(process, address, log)
        yield SuperLink(address, insecure=True)
    except BaseException:
        # The server would note nodes that end before it as failed, and their slot as complete.
        kill_tool(home, "flwr-simulation")
        raise
    finally:
        stop_family(home, process.pid)
        process.wait(STOP_SECONDS)


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
