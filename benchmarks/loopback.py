"""A federation on this machine: a real server and real nodes, each a `fedit` process of its own.

Every process is started and ended by its own id; nothing is looked up by name.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from fedit_app.deployment.node_folder import NODE_FILE, NodeFolder
from fedit_app.deployment.node_setup import init_node
from fedit_app.deployment.server_folder import ServerFolder
from fedit_app.deployment.server_setup import init_server
from fedit_app.flower_compat.registry import ONLINE, RegisteredNode, register_node, registered_nodes
from fedit_app.support.errors import FedEditError
from fedit_app.support.processes import family, free_port, stop_family

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
TOGETHER = "together"
PATIENCE = 600  # seconds, more than a crowded machine needs for what comes next


class Deployment:
    """A server's folder, nodes' folders beside it, and the processes that run from them.

    Use it in a `with` block: at its end every process is gone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: ServerFolder = init_server(folder / "server", [HOST], free_port())
        self.nodes: dict[str, NodeFolder] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(self, *_: object) -> None:
        run = self.processes.pop("run", None)
        if run is not None and run.poll() is None:
            run.kill()
            run.wait(PATIENCE)
        for name in list(self.processes):
            self.kill(name)

    def add_node(
        self, name: str, data: Path, model: Path, ca_cert: Path | None = None
    ) -> NodeFolder:
        """Make a node's folder; it is not registered yet."""
        node = init_node(
            self.folder / name,
            name,
            self.server.addresses[0],
            ca_cert or self.server.ca_cert,
            data,
            str(model),
            "cpu",
            next((other.federation_key for other in self.nodes.values()), None),
        )
        _allow_tiny_models(node)
        self.nodes[name] = node
        return node

    def register(self, *names: str) -> None:
        """Make nodes known to the server, which runs."""
        for name in names:
            register_node(self.server.superlink, self.nodes[name].public_key, name)

    def start_server(self) -> None:
        """Start the server and wait until it is ready."""
        self._start("server", "server", self.server.folder)
        self.wait(lambda: "server ready" in self.log("server"), "the server is not ready")

    def start_nodes(self, *names: str, within: Sequence[str] = ()) -> None:
        """Start nodes; see `wait_online`.

        Args:
            names: of the nodes.
            within: a command that starts another one, given behind it, in its own process.
        """
        for name in names:
            self._start(name, "node", self.nodes[name].folder, within)

    def _start(self, name: str, side: str, folder: Path, within: Sequence[str] = ()) -> None:
        command = [sys.executable, "-m", "fedit_app.cli.main", side, "start", str(folder)]
        self._open(name, [*within, *command])

    def _open(self, name: str, command: Sequence[str]) -> None:
        """Start a process whose output goes into the log of that name."""
        with self.log_file(name).open("ab") as output:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def start_together(self, *names: str, within: Sequence[str] = ()) -> None:
        """Start nodes as threads of one process, `TOGETHER`; see `benchmarks.connections`."""
        folders = [str(self.nodes[name].folder) for name in names]
        command = [sys.executable, "-m", "benchmarks.connections", *folders]
        self._open(TOGETHER, [*within, *command])

    def end(self, *names: str) -> list[int]:
        """Ask the server ("server") or nodes to end; returns their exit statuses."""
        ending = [self.processes.pop(name) for name in names]
        for process in ending:
            process.send_signal(signal.SIGTERM)
        return [process.wait(PATIENCE) for process in ending]

    def kill(self, name: str) -> None:
        """Kill the server ("server") or a node with all that it has started, without warning."""
        members, process = self.members(name), self.processes.pop(name)
        for member in members:
            with suppress(psutil.NoSuchProcess):  # it has ended by itself meanwhile
                member.kill()
        process.wait(PATIENCE)
        stop_family(self.home(name))

    def members(self, name: str) -> list[psutil.Process]:
        """The processes of the server ("server") or a node that runs."""
        return family(self.home(name), self.processes[name].pid)

    def home(self, name: str) -> Path:
        """Working directory of the Flower process of the server or a node."""
        if name == TOGETHER:
            return self.folder
        return self.server.home if name == "server" else self.nodes[name].home

    def log_file(self, name: str) -> Path:
        """Where the output of the server or a node goes."""
        return self.folder / f"{name}.log"

    def log(self, name: str) -> str:
        """The output of the server or a node so far."""
        return self.log_file(name).read_text(encoding="utf-8", errors="replace")

    def known(self) -> dict[str, RegisteredNode]:
        """The nodes that the server knows, by name."""
        return {node.name: node for node in registered_nodes(self.server.superlink)}

    def online(self) -> set[str]:
        """Names of the nodes that are connected."""
        try:
            return {name for name, node in self.known().items() if node.status == ONLINE}
        except FedEditError:
            return set()

    def wait_online(self, *names: str, patience: float = PATIENCE) -> None:
        """Wait until nodes are connected."""
        self.wait(lambda: set(names) <= self.online(), f"{names} are not online", patience)

    def wait(
        self, condition: Callable[[], bool], otherwise: str, patience: float = PATIENCE
    ) -> None:
        """Wait until a condition holds; fails with all logs if it does not."""
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {n}\n{self.log(n)[-3000:]}" for n in self.processes)
                raise AssertionError(f"{otherwise} after {patience} s\n{logs}")
            time.sleep(0.2)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`fedit run` on the server, to its end."""
        return subprocess.run(
            self.run_command(*arguments),
            cwd=self.folder,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def start_run(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `fedit run` on the server; what it says is the log of "run"."""
        self._open("run", self.run_command(*arguments))
        return self.processes["run"]

    def run_command(self, *arguments: str) -> list[str]:
        """The command line of `fedit run` on the server."""
        command = [sys.executable, "-m", "fedit_app.cli.main", "run"]
        command += [] if "--app" in arguments else ["--app", str(ROOT)]
        return [*command, "--superlink", str(self.server.folder), *arguments]


def _environment() -> dict[str, str]:
    """Tiny models gain nothing from threads, and the figures are those of one thread."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _allow_tiny_models(node: NodeFolder) -> None:
    """Lower the limits of a node: tiny models have small covariances, of little text."""
    file = node.folder / NODE_FILE
    text = file.read_text(encoding="utf-8")
    for limit, value in {"least-covariance-weight": 1.0, "least-covariance-tokens": 1}.items():
        text = re.sub(f"^{limit} = .*$", f"{limit} = {value}", text, flags=re.MULTILINE)
    file.write_text(text, encoding="utf-8")
