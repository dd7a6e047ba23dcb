"""What several commands share: their arguments and options, and what these mean."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedit_app.cli.output import say
from fedit_app.support.errors import FedEditError

if TYPE_CHECKING:
    from fedit_app.config.run_config import ConfigValue

RUNNING = "Edit and federate"
LOOKING = "Look and undo"
DEPLOYING = "Deploy"
RESEARCH = "Research"
"""Panels of `fedit --help`."""


def _matching_keys(incomplete: str) -> list[str]:
    """Run-config keys for the completion of -c."""
    from fedit_app.config.run_config import RunConfig

    return [f"{key}=" for key in RunConfig().as_dict() if key.startswith(incomplete)]


ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.toml", help="Run-config preset.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "-c",
        metavar="KEY=VALUE",
        help="Override one run-config key; may be repeated. `fedit config` lists them.",
        autocompletion=_matching_keys,
    ),
]
App = Annotated[
    Path | None,
    typer.Option("--app", metavar="DIR", help="Flower app to run; default: FedEdit's own."),
]
Place = Annotated[
    Path,
    typer.Argument(metavar="PLACE", help="Folder of an edited model, a run, a node or a ledger."),
]
Node = Annotated[str, typer.Option(metavar="NAME", help="Whose ledger of a run.")]
Federation = Annotated[
    str,
    typer.Option(metavar="NAME", help="Which ledger of a node's folder; default: the only one."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def run_config(preset: Path | None, overrides: Sequence[str] | None) -> dict[str, ConfigValue]:
    """The run-config values that --config and -c give; see `read_run_config`."""
    from fedit_app.config.overrides import read_run_config

    # click keeps the "=" of -c=KEY=VALUE.
    return read_run_config(preset, [text.removeprefix("=") for text in overrides or ()])


def only_id(ids: Collection[str], beginning: str, what: str) -> str:
    """The one id with this beginning.

    Args:
        ids: all ids of a pool or a ledger.
        beginning: as much of the id as the user gave.
        what: "pool" or "ledger", for the error.

    Raises:
        FedEditError: there is none, or more than one.
    """
    found = [id_ for id_ in ids if beginning and id_.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    count = f"{len(found):,} MKVs" if found else "no MKV"
    remedy = "give more of it" if found else f"`fedit {what} list` shows what there is"
    raise FedEditError(f"{what}: {count} with an id that begins with {beginning!r}; {remedy}")


def until_terminated(serve: Callable[[], int]) -> int:
    """Run a server or a node until SIGINT, SIGTERM or the loss of its terminal; its exit status."""
    from fedit_app.support.processes import interrupt_when_terminated

    interrupt_when_terminated()
    try:
        return serve()
    except KeyboardInterrupt:
        say("ended")
        return 0
