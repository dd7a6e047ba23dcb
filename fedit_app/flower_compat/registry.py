"""Which nodes a server knows: registering, listing and removing them, over the control API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm

from fedit_app.config.settings import NAME_RULE, is_name
from fedit_app.flower_compat.connection import SuperLink
from fedit_app.flower_compat.contract import require
from fedit_app.mkv.node_key import (
    key_fingerprint,
    load_public_key,
    openssh_line,
    read_public_key,
)
from fedit_app.support.errors import FedEditError

with require("the registry of a server's nodes"):
    from flwr.proto.control_pb2 import (
        ListNodesRequest,
        RegisterNodeRequest,
        UnregisterNodeRequest,
    )
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes

ONLINE = "online"
_GONE = "unregistered"


@dataclass(frozen=True)
class RegisteredNode:
    """A node that a server knows.

    Attributes:
        node_id: Flower's id of it.
        name: its name.
        status: online, offline, registered (never seen yet), or unregistered.
        public_key: its key, in OpenSSH's form.
    """

    node_id: int
    name: str
    status: str
    public_key: str


def registered_nodes(superlink: SuperLink) -> list[RegisteredNode]:
    """The nodes that a server knows, in the order of their names.

    Raises:
        FedEditError: the server does not answer, or not from here.
    """
    return [node for node in _all_nodes(superlink) if node.status != _GONE]


def register_node(superlink: SuperLink, key_file: Path, name: str) -> str:
    """Make a node's key known to a server; nothing changes if it is already, by this name.

    Args:
        superlink: a running server.
        key_file: the public key, NAME.pub.
        name: the node's name.

    Returns:
        The key's fingerprint, to be compared with the node's operator.

    Raises:
        FedEditError: no such key, name or key belong to another node, or the server does not
            answer.
    """
    if not is_name(name):
        raise FedEditError(f"--name {name!r}: must be {NAME_RULE}")
    public = read_public_key(key_file)
    for node in _all_nodes(superlink):
        if node.status == _GONE:
            if node.public_key == public:
                raise FedEditError(
                    f"--node-key {key_file}: was unregistered, and Flower takes no key twice; its "
                    "operator makes a new one: fedit keys rotate DIR"
                )
            continue
        if (node.name, node.public_key) == (name, public):
            return key_fingerprint(public)
        if node.name == name:
            raise FedEditError(
                f"--name {name}: is registered with another key, "
                f"{key_fingerprint(node.public_key)}; remove it first: fedit server unregister"
            )
        if node.public_key == public:
            raise FedEditError(f"--node-key {key_file}: is registered as {node.name!r} already")
    encoded = public_key_to_bytes(load_public_key(public))
    with _control(superlink) as client:
        client.RegisterNode(RegisterNodeRequest(public_key=encoded, name=name))
    return key_fingerprint(public)


def unregister_node(superlink: SuperLink, name: str) -> None:
    """Make a server forget a node; if it is connected, its SuperNode ends.

    Raises:
        FedEditError: no such node, or the server does not answer.
    """
    nodes = registered_nodes(superlink)
    chosen = [node for node in nodes if node.name == name]
    if not chosen:
        known = ", ".join(node.name for node in nodes) or "none"
        raise FedEditError(f"--name {name}: no node of that name; registered are: {known}")
    with _control(superlink) as client:
        client.UnregisterNode(UnregisterNodeRequest(node_id=chosen[0].node_id))


def _all_nodes(superlink: SuperLink) -> list[RegisteredNode]:
    """The nodes that a server knows, those included that it has shut out."""
    with _control(superlink) as client:
        found = client.ListNodes(ListNodesRequest()).nodes_info
    nodes = [
        RegisteredNode(node.node_id, node.name, node.status, openssh_key(node.public_key))
        for node in found
    ]
    return sorted(nodes, key=lambda node: (node.name, node.node_id))


def openssh_key(encoded: bytes) -> str:
    """A key as Flower keeps it, in OpenSSH's form; "" for what is no key."""
    try:
        return openssh_line(bytes_to_public_key(encoded))
    except (ValueError, UnsupportedAlgorithm):
        return ""


@contextmanager
def _control(superlink: SuperLink) -> Iterator[ControlHttpClient]:
    trusted = superlink.root_certificates
    try:
        with ControlHttpClient.from_server_address(
            superlink.address,
            superlink.insecure,
            trusted.read_bytes() if trusted else None,
            [RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        ) as client:
            yield client
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.FORBIDDEN:
            reason = "refuses this machine; see control-from in its server.toml"
        else:
            reason = f"answers with status {error.response.status_code}: {error.response.text}"
        raise FedEditError(f"server {superlink.address}: {reason}") from None
    except httpx.TransportError as error:
        raise FedEditError(
            f"server {superlink.address}: does not answer ({error}); start it: fedit server start"
        ) from None
    except OSError as error:
        raise FedEditError(f"CA certificate {trusted}: cannot be read ({error})") from None
