"""`fedit node`: a node of a federation, at its organisation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedit_app.cli.options import until_terminated
from fedit_app.cli.output import say

app = typer.Typer(
    name="node",
    help="Set up and run a node of a federation.",
    no_args_is_help=True,
    suggest_commands=False,
)
key_app = typer.Typer(
    name="key",
    help="The federation key, which all nodes share.",
    no_args_is_help=True,
    suggest_commands=False,
)
app.add_typer(key_app)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.")]


@app.command()
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="By which the federation knows the node.")],
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server.")] = "",
    ca_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="From the server's operator.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Edit requests, JSON lines.")
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="PATH", help="Folder or hub id; default: the run's.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    federation_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The key that all nodes share; default: make one, to be given to the others.",
        ),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="An edited model (fedit edit) whose MKVs the node takes along; default of --data: "
            "its requests.",
        ),
    ] = None,
) -> None:
    """Make a node's folder: key, settings, policy."""
    from fedit_app.deployment.node_setup import init_node, next_steps

    node = init_node(folder, name, superlink, ca_cert, data, model, device, federation_key, ledger)
    say(next_steps(node))


@app.command()
def register(folder: Folder) -> None:
    """Show what the server's operator needs."""
    from fedit_app.deployment.node_folder import NodeFolder
    from fedit_app.deployment.node_setup import handover

    say(handover(NodeFolder.open(folder)))


@app.command()
def start(folder: Folder) -> int:
    """Run the node until it is terminated."""
    from fedit_app.deployment.joining import join_federation
    from fedit_app.deployment.node_folder import NodeFolder

    node = NodeFolder.open(folder)
    return until_terminated(lambda: join_federation(node))


@app.command()
def trust(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The other node's name.")],
    public_key: Annotated[Path, typer.Argument(metavar="FILE.pub", help="Its public key.")],
) -> None:
    """Accept the signatures of another node."""
    from fedit_app.deployment.node_folder import PEERS, NodeFolder
    from fedit_app.deployment.node_setup import trust_peer

    node = NodeFolder.open(folder)
    fingerprint = trust_peer(node, name, public_key)
    say(
        f"{name} may sign with {fingerprint}\n"
        "Compare this with what its operator sees by `fedit node register`."
    )
    if not node.policy.peers:
        say(f'Signatures are not checked yet: set peers = "{PEERS}" in [policy] of node.toml')


@app.command()
def allow(
    folder: Folder,
    bundle: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .fab file, or the folder of an app.")
    ],
) -> None:
    """Let the node run an app, by its hash; others it then refuses."""
    from fedit_app.deployment.node_folder import NodeFolder
    from fedit_app.deployment.node_setup import allow_app

    found = allow_app(NodeFolder.open(folder), bundle)
    say(f"{found} may run here, from the next start of the node on")


@key_app.command("new")
def new_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that does not exist.")],
) -> None:
    """Make one, to be given to all nodes."""
    from fedit_app.mkv.federation_key import FederationKey

    key = FederationKey.new()
    key.write(file)
    say(
        f"{file}: federation key {key.id}; give it to every node of the federation, and to "
        "nobody else, the server's operator included"
    )


@key_app.command("show")
def show_key(folder: Folder) -> None:
    """Show the id of a node's key, not the key."""
    from fedit_app.deployment.node_folder import NodeFolder
    from fedit_app.mkv.federation_key import FederationKey

    file = NodeFolder.open(folder).federation_key
    say(f"{file}: federation key {FederationKey.read(file).id}" if file else "none")


@key_app.command("take")
def take_key(
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As another organisation has it.")],
) -> None:
    """Give a node the key of a file."""
    from fedit_app.deployment.node_folder import NodeFolder
    from fedit_app.deployment.node_setup import take_federation_key

    node = NodeFolder.open(folder)
    key = take_federation_key(node, file)
    say(f"{node.federation_key}: federation key {key.id}; it counts at once")
