"""Making a node's folder, and changing the keys in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fedit_app.config.documentation import commented_keys
from fedit_app.config.limits import Limits
from fedit_app.config.policy import Policy
from fedit_app.deployment.keys import check_peer
from fedit_app.deployment.node_folder import NODE_FILE, NodeFolder, NodeSettings, check_name
from fedit_app.deployment.services import write_services
from fedit_app.flower_compat.bundle import app_hash, read_bundle
from fedit_app.ledger.index import INDEX, sign_ledger
from fedit_app.mkv.authorship import SigningKey
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.node_key import key_fingerprint, make_node_key, read_public_key
from fedit_app.node.peers import PeerKey, read_peer, write_peer
from fedit_app.support.addresses import split
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_file, write_private
from fedit_app.support.formats import typed

REQUESTS = "requests.jsonl"

_HEAD = """\
# A FedEdit node, made by `fedit node init`. Relative paths are relative to this folder.
# A change counts from the next start of the node on; one of policy or limits at once.

"""
_POLICY_HEAD = """
# What this organisation gives and takes. It is enforced here, on the node.
[policy]
"""
_APPS = re.compile(r"^(?:# )?apps = \[.*\]$", re.MULTILINE)
_LIMITS_HEAD = """
# What a run may ask for: the server chooses a run's settings, within these bounds.
[limits]
"""


def init_node(
    folder: Path,
    name: str,
    superlink: str = "",
    ca_cert: Path | None = None,
    data: Path | None = None,
    model: str | None = None,
    device: str = "auto",
    federation_key: Path | None = None,
    ledger: Path | None = None,
) -> NodeFolder:
    """Make a node's folder: key pair, federation key, node.toml, start script, systemd unit.

    Keys that the folder holds already are kept.

    Args:
        folder: the folder; made if it does not exist.
        name: the node's name.
        superlink: HOST:PORT of the server; empty: to be written into node.toml.
        ca_cert: the authority's certificate, which is copied; None: to be put there.
        data: the file of edit requests; None: to be written into node.toml.
        model: see `NodeSettings`.
        device: see `NodeSettings`.
        federation_key: the federation's key, which is copied; None: a new one is made.
        ledger: folder of an edited model, see `NodeSettings`; without `data`, the requests of its
            ledger are copied into the folder as the node's data.

    Raises:
        FedEditError: the folder is a node's already, or a value is wrong.
    """
    folder = folder.expanduser().absolute()
    if (folder / NODE_FILE).exists():
        raise FedEditError(
            f"{folder}: is already a node's folder; edit its {NODE_FILE}, or choose another folder"
        )
    check_name(name, "--name")
    if superlink:
        split(superlink, "--superlink")
    shared = FederationKey.new() if federation_key is None else FederationKey.read(federation_key)
    for option, file in (("--ca-cert", ca_cert), ("--data", data)):
        if file is not None and not file.expanduser().is_file():
            raise FedEditError(f"{option} {file}: no such file")
    texts = None
    if ledger is not None:
        from fedit_app.node.adoption import texts_of  # needs torch

        ledger = ledger.expanduser().absolute()
        texts = None if data else texts_of(ledger, "--ledger").read_bytes()
    if model and Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().absolute())
    settings = NodeSettings(
        name=name,
        superlink=superlink,
        node_key=f"{name}.key",
        data_path=str(data.expanduser().absolute()) if data else REQUESTS if texts else "",
        ledger=str(ledger) if ledger else None,
        model=model,
        device=device,
    )
    node = NodeFolder(folder, settings, Policy(), Limits())
    for part in (folder, node.state_dir):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if texts is not None:
        write_private(folder / REQUESTS, texts, replace=True)
    if ca_cert is not None:
        write_file(folder / "ca.crt", ca_cert.expanduser().read_bytes())
    if not node.node_key.exists():
        _make_key(node)
    if node.federation_key is not None and not node.federation_key.exists():
        shared.write(node.federation_key)
    write_services(folder, "node", f"fedit-node-{name}", f"FedEdit node {name}")
    text = _HEAD + commented_keys(settings) + _POLICY_HEAD + commented_keys(node.policy)
    write_file(folder / NODE_FILE, text + _LIMITS_HEAD + commented_keys(node.limits))
    return node


def renew_key(node: NodeFolder) -> None:
    """Give a node a new key pair, and sign its ledgers' heads with it.

    The old private key is kept as NAME.key.old.

    Raises:
        FedEditError: a ledger's head is not the one that was signed.
    """
    if node.node_key.exists():
        node.node_key.replace(node.node_key.with_suffix(".key.old"))
    _make_key(node)
    key = SigningKey.read(node.node_key)
    for index in sorted((node.state_dir / node.settings.name).glob(f"*/ledger/{INDEX}")):
        sign_ledger(index.parent, key)


def trust_peer(node: NodeFolder, name: str, file: Path) -> str:
    """Add a public key to those that another node may sign with.

    Args:
        node: the node that is to trust.
        name: the other node's name.
        file: its public key.

    Returns:
        The fingerprint of the key.

    Raises:
        FedEditError: the name cannot be one, the file holds no public key, or one that is not the
            other node's (see `check_peer`).
    """
    check_name(name, "NAME")
    public = read_public_key(file.expanduser())
    check_peer(node, name, public)
    listed = node.peers / f"{name}.pub"
    before = read_peer(listed) if listed.exists() else []
    write_peer(listed, [*(key for key in before if key.public != public), PeerKey(public)])
    return key_fingerprint(public)


def allow_app(node: NodeFolder, place: Path) -> str:
    """Add an app bundle to those that a node runs.

    Args:
        node: the node.
        place: a .fab file, or an app's folder.

    Returns:
        The bundle's hash.

    Raises:
        FedEditError: there is no bundle, or the line of `apps` in node.toml cannot be changed.
    """
    found = app_hash(read_bundle(place))
    apps = tuple(dict.fromkeys([*(node.settings.apps or ()), found]))
    file, line = node.folder / NODE_FILE, f"apps = {json.dumps(apps)}"
    text = file.read_text(encoding="utf-8")
    changed, count = _APPS.subn(line, text)
    if count != 1:
        raise FedEditError(f"{file}: has no line `apps = [...]` to change; write into it: {line}")
    write_file(file, changed)
    return found


def take_federation_key(node: NodeFolder, file: Path) -> FederationKey:
    """Give a node the federation key of a file; the old one is kept as federation.key.old.

    Raises:
        FedEditError: the file holds no key, or node.toml says that the node has none.
    """
    own, taken = _federation_key_file(node), FederationKey.read(file.expanduser())
    if own.exists():
        if FederationKey.read(own) == taken:
            return taken
        own.replace(own.with_suffix(".key.old"))
    taken.write(own)
    return taken


def _federation_key_file(node: NodeFolder) -> Path:
    if node.federation_key is None:
        raise FedEditError(
            f"{node.folder / NODE_FILE}: federation-key is empty; name a file there first"
        )
    return node.federation_key


def _make_key(node: NodeFolder) -> None:
    pair = make_node_key()
    write_file(node.public_key, pair.public)
    write_private(node.node_key, pair.private)


def next_steps(node: NodeFolder) -> str:
    """What to do with a new node's folder, for its operator."""
    where, missing = node.folder, _to_be_given(node)
    file = _federation_key_file(node)
    key = FederationKey.read(file)
    first = f"Write into {NODE_FILE}: {', '.join(missing)}" if missing else f"Read {NODE_FILE}"
    return f"""\
node folder {where}

1. {first}
2. {handover(node)}
3. All nodes need the same federation key; {file.name} has the id {key.id}.
   The first organisation gives its file to the others, but not to the server's operator; there:
     fedit node key take DIR FILE
4. Check:  fedit doctor {typed(where)}
5. Start:  fedit node start {typed(where)}
   or with systemd: {where / f"fedit-node-{node.settings.name}.service"}
"""


def _to_be_given(node: NodeFolder) -> list[str]:
    """What a new node's operator has to write into node.toml, or to put beside it."""
    needed = {"superlink": node.settings.superlink, "data-path": node.settings.data_path}
    found = [name for name, value in needed.items() if not value]
    if node.ca_cert is not None and not node.ca_cert.is_file():
        found.append(f"the server's CA certificate as {node.ca_cert}")
    return found


def handover(node: NodeFolder) -> str:
    """How the node's public key comes to the server, for its operator."""
    public = read_public_key(node.public_key)
    return f"""\
Send {node.public_key} to the server's operator, and compare its fingerprint
   by another way, such as the telephone: {key_fingerprint(public)}
   There, while the server runs:
     fedit server register DIR --node-key {node.public_key.name} --name {node.settings.name}"""
