"""The commands `fedit compare` and `fedit sweep`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedit_app.config.overrides import add_run_config, read_run_config
from fedit_app.support.errors import FedEditError

if TYPE_CHECKING:
    from fedit_app.experiments.plan import Plan
    from fedit_app.experiments.runner import Step

_STRATEGIES = "fedit,fedavg,local,central"


def add_comparison(commands: Any) -> None:
    """Add the commands that do many runs of one experiment.

    Args:
        commands: the subparsers of `fedit`, as argparse makes them.
    """
    compare = commands.add_parser(
        "compare", help="run strategies, editors and seeds in simulation, compare them in tables"
    )
    _add_options(compare, _STRATEGIES)
    compare.set_defaults(axis=None, needs_axis=False)
    sweep = commands.add_parser("sweep", help="the same over the values of one run-config key")
    sweep.add_argument(
        "--axis",
        metavar="KEY=VALUE,VALUE,...",
        help="what is varied: a run-config key, or nodes; needed unless --report-only",
    )
    _add_options(sweep, "fedit")
    sweep.set_defaults(needs_axis=True)


def _add_options(command: argparse.ArgumentParser, strategies: str) -> None:
    add_run_config(command)
    command.add_argument("--nodes", type=int, metavar="N", help="virtual nodes, as in fedit run")
    command.add_argument(
        "--strategies",
        default=strategies,
        metavar="LIST",
        help="such as fedit,fedit[selection=majority],fedavg; in brackets run-config keys that "
        "this one has other than the rest (%(default)s)",
    )
    command.add_argument(
        "--editors", metavar="LIST", help="written alike; default: the run config's"
    )
    command.add_argument("--seeds", metavar="LIST", help="such as 1,2,3; default: the run config's")
    command.add_argument(
        "--output-dir", type=Path, required=True, metavar="DIR", help="the comparison's folder"
    )
    command.add_argument(
        "--metrics", metavar="LIST", help="columns of the tables; any that results.json has"
    )
    command.add_argument("--dry-run", action="store_true", help="only say what would be run")
    command.add_argument(
        "--report-only", action="store_true", help="only write the tables of what is there"
    )
    command.add_argument(
        "--app", type=Path, metavar="DIR", help="checkout to run; default: this one"
    )
    command.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> int:
    from fedit_app.experiments.comparison_report import write_comparison
    from fedit_app.experiments.comparison_tables import METRICS, terminal_table
    from fedit_app.experiments.plan import load_plan, locked, save_plan
    from fedit_app.experiments.runner import execute, prepare
    from fedit_app.experiments.summary import summarise
    from fedit_app.flower_compat.launch import find_app, simulate

    folder = options.output_dir.expanduser().absolute()
    metrics = options.metrics.split(",") if options.metrics else METRICS
    failures: dict[str, str] = {}
    if options.report_only:
        plan = load_plan(folder)
    else:
        plan = _wanted(options, folder)
        if options.dry_run:
            return _say(_listing(prepare(plan)))
        app = find_app(options.app)
        # Ended from outside, a run cleans up just as it does when the user interrupts it.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with locked(folder):
            steps = prepare(plan)
            save_plan(plan)
            failures = execute(
                steps, lambda values, nodes, on_line: simulate(app, values, nodes, on_line)
            )
    comparison = summarise(plan, failures)
    files = write_comparison(comparison, folder, metrics)
    _say(terminal_table(comparison, metrics))
    _say("\n".join(map(str, files)))
    return 1 if failures else 0


def _wanted(options: argparse.Namespace, folder: Path) -> Plan:
    from fedit_app.config.run_config import RunConfig
    from fedit_app.experiments.plan import joined, make_plan, parse_axis

    values = read_run_config(options.config, options.overrides)
    if options.axis is None and options.needs_axis:
        raise FedEditError("--axis is missing; write, for example, --axis overlap=0,0.25,0.5")
    wanted = make_plan(
        folder,
        values,
        options.nodes,
        options.strategies,
        options.editors or str(values.get("editor", RunConfig().editor)),
        options.seeds or str(values.get("seed", RunConfig().seed)),
        parse_axis(options.axis) if options.axis else None,
    )
    return joined(wanted)


def _listing(steps: Sequence[Step]) -> str:
    from fedit_app.report.table import plain_table

    rows = [[step.run.title, step.todo.value, step.run.name] for step in steps]
    return plain_table(["Run", "State", "Folder"], rows)


def _say(text: str) -> int:
    sys.stdout.write(text.rstrip("\n") + "\n")
    return 0
