"""The commands `fedit server`, `fedit node` and `fedit doctor`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the commands of a deployment.

    Args:
        commands: the subparsers of `fedit`, as argparse makes them.
    """
    server = commands.add_parser("server", help="set up and run the server of a federation")
    _add_server(server.add_subparsers(required=True, metavar="COMMAND"))
    node = commands.add_parser("node", help="set up and run a node of a federation")
    _add_node(node.add_subparsers(required=True, metavar="COMMAND"))
    doctor = commands.add_parser("doctor", help="check a server, a node, or just this machine")
    doctor.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="of server or node")
    doctor.set_defaults(command=_doctor)


def _add_server(commands: Any) -> None:
    init = _command(commands, "init", "make a server's folder: keys, settings", _server_init)
    init.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME-OR-IP",
        help="by which nodes reach the server; may be repeated; default: this machine alone",
    )
    init.add_argument("--port", type=int, default=8000, help="TCP port (%(default)s)")
    init.add_argument("--ca-cert", type=Path, metavar="FILE", help="your authority's certificate")
    init.add_argument("--ca-key", type=Path, metavar="FILE", help="its key, to sign the server's")
    init.add_argument("--cert", type=Path, metavar="FILE", help="the server's own certificate")
    init.add_argument("--key", type=Path, metavar="FILE", help="and its key")
    register = _command(commands, "register", "let a node in", _server_register)
    register.add_argument(
        "--node-key", type=Path, required=True, metavar="FILE.pub", help="its public key"
    )
    register.add_argument("--name", required=True, help="its name")
    remove = _command(commands, "unregister", "shut a node out", _server_unregister)
    remove.add_argument("--name", required=True, help="its name")
    _command(commands, "nodes", "list the registered nodes", _server_nodes)
    _command(commands, "start", "run the server until it is ended", _server_start)
    _command(commands, "renew", "make a new server certificate", _server_renew)


def _add_node(commands: Any) -> None:
    init = _command(commands, "init", "make a node's folder: key, settings, policy", _node_init)
    init.add_argument("--name", required=True, help="by which the federation knows the node")
    init.add_argument("--superlink", default="", metavar="HOST:PORT", help="the server")
    init.add_argument("--ca-cert", type=Path, metavar="FILE", help="from the server's operator")
    init.add_argument("--data", type=Path, metavar="FILE", help="edit requests, JSON lines")
    init.add_argument(
        "--model", default="", metavar="PATH", help="folder or hub id; default: the run's"
    )
    init.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    init.add_argument(
        "--federation-key",
        type=Path,
        metavar="FILE",
        help="the key that all nodes share; default: make one, to be given to the others",
    )
    register = _command(
        commands, "register", "show what the server's operator needs", _node_register
    )
    register.add_argument("--new-key", action="store_true", help="make a new key pair first")
    _command(commands, "start", "run the node until it is ended", _node_start)
    trust = _command(commands, "trust", "accept the signatures of another node", _node_trust)
    trust.add_argument("name", metavar="NAME", help="the other node's name")
    trust.add_argument("public_key", type=Path, metavar="FILE.pub", help="its public key")
    key = commands.add_parser("key", help="the federation key, which all nodes share")
    keys = key.add_subparsers(required=True, metavar="COMMAND")
    new = keys.add_parser("new", help="make one, to be given to all nodes")
    new.add_argument("file", type=Path, metavar="FILE", help="a file that does not exist")
    new.set_defaults(command=_node_key_new)
    _command(keys, "show", "show the id of a node's key, not the key", _node_key_show)
    take = _command(keys, "take", "give a node the key of a file", _node_key_take)
    take.add_argument("file", type=Path, metavar="FILE", help="as another organisation has it")


def _command(commands: Any, name: str, text: str, call: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the server or node")
    parser.set_defaults(command=call)
    return parser


def _say(text: str) -> int:
    sys.stdout.write(text.rstrip("\n") + "\n")
    return 0


def _until_ended(run: Any, folder: Any) -> int:
    """Run until SIGINT, SIGTERM or the loss of the terminal: so a server or node is to end."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    try:
        return run(folder)
    except KeyboardInterrupt:
        return _say("ended")


def _server_init(options: argparse.Namespace) -> int:
    from fedit_app.deployment.server_folder import init_server, next_steps

    server = init_server(
        options.folder,
        options.host,
        options.port,
        options.ca_cert,
        options.ca_key,
        options.cert,
        options.key,
    )
    return _say(next_steps(server))


def _server_register(options: argparse.Namespace) -> int:
    from fedit_app.deployment.server_folder import ServerFolder
    from fedit_app.flower_compat.registry import register_node

    superlink = ServerFolder.open(options.folder).superlink
    fingerprint = register_node(superlink, options.node_key, options.name)
    return _say(
        f"{options.name} is registered with key {fingerprint}\n"
        "Compare this with what `fedit node register` shows its operator."
    )


def _server_unregister(options: argparse.Namespace) -> int:
    from fedit_app.deployment.server_folder import ServerFolder
    from fedit_app.flower_compat.registry import unregister_node

    unregister_node(ServerFolder.open(options.folder).superlink, options.name)
    return _say(f"{options.name} is no longer registered")


def _server_nodes(options: argparse.Namespace) -> int:
    from fedit_app.deployment.certificates import key_fingerprint
    from fedit_app.deployment.server_folder import ServerFolder
    from fedit_app.flower_compat.registry import registered_nodes

    nodes = registered_nodes(ServerFolder.open(options.folder).superlink)
    lines = [f"{n.name:24} {n.status:12} {key_fingerprint(n.public_key)}" for n in nodes]
    return _say("\n".join(lines) or "no node is registered yet")


def _server_start(options: argparse.Namespace) -> int:
    from fedit_app.deployment.server_folder import ServerFolder
    from fedit_app.deployment.serving import serve

    return _until_ended(serve, ServerFolder.open(options.folder))


def _server_renew(options: argparse.Namespace) -> int:
    from fedit_app.deployment.certificates import expires
    from fedit_app.deployment.server_folder import ServerFolder, renew_certificate

    server = ServerFolder.open(options.folder)
    renew_certificate(server)
    return _say(
        f"{server.cert}: for {', '.join(server.settings.hosts)}, valid until "
        f"{expires(server.cert):%Y-%m-%d}; it counts from the next start of the server on"
    )


def _node_init(options: argparse.Namespace) -> int:
    from fedit_app.deployment.node_folder import init_node, next_steps

    node = init_node(
        options.folder,
        options.name,
        options.superlink,
        options.ca_cert,
        options.data,
        options.model,
        options.device,
        options.federation_key,
    )
    return _say(next_steps(node))


def _node_trust(options: argparse.Namespace) -> int:
    from fedit_app.deployment.node_folder import PEERS, NodeFolder, trust_peer

    node = NodeFolder.open(options.folder)
    fingerprint = trust_peer(node, options.name, options.public_key)
    lines = [
        f"{options.name} may sign with {fingerprint}",
        "Compare this with what its operator sees by `fedit node register`.",
    ]
    if not node.policy.peers:
        lines.append(
            f'Signatures are not looked at yet: peers = "{PEERS}" in [policy] of node.toml'
        )
    return _say("\n".join(lines))


def _node_key_new(options: argparse.Namespace) -> int:
    from fedit_app.mkv.federation_key import FederationKey

    key = FederationKey.new()
    key.write(options.file)
    return _say(
        f"{options.file}: federation key {key.id}; give it to every node of the federation, and to "
        "nobody else, the server's operator included"
    )


def _node_key_show(options: argparse.Namespace) -> int:
    from fedit_app.deployment.node_folder import NodeFolder
    from fedit_app.mkv.federation_key import FederationKey

    file = NodeFolder.open(options.folder).federation_key
    return _say(f"{file}: federation key {FederationKey.read(file).id}" if file else "none")


def _node_key_take(options: argparse.Namespace) -> int:
    from fedit_app.deployment.node_folder import NodeFolder, take_federation_key

    node = NodeFolder.open(options.folder)
    key = take_federation_key(node, options.file)
    return _say(f"{node.federation_key}: federation key {key.id}; it counts at once")


def _node_register(options: argparse.Namespace) -> int:
    from fedit_app.deployment.node_folder import NodeFolder, handover, renew_key

    node = NodeFolder.open(options.folder)
    if options.new_key:
        renew_key(node)
    return _say(handover(node))


def _node_start(options: argparse.Namespace) -> int:
    from fedit_app.deployment.joining import join_federation
    from fedit_app.deployment.node_folder import NodeFolder

    return _until_ended(join_federation, NodeFolder.open(options.folder))


def _doctor(options: argparse.Namespace) -> int:
    from fedit_app.deployment.doctor import examine

    return examine(options.folder)
