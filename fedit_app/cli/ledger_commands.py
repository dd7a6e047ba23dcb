"""The commands `fedit ledger`, `fedit rollback` and `fedit export`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_place(command: argparse.ArgumentParser) -> None:
    """Options that say which ledger a command is about."""
    command.add_argument(
        "place", type=Path, metavar="PLACE", help="folder of a run, a node or a ledger"
    )
    command.add_argument("--node", default="", metavar="NAME", help="whose ledger of a run")
    command.add_argument(
        "--federation",
        default="",
        metavar="NAME",
        help="which ledger of a node's folder; default: the only one",
    )


def add_ledger_commands(commands: Any) -> None:
    """Add the commands about ledgers.

    Args:
        commands: the subparsers of `fedit`, as argparse makes them.
    """
    ledger = commands.add_parser("ledger", help="look at a node's ledger, check it")
    actions = ledger.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the MKVs, a line each")
    show = actions.add_parser("show", help="one MKV and its history")
    verify = actions.add_parser("verify", help="check all of it; exit status 1 if it is damaged")
    for command, call in ((listing, _list), (show, _show), (verify, _verify)):
        add_place(command)
        command.set_defaults(command=call)
    show.add_argument("id", metavar="ID", help="its id, or the beginning of it")
    verify.add_argument(
        "--head", default="", metavar="HASH", help="an earlier head, which the journal has to hold"
    )

    rollback = commands.add_parser(
        "rollback", help="take MKVs out of a node's ledger, exactly, and do not let them come back"
    )
    add_place(rollback)
    which = rollback.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--mkv", action="append", metavar="ID", help="this MKV, by the beginning of its id"
    )
    which.add_argument("--from", dest="origin", metavar="NODE", help="all that NODE computed")
    which.add_argument("--after", type=int, metavar="SLOT", help="all accepted in a later slot")
    which.add_argument(
        "--allow", action="append", metavar="ID", help="let an MKV that was taken out come back"
    )
    rollback.add_argument("--dry-run", action="store_true", help="only say what would be done")
    rollback.add_argument(
        "--no-metrics", action="store_true", help="do not measure the model before and after"
    )
    rollback.set_defaults(command=_rollback)

    export = commands.add_parser("export", help="write a node's edited model for other software")
    add_place(export)
    export.add_argument(
        "--format",
        required=True,
        choices=("hf", "lora", "delta"),
        help="hf: a folder for transformers; lora: an adapter for PEFT; delta: the changes alone",
    )
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    export.add_argument(
        "--rank", type=int, metavar="R", help="lora: truncate to this rank; default: exact"
    )
    export.set_defaults(command=_export)


def _list(options: argparse.Namespace) -> int:
    from fedit_app.cli.ledger_listing import listing

    return _say(listing(_place(options)))


def _show(options: argparse.Namespace) -> int:
    from fedit_app.cli.ledger_listing import show

    return _say(show(_place(options), options.id))


def _verify(options: argparse.Namespace) -> int:
    from fedit_app.ledger.verify import verify

    text, sound = verify(_place(options), options.head)
    _say(text)
    return 0 if sound else 1


def _rollback(options: argparse.Namespace) -> int:
    from fedit_app.cli.rollback import allow, chosen, rollback

    place = _place(options)
    if options.allow:
        return _say(allow(place, options.allow, options.dry_run))
    ledger = place.open()
    ids = chosen(ledger, options.mkv or (), options.origin or "", options.after)
    return _say(rollback(place, ledger, ids, options.dry_run, not options.no_metrics))


def _export(options: argparse.Namespace) -> int:
    from fedit_app.ledger.export import export

    return _say(export(_place(options), options.format, options.output, options.rank))


def _place(options: argparse.Namespace) -> Any:
    from fedit_app.cli.places import find_place

    return find_place(options.place, options.node, options.federation)


def _say(text: str) -> int:
    sys.stdout.write(text)
    return 0
