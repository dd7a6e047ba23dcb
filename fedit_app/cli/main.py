"""The `fedit` command."""

from __future__ import annotations

import argparse
import logging
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from fedit_app.cli.compare import add_comparison
from fedit_app.cli.deployment_commands import add_commands
from fedit_app.cli.ledger_commands import add_ledger_commands, add_place
from fedit_app.config.overrides import add_run_config, read_run_config
from fedit_app.config.run_config import ConfigValue, RunConfig, describe_keys
from fedit_app.support.errors import FedEditError
from fedit_app.support.log import set_up_logging

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `fedit` command.

    Args:
        arguments: command line without the program's name; None for the process's own.

    Returns:
        Exit status: 0 done, 1 the run failed, 2 bad input, 130 interrupted.
    """
    set_up_logging()
    options = _parse(arguments)
    try:
        return options.command(options)
    except FedEditError as error:
        sys.stderr.write(f"fedit: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("fedit: interrupted\n")
        return 130


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line, also on Pythons whose argparse loses the prompt of `ask`.

    Before Python 3.12.7 an optional positional is not seen behind an option (bpo-15112).
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(options, "prompt", "") is None:
        options.prompt = rest.pop()
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedit", description="Federated knowledge editing: share corrections, not texts."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a federation, in simulation or on real nodes")
    add_run_config(run)
    run.add_argument(
        "--superlink",
        metavar="NAME-OR-DIR",
        help="run on the real nodes of a server: its folder, or its name in Flower's configuration",
    )
    run.add_argument(
        "--nodes",
        type=int,
        help="virtual nodes; default: one per data file, else 4. With --superlink: how many nodes "
        "must be online; default: 1",
    )
    run.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="default: runs/NAME-TIME here, or in the server's folder",
    )
    run.add_argument(
        "--resume", type=Path, metavar="RUN_DIR", help="go on with a run that has not ended"
    )
    run.add_argument("--app", type=Path, metavar="DIR", help="checkout to run; default: this one")
    run.set_defaults(command=_run)

    ask = commands.add_parser("ask", help="ask a node's model, before and after its edits")
    add_place(ask)
    ask.add_argument("prompt", nargs="?", help="default: some of the node's own facts")
    ask.set_defaults(command=_ask)

    table = commands.add_parser("table", help="compare finished runs, as a Markdown table")
    table.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help="run folders")
    table.set_defaults(command=_table)

    stats = commands.add_parser(
        "stats", help="make, show, give away or take over the covariances of a model"
    )
    add_run_config(stats)
    stats.add_argument("--layers", metavar="3-9", help="default: the run config's")
    stats.add_argument("--save", type=Path, metavar="FILE", help="write them to a file")
    stats.add_argument("--load", type=Path, metavar="FILE", help="take them from such a file")
    stats.set_defaults(command=_stats)

    tune = commands.add_parser(
        "tune", help="search layers, weights and step size for a model, write a preset"
    )
    add_run_config(tune)
    tune.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="edit requests or CounterFact records; default: the run config's data, the demo",
    )
    tune.add_argument(
        "--requests", type=int, default=24, metavar="N", help="how many to edit (%(default)s)"
    )
    tune.add_argument(
        "--output", type=Path, required=True, metavar="PRESET.toml", help="file to write"
    )
    tune.set_defaults(command=_tune)

    _add_pool(commands)
    add_ledger_commands(commands)
    add_comparison(commands)
    add_commands(commands)

    keys = commands.add_parser("config", help="list every run-config key with its meaning")
    keys.set_defaults(command=_config)
    return parser


def _add_pool(commands: Any) -> None:
    pool = commands.add_parser("pool", help="look at an MKV pool, check it, take MKVs out of it")
    actions = pool.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text)
        parser.add_argument("source", metavar="POOL", help="its folder or URI, or a run folder")
        parser.set_defaults(command=_pool, action=name)
        return parser

    stats = action("stats", "counts, facts, size and similarities")
    stats.add_argument("--seed", type=int, default=0, help="of the sample for the similarities")
    listing = action("list", "the MKVs, a line each")
    _add_criteria(listing)
    listing.add_argument(
        "--limit", type=int, default=50, metavar="N", help="show at most so many (%(default)s)"
    )
    action("show", "one MKV").add_argument(
        "id", metavar="ID", help="its id, or the beginning of it"
    )
    action("verify", "read and check all of it; exit status 1 if it is damaged")
    prune = action("prune", "take MKVs out and free the disk; no run may be using the pool")
    _add_criteria(prune)
    prune.add_argument("--dry-run", action="store_true", help="only say what would be done")


def _add_criteria(command: argparse.ArgumentParser) -> None:
    """Options that select MKVs: what meets all that are given; each may be repeated."""
    for name, kind, metavar, text in (
        ("node", str, "NAME", "uploaded by this node"),
        ("slot", int, "N", "of this slot"),
        ("fingerprint", str, "HASH", "with this fingerprint"),
        ("id", str, "ID", "this one"),
    ):
        command.add_argument(
            f"--{name}",
            type=kind,
            action="append",
            default=[],
            dest=f"{name}s",
            metavar=metavar,
            help=f"{text}; may be repeated",
        )
    command.add_argument(
        "--before-slot", type=int, default=0, metavar="N", help="of a slot before this one"
    )


def _run(options: argparse.Namespace) -> int:
    from fedit_app.flower_compat.launch import find_app
    from fedit_app.support.progress import Progress

    values = read_run_config(_preset(options), options.overrides)
    if options.resume is not None:
        values |= {"resume": True, "output-dir": str(options.resume.expanduser().absolute())}
    elif options.output_dir is not None:
        values["output-dir"] = str(options.output_dir.expanduser().absolute())
    app = find_app(options.app)
    # Ended from outside, a run cleans up just as it does when the user interrupts it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    prepare = _simulated if options.superlink is None else _deployed
    nodes, run = prepare(options, values)
    config = RunConfig.parse(values)
    with Progress(config, nodes) as progress:
        status = run(app, progress.line)
    if status != "finished:completed":
        sys.stderr.write(f"fedit: the run failed ({status}); see the log above\n")
        return 1
    folder = Path(config.output_dir or "~/fedit-runs/RUN-ID of the server")
    sys.stdout.write(f"results: {folder / 'results.json'}\nreport:  {folder / 'report.html'}\n")
    return 0


def _preset(options: argparse.Namespace) -> Path | None:
    """The file that a run's configuration comes from."""
    if options.resume is None:
        return options.config
    if options.config is not None or options.output_dir is not None:
        raise FedEditError("--resume takes configuration and folder from the run; leave out others")
    file = options.resume / "config.toml"
    if not file.is_file():
        raise FedEditError(f"--resume {options.resume}: not a run folder, it has no config.toml")
    return file


Runner = Callable[[Path, Callable[[str], None]], str]


def _simulated(options: argparse.Namespace, values: dict[str, ConfigValue]) -> tuple[int, Runner]:
    """Complete and check the values of a simulation; its number of nodes, and what runs it."""
    from fedit_app.experiments.preflight import check_simulation
    from fedit_app.flower_compat import launch

    if not values.get("output-dir"):
        values["output-dir"] = _run_folder(Path("runs"), options.config)
    nodes = check_simulation(RunConfig.parse(values), options.nodes)
    return nodes, lambda app, on_line: launch.simulate(app, values, nodes, on_line)


def _deployed(options: argparse.Namespace, values: dict[str, ConfigValue]) -> tuple[int, Runner]:
    """Complete and check the values of a run on real nodes; how many there are, what runs it."""
    from fedit_app.deployment.superlinks import find_superlink
    from fedit_app.experiments.preflight import check_deployment
    from fedit_app.flower_compat import launch

    superlink, server = find_superlink(options.superlink)
    if server is not None and not values.get("output-dir"):
        values["output-dir"] = _run_folder(server.path(server.settings.runs), options.config)
    if not values.get("federation"):
        values["federation"] = f"{_now()}-{secrets.token_hex(3)}"
    nodes = check_deployment(RunConfig.parse(values), superlink, options.nodes, server is not None)
    return nodes, lambda app, on_line: launch.deploy(app, values, superlink, on_line)


def _run_folder(parent: Path, preset: Path | None) -> str:
    return str(Path(parent, f"{preset.stem if preset else 'run'}-{_now()}").absolute())


def _now() -> str:
    return datetime.now().strftime("%Y%m%d-%H%M%S")


def _ask(options: argparse.Namespace) -> int:
    from fedit_app.cli.ask import ask

    sys.stdout.write(ask(options.place, options.node, options.federation, options.prompt))
    return 0


def _table(options: argparse.Namespace) -> int:
    from fedit_app.report import load_results, runs_table

    runs = [(folder.name, load_results(folder / "results.json")) for folder in options.run_dirs]
    sys.stdout.write(runs_table(runs).markdown() + "\n")
    return 0


def _stats(options: argparse.Namespace) -> int:
    from fedit_app.cli.stats import stats

    values = read_run_config(options.config, options.overrides)
    if options.layers is not None:
        values["layers"] = options.layers
    sys.stdout.write(stats(RunConfig.parse(values), options.save, options.load))
    return 0


def _tune(options: argparse.Namespace) -> int:
    from fedit_app.experiments.tune import tune

    config = RunConfig.parse(read_run_config(options.config, options.overrides))
    sys.stdout.write(tune(config, options.output, options.data, options.requests))
    return 0


def _pool(options: argparse.Namespace) -> int:
    from fedit_app.cli import pool
    from fedit_app.pool.prune import Criteria

    sound = True
    if options.action in ("list", "prune"):
        criteria = Criteria(
            frozenset(options.nodes),
            frozenset(options.slots),
            options.before_slot,
            frozenset(options.fingerprints),
            frozenset(options.ids),
        )
    if options.action == "stats":
        text = pool.stats(options.source, options.seed)
    elif options.action == "list":
        text = pool.listing(options.source, criteria, options.limit)
    elif options.action == "show":
        text = pool.show(options.source, options.id)
    elif options.action == "verify":
        text, sound = pool.verify(options.source)
    else:
        text = pool.pruned(options.source, criteria, options.dry_run)
    sys.stdout.write(text)
    return 0 if sound else 1


def _config(_: argparse.Namespace) -> int:
    sys.stdout.write(describe_keys() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
