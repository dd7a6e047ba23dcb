"""What a node finds out about its server: TLS, clocks, and whether the server knows its key."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedit_app.deployment.node_folder import NodeFolder
from fedit_app.support.addresses import Unreachable, join, split
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_json_atomic

_SECONDS = 10
# A node that is ahead by more, or behind by more, is refused by Flower (it signs the time).
_MOST_AHEAD, _MOST_BEHIND = 4, 300


def clock_offset(node: NodeFolder) -> float:
    """Ask the server for its time over TLS.

    Args:
        node: the node.

    Returns:
        By how many seconds this machine is ahead of the server.

    Raises:
        Unreachable: no answer.
        FedEditError: what answers is not trusted, or speaks no TLS.
    """
    host, port = split(node.settings.superlink, "superlink")
    address = join(host, port)
    connection = http.client.HTTPSConnection(
        host, port, timeout=_SECONDS, context=_trusting(node.ca_cert)
    )
    try:
        connection.request("HEAD", "/health")
        date = connection.getresponse().headers["date"]
    except ssl.SSLCertVerificationError as error:
        raise FedEditError(
            f"server {address}: its certificate is not trusted: {error.verify_message}; ask its "
            f"operator for the CA certificate ({node.ca_cert or 'ca-cert is empty'}) and for the "
            "name to use in superlink"
        ) from None
    except ssl.SSLError as error:
        raise FedEditError(
            f"server {address}: speaks no TLS ({error.reason}); is this the right port?"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(
            f"server {address}: not reachable ({error or type(error).__name__}); is it running, "
            "is its port open, is the name right?"
        ) from None
    finally:
        connection.close()
    if date is None:
        raise FedEditError(f"server {address}: answers, but is no SuperLink")
    return (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()


def check_clock(ahead: float) -> None:
    """Make sure that Flower takes this machine's signatures for fresh.

    Args:
        ahead: see `clock_offset`.

    Raises:
        FedEditError: the clocks differ too much.
    """
    if not -_MOST_BEHIND < ahead < _MOST_AHEAD:
        raise FedEditError(
            f"clock: this machine is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} "
            f"the server; Flower takes up to {_MOST_AHEAD} s ahead, {_MOST_BEHIND} s behind. Set "
            "both clocks by NTP"
        )


def _trusting(ca_cert: Path | None) -> ssl.SSLContext:
    """What Flower trusts: the given authority, or the ones that its HTTP library knows."""
    if ca_cert is None:
        return httpx.create_ssl_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=ca_cert)
    except (OSError, ssl.SSLError) as error:
        raise FedEditError(f"ca-cert {ca_cert}: cannot be used ({error})") from None
    return context


def read_private_key(node: NodeFolder) -> ec.EllipticCurvePrivateKey:
    """The node's private key.

    Raises:
        FedEditError: it cannot be read, or is of a kind that Flower does not take.
    """
    try:
        key = load_ssh_private_key(node.node_key.read_bytes(), None)
    except OSError as error:
        raise FedEditError(
            f"node key {node.node_key}: cannot be read ({error.strerror}); make one with "
            "`fedit node init` in a new folder, and have it registered"
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FedEditError(f"node key {node.node_key}: no private key ({error})") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FedEditError(f"node key {node.node_key}: Flower wants an elliptic key (NIST P-384)")
    return key


def is_registered(node: NodeFolder) -> bool:
    """Whether the server knows the node's key; afterwards the node is offline, ready to start.

    Flower has no question for this, so the node is activated and deactivated at once. It refuses
    to activate a node that it takes for online, as it does for a minute after one was killed, and
    says no more than for an unknown key. So the id that the server once gave is kept, and a node
    that can be deactivated by it is known.

    Args:
        node: a node that is not running.

    Raises:
        Unreachable: no answer.
        FedEditError: the key cannot be read, or the server refuses for another reason.
    """
    key = read_private_key(node)
    with _client(node, key) as client:
        found = _activate(client, key.public_key())
        if found is None and _is_known(client, node):
            found = _activate(client, key.public_key())
        if found is None:
            return False
        write_json_atomic(_id_file(node), {"node-id": found})
        client.DeactivateNode(DeactivateNodeRequest(node_id=found))
    return True


def _activate(client: FleetHttpClient, key: ec.EllipticCurvePublicKey) -> int | None:
    """The node's id at the server; None if it does not know the key, or takes it for online."""
    request = ActivateNodeRequest(
        public_key=public_key_to_bytes(key), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
    )
    try:
        return client.ActivateNode(request).node_id
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.PRECONDITION_FAILED:
            return None
        raise


def _is_known(client: FleetHttpClient, node: NodeFolder) -> bool:
    """Whether the key still belongs to the id that the server gave; the node is offline then."""
    try:
        known = int(json.loads(_id_file(node).read_text(encoding="utf-8"))["node-id"])
        client.DeactivateNode(DeactivateNodeRequest(node_id=known))
    except (OSError, ValueError, KeyError):
        return False
    except httpx.HTTPStatusError as error:
        return error.response.status_code != httpx.codes.UNAUTHORIZED
    return True


def _id_file(node: NodeFolder) -> Path:
    return node.home / "registration.json"


@contextmanager
def _client(node: NodeFolder, key: ec.EllipticCurvePrivateKey) -> Iterator[FleetHttpClient]:
    """A client of the server's Fleet API, as a SuperNode is one."""
    address = node.settings.superlink
    trusted = node.ca_cert.read_bytes() if node.ca_cert else None
    interceptors = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    try:
        with FleetHttpClient.from_server_address(address, False, trusted, interceptors) as client:
            yield client
    except httpx.HTTPStatusError as error:
        raise FedEditError(
            f"server {address}: refuses this node (HTTP status {error.response.status_code}); "
            "compare the clocks, and the versions of flwr, on both machines"
        ) from None
    except httpx.TransportError as error:
        raise Unreachable(f"server {address}: not reachable ({error})") from None
