"""`fedit run`: one run of a federation, in simulation or on real nodes."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedit_app.cli.options import App, ConfigFile, Overrides, run_config
from fedit_app.cli.output import say
from fedit_app.support.errors import FedEditError

if TYPE_CHECKING:
    from fedit_app.config.run_config import ConfigValue

Runner = Callable[[Path, Callable[[str], None]], str]
"""Runs an app; takes what is called with every line of its log, returns Flower's final status."""


def run(
    config: ConfigFile = None,
    overrides: Overrides = None,
    superlink: Annotated[
        str | None,
        typer.Option(
            metavar="NAME-OR-DIR",
            help="Run on the real nodes of a server: its folder, or its name in Flower's "
            "configuration.",
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            help="Virtual nodes; default: one per data file, else 4. With --superlink: how many "
            "nodes must be online; default: 1."
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Default: runs/NAME-TIME here or in the server's folder."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="Resume a run that was interrupted."),
    ] = None,
    app: App = None,
) -> int:
    """Run a federation, in simulation or on real nodes."""
    from fedit_app.config.run_config import RunConfig
    from fedit_app.flower_compat.launch import find_app, with_other_code
    from fedit_app.support.processes import interrupt_when_terminated
    from fedit_app.support.progress import Progress

    if resume is not None and (config is not None or output_dir is not None):
        raise FedEditError("--resume: takes configuration and folder from the run; give it alone")
    values = run_config(_recorded(resume) if resume else config, overrides)
    if resume is not None:
        values |= {"resume": True, "output-dir": str(resume.absolute())}
    elif output_dir is not None:
        values["output-dir"] = str(output_dir.absolute())
    checkout = find_app(app)
    interrupt_when_terminated(hangup=superlink is None)  # real nodes go on without a terminal
    name = config.stem if config else "run"
    other = with_other_code(checkout)
    if superlink:
        start = _deployed(values, superlink, nodes, name, other)
    else:
        start = _simulated(values, nodes, name, other)
    settings = RunConfig.parse(values)
    with Progress(settings.num_slots) as progress:
        status = start(checkout, progress.line)
    if status != "finished:completed":
        sys.stderr.write(f"fedit: the run failed ({status}); see the log above\n")
        return 1
    folder = Path(settings.output_dir or "~/fedit-runs/RUN-ID of the server")
    here = superlink is None or Path(superlink).expanduser().is_dir()
    lines = _holding(folder / "results.json") if here else []
    lines += [f"results: {folder / 'results.json'}", f"report:  {folder / 'report.html'}"]
    say("\n".join(lines))
    return 0


def _holding(file: Path) -> list[str]:
    """How many facts hold, if the results are on this machine."""
    from fedit_app.report import load_results
    from fedit_app.report.figures import hold_lines

    return hold_lines(load_results(file)) if file.is_file() else []


def _recorded(run_dir: Path) -> Path:
    """The file with the configuration of a run."""
    file = run_dir / "config.toml"
    if not file.is_file():
        raise FedEditError(f"--resume {run_dir}: not a run folder, it has no config.toml")
    return file


def _simulated(
    values: dict[str, ConfigValue], wanted: int | None, name: str, other: Path | None
) -> Runner:
    """Complete and check the values of a simulation; what runs it."""
    from fedit_app.config.run_config import RunConfig
    from fedit_app.experiments.preflight import check_simulation
    from fedit_app.flower_compat import launch

    if not values.get("output-dir"):
        values["output-dir"] = _run_folder(Path("runs"), name)
    nodes = check_simulation(RunConfig.parse(values), wanted, other)
    return lambda app, on_line: launch.simulate(app, values, nodes, on_line)


def _deployed(
    values: dict[str, ConfigValue], address: str, wanted: int | None, name: str, other: Path | None
) -> Runner:
    """Complete and check the values of a run on real nodes; what runs it."""
    from fedit_app.config.run_config import RunConfig
    from fedit_app.deployment.superlinks import find_superlink
    from fedit_app.experiments.preflight import check_deployment
    from fedit_app.flower_compat import launch

    superlink, server = find_superlink(address)
    if server is not None and not values.get("output-dir"):
        values["output-dir"] = _run_folder(server.path(server.settings.runs), name)
    if not values.get("federation"):
        values["federation"] = f"{_now()}-{secrets.token_hex(3)}"
    check_deployment(RunConfig.parse(values), superlink, wanted, server is not None, other)
    return lambda app, on_line: launch.deploy(app, values, superlink, on_line)


def _run_folder(parent: Path, name: str) -> str:
    return str(Path(parent, f"{name}-{_now()}").absolute())


def _now() -> str:
    return datetime.now().strftime("%Y%m%d-%H%M%S")
