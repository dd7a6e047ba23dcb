"""Runs on a SuperLink, through Flower's command line: submitting, following, stopping them.

`flwr run` exits 0 when a run fails, and its log may end before the run's status is known. Here a
run is followed until its status says that it has finished.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from fedit_app.config.run_config import ConfigValue
from fedit_app.support.errors import FedEditError
from fedit_app.support.processes import environment, flower_home, tool

FINISHED = "finished"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_NAME = "fedit"  # of the connection in Flower's configuration
_PATIENCE_SECONDS = 60
_POLL_SECONDS = 0.5


def plain(text: str) -> str:
    """A line of Flower's output without colours and line end."""
    return _ANSI.sub("", text.rstrip("\r\n"))


@dataclass(frozen=True)
class SuperLink:
    """Where a SuperLink is, and whom to trust that it is the one.

    Attributes:
        address: HOST:PORT.
        root_certificates: certificates of the authorities that it is checked against; None for
            those that Flower trusts anyway.
        insecure: it speaks no TLS.
    """

    address: str
    root_certificates: Path | None = None
    insecure: bool = False


@dataclass(frozen=True)
class Connection:
    """A SuperLink as Flower's command line knows it.

    Attributes:
        home: folder for the files of this connection's calls; their working directory.
        environment: what the calls run in.
    """

    home: Path
    environment: Mapping[str, str] = field(repr=False)

    @staticmethod
    def to(superlink: SuperLink, home: Path) -> Connection:
        """A connection written down in a folder of its own.

        Args:
            superlink: where to.
            home: an existing folder.
        """
        settings: dict[str, Any] = {"address": superlink.address, "insecure": superlink.insecure}
        if superlink.root_certificates is not None:
            settings["root-certificates"] = str(superlink.root_certificates)
        flower_home(home).mkdir(exist_ok=True)
        content = {"superlink": {"default": _NAME, _NAME: settings}}
        (flower_home(home) / "config.toml").write_text(tomli_w.dumps(content), encoding="utf-8")
        return Connection(home, environment(home))

    def submit(
        self,
        app: Path,
        config: Mapping[str, ConfigValue],
        federation: Mapping[str, ConfigValue] | None = None,
    ) -> str:
        """Start a run.

        Args:
            app: the app's folder.
            config: run-config values to override.
            federation: Flower's federation config, for a simulation.

        Returns:
            The run id.

        Raises:
            FedEditError: Flower refuses the run.
        """
        overrides = self.home / "run-config.toml"
        overrides.write_text(tomli_w.dumps(dict(config)), encoding="utf-8")
        options = ["--run-config", str(overrides)]
        if federation:
            pairs = " ".join(f"{key}={value}" for key, value in federation.items())
            options += ["--federation-config", pairs]
        answer = self.call("run", str(app), _NAME, *options)
        if "run-id" not in answer:
            raise FedEditError(f"Flower refused the run: {answer['said']}")
        return str(answer["run-id"])

    def follow(self, run_id: str, on_line: Callable[[str], None]) -> str:
        """Pass on a run's log until the run has finished.

        If the log breaks off during the run, because the network or the SuperLink was down, it is
        resumed.

        Args:
            run_id: the run.
            on_line: called with every line of the log.

        Returns:
            Flower's final status, such as "finished:completed".

        Raises:
            FedEditError: the SuperLink does not answer for a minute.
        """
        shown, status = 0, ""
        while not status.startswith(FINISHED):
            shown = self._stream(run_id, shown, on_line)
            status = self._status(run_id)
        return status

    def _stream(self, run_id: str, skip: int, on_line: Callable[[str], None]) -> int:
        """Pass on the lines of a log after the first `skip`; returns how many there are now."""
        count = 0
        with subprocess.Popen(
            [tool("flwr"), "log", run_id, _NAME, "--stream"],
            cwd=self.home,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            try:
                for count, line in enumerate(process.stdout, start=1):
                    if count > skip:
                        on_line(plain(line))
            finally:
                process.terminate()
        return max(count, skip)

    def _status(self, run_id: str) -> str:
        """The run's status, final if the run finishes within moments."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            answer = self.call("ls", _NAME, "--run-id", run_id)
            runs = answer.get("runs")
            if runs and str(runs[0]["status"]).startswith(FINISHED):
                return str(runs[0]["status"])
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        if not runs:
            raise FedEditError(f"run {run_id}: the SuperLink does not answer: {answer['said']}")
        return str(runs[0]["status"])

    def stop(self, run_id: str) -> None:
        """Stop a run; nothing happens if it has ended."""
        self.call("stop", run_id, _NAME)

    def call(self, *arguments: str) -> dict[str, Any]:
        """Call `flwr` and read what it answers.

        Args:
            arguments: the command line after `flwr`; `--format json` is added.

        Returns:
            The answer; `said` holds all output as one line, for errors.
        """
        result = subprocess.run(
            [tool("flwr"), *arguments, "--format", "json"],
            cwd=self.home,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        said = " ".join(_ANSI.sub("", f"{result.stdout} {result.stderr}").split())
        try:
            answer = json.loads(result.stdout)
        except ValueError:
            answer = {}
        return {**answer, "said": said}
