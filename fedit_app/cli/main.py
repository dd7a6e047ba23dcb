"""The `fedit` command."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import click
import typer

from fedit_app.cli import (
    ask,
    chat,
    compare,
    config,
    doctor,
    edit,
    export,
    keys,
    ledger,
    node,
    pool,
    rollback,
    run,
    server,
    stats,
    table,
    tune,
    watch,
)
from fedit_app.cli.options import DEPLOYING, LOOKING, RESEARCH, RUNNING
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import not_writable
from fedit_app.support.formats import printable
from fedit_app.support.log import set_up_logging

_BAD_INPUT = 2
_INTERRUPTED = 130

app = typer.Typer(
    name="fedit",
    no_args_is_help=True,
    suggest_commands=False,  # click suggests them itself
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, dict[str, Callable[..., int | None]]] = {
    RUNNING: {
        "edit": edit.edit,
        "run": run.run,
        "watch": watch.watch,
        "ask": ask.ask,
        "chat": chat.chat,
        "config": config.config,
    },
    LOOKING: {"table": table.table, "rollback": rollback.rollback, "export": export.export},
    DEPLOYING: {"doctor": doctor.doctor},
    RESEARCH: {
        "compare": compare.compare,
        "sweep": compare.sweep,
        "tune": tune.tune,
        "stats": stats.stats,
    },
}
for panel, commands in _COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)
for group, panel in (
    (pool.app, LOOKING),
    (ledger.app, LOOKING),
    (server.app, DEPLOYING),
    (node.app, DEPLOYING),
    (keys.app, DEPLOYING),
):
    app.add_typer(group, rich_help_panel=panel)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"fedit {version('fedit')}\n")
        raise typer.Exit()


@app.callback()
def _fedit(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Federated knowledge editing: share corrections of a language model, not texts."""


@functools.cache
def whole_command() -> click.Command:
    """The `fedit` command, with all that are below it."""
    built = typer.main.get_command(app)
    _expand_home(built)
    return built


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `fedit` command.

    Args:
        arguments: command line without the program's name; None for the process's own.

    Returns:
        Exit status: 0 done, 1 the run failed, 2 bad input, 130 interrupted.
    """
    set_up_logging()
    try:
        status = whole_command().main(arguments, prog_name="fedit", standalone_mode=False)
    except FedEditError as error:
        return _refuse(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return _BAD_INPUT
    except click.UsageError as error:
        where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        return _refuse(" ".join(error.format_message().split()).rstrip(".") + where)
    except Exception as error:
        reason = not_writable(error)
        if not reason:
            raise
        place = getattr(error, "filename", None) or "a file"
        return _refuse(f"{place}: cannot be written ({reason}); free some space and repeat it")
    if status == _INTERRUPTED:
        sys.stderr.write("fedit: interrupted\n")
    return status or 0


class _UserPath(click.Path):
    """A path in which `~` is the user's home: no shell expands it in `--output=~/edited`."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        return super().convert(os.path.expanduser(value), param, ctx)


def _expand_home(command: click.Command) -> None:
    """Let every parameter of a command, and of those below it, that is a path be a `_UserPath`."""
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            parameter.type = _UserPath()
    for below in getattr(command, "commands", {}).values():
        _expand_home(below)


def _refuse(reason: str) -> int:
    sys.stderr.write(f"fedit: error: {printable(reason)}\n")
    return _BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
