"""`fedit server`: the server of a federation on real nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedit_app.cli.options import until_terminated
from fedit_app.cli.output import Format, FormatOption, say, write
from fedit_app.support.addresses import DEFAULT_PORT
from fedit_app.support.tables import Table

app = typer.Typer(
    name="server",
    help="Set up and run the server of a federation.",
    no_args_is_help=True,
    suggest_commands=False,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")]
NodeName = Annotated[str, typer.Option(help="The node's name.")]


@app.command()
def init(
    folder: Folder,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME-OR-IP",
            help="By which nodes reach the server; may be repeated; default: this machine alone.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="TCP port.")] = DEFAULT_PORT,
    ca_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your authority's certificate.")
    ] = None,
    ca_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its key, to sign the server's.")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The server's own certificate.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="And its key.")] = None,
) -> None:
    """Make a server's folder: keys, settings."""
    from fedit_app.deployment.server_setup import init_server, next_steps

    say(next_steps(init_server(folder, host or [], port, ca_cert, ca_key, cert, key)))


@app.command()
def register(
    folder: Folder,
    node_key: Annotated[Path, typer.Option(metavar="FILE.pub", help="The node's public key.")],
    name: NodeName,
) -> None:
    """Let a node in."""
    from fedit_app.deployment.server_folder import ServerFolder
    from fedit_app.flower_compat.registry import register_node

    fingerprint = register_node(ServerFolder.open(folder).superlink, node_key, name)
    say(
        f"{name} is registered with key {fingerprint}\n"
        "Compare this with what `fedit node register` shows its operator."
    )


@app.command()
def unregister(folder: Folder, name: NodeName) -> None:
    """Shut a node out."""
    from fedit_app.deployment.server_folder import ServerFolder
    from fedit_app.flower_compat.registry import unregister_node

    unregister_node(ServerFolder.open(folder).superlink, name)
    say(f"{name} is no longer registered")


@app.command()
def nodes(folder: Folder, form: FormatOption = Format.AUTO) -> None:
    """List the registered nodes."""
    from fedit_app.deployment.server_folder import ServerFolder
    from fedit_app.flower_compat.registry import registered_nodes
    from fedit_app.mkv.node_key import key_fingerprint

    found = registered_nodes(ServerFolder.open(folder).superlink)
    rows = [(node.name, node.status, key_fingerprint(node.public_key)) for node in found]
    if not rows and form is not Format.JSON:
        say("no node is registered yet")
        return
    write({"nodes": Table(("node", "status", "key"), rows, code=("key",))}, form)


@app.command()
def start(folder: Folder) -> int:
    """Run the server until it is terminated."""
    from fedit_app.deployment.server_folder import ServerFolder
    from fedit_app.deployment.serving import serve

    server = ServerFolder.open(folder)
    return until_terminated(lambda: serve(server))


@app.command()
def renew(folder: Folder) -> None:
    """Make a new server certificate."""
    from fedit_app.deployment.certificates import expires
    from fedit_app.deployment.server_folder import ServerFolder
    from fedit_app.deployment.server_setup import renew_certificate

    server = ServerFolder.open(folder)
    renew_certificate(server)
    say(
        f"{server.cert}: for {', '.join(server.settings.hosts)}, valid until "
        f"{expires(server.cert):%Y-%m-%d}; the server uses it from its next start on"
    )
