"""`fedit keys`: the keys of a node, and of those that it trusts."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from fedit_app.cli.output import Format, FormatOption, say, write
from fedit_app.support.formats import plural, typed
from fedit_app.support.tables import Table

app = typer.Typer(
    name="keys",
    help="List, renew, revoke and end the keys of a node.",
    no_args_is_help=True,
    suggest_commands=False,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The other node's name.")]
Fingerprint = Annotated[
    str,
    typer.Option(
        "--key", metavar="SHA256:...", help="This key alone, by the beginning of its fingerprint."
    ),
]


@app.command("list")
def list_(folder: Folder, form: FormatOption = Format.AUTO) -> None:
    """List the keys that a node has and trusts, and what each opens."""
    from fedit_app.deployment.keys import keys_of
    from fedit_app.deployment.node_folder import NodeFolder

    rows = [
        (key.kind, key.whose, key.fingerprint, key.until, key.opens)
        for key in keys_of(NodeFolder.open(folder))
    ]
    columns = ("kind", "whose", "fingerprint", "until", "opens")
    write({"keys": Table(columns, rows, code=("fingerprint",))}, form)


@app.command()
def rotate(folder: Folder) -> None:
    """Make a new key pair for the node, and show what the server's operator needs."""
    from fedit_app.deployment.node_folder import NodeFolder
    from fedit_app.deployment.node_setup import handover, renew_key

    node = NodeFolder.open(folder)
    renew_key(node)
    say(handover(node))


@app.command()
def revoke(folder: Folder, name: Name, key: Fingerprint = "") -> None:
    """Accept another node's signatures no more."""
    from fedit_app.deployment.keys import revoke_peer
    from fedit_app.deployment.node_folder import NodeFolder

    count = revoke_peer(NodeFolder.open(folder), name, key)
    say(
        f"{plural(count, 'key')} of {name} revoked here, at once. MKVs that the ledger has stay: "
        f"fedit rollback {typed(folder)} --from {name} takes them out"
    )


@app.command()
def expire(
    folder: Folder,
    name: Name,
    until: Annotated[
        datetime,
        typer.Argument(
            metavar="DAY", formats=["%Y-%m-%d"], help="The last day, such as 2027-01-31."
        ),
    ],
    key: Fingerprint = "",
) -> None:
    """Accept another node's signatures up to a day."""
    from fedit_app.deployment.keys import expire_peer
    from fedit_app.deployment.node_folder import NodeFolder

    count = expire_peer(NodeFolder.open(folder), name, until.date(), key)
    say(f"{plural(count, 'key')} of {name} may sign until {until:%Y-%m-%d} (UTC)")
