"""Whether a server knows a node's key, asked over Flower's Fleet API as a SuperNode would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from fedit_app.flower_compat.connection import SuperLink
from fedit_app.flower_compat.contract import require
from fedit_app.support.addresses import Unreachable
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_json_atomic

with require("asking a server for a node's registration"):
    from flwr.common.constant import (
        HEARTBEAT_DEFAULT_INTERVAL,
        SYSTEM_TIME_TOLERANCE,
        TIMESTAMP_TOLERANCE,
    )
    from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supercore.protobuf.client import ProtobufClientInterceptor
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

MOST_AHEAD, MOST_BEHIND = SYSTEM_TIME_TOLERANCE - 1, TIMESTAMP_TOLERANCE
"""Seconds by which a node's clock may be off: Flower signs the time of a message. HTTP tells the
server's to a second."""


def is_registered(superlink: SuperLink, key: ec.EllipticCurvePrivateKey, id_file: Path) -> bool:
    """Whether the server knows a node's key; afterwards the node is offline, ready to start.

    Flower has no question for this, so the node is activated and deactivated at once. It refuses
    to activate a node that it takes for online, as it does for a minute after one was killed, with
    the same answer as for an unknown key. So the id that the server once gave is kept, and a node
    that can be deactivated by it is known.

    Args:
        superlink: the server.
        key: of a node that is not running.
        id_file: JSON file in which the node keeps the id that the server has given it.

    Raises:
        Unreachable: no answer.
        FedEditError: the server refuses for another reason.
    """
    with _client(superlink, key) as client:
        found = _activate(client, key.public_key())
        if found is None and _is_known(client, id_file):
            found = _activate(client, key.public_key())
        if found is None:
            return False
        write_json_atomic(id_file, {"node-id": found})
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


def _is_known(client: FleetHttpClient, id_file: Path) -> bool:
    """Whether the key still belongs to the id that the server gave; the node is offline then."""
    try:
        known = int(json.loads(id_file.read_text(encoding="utf-8"))["node-id"])
        client.DeactivateNode(DeactivateNodeRequest(node_id=known))
    except (OSError, ValueError, KeyError):
        return False
    except httpx.HTTPStatusError as error:
        return error.response.status_code != httpx.codes.UNAUTHORIZED
    return True


@contextmanager
def _client(superlink: SuperLink, key: ec.EllipticCurvePrivateKey) -> Iterator[FleetHttpClient]:
    """A client of the server's Fleet API, as a SuperNode has one."""
    trusted = superlink.root_certificates
    interceptors: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    try:
        with FleetHttpClient.from_server_address(
            superlink.address,
            superlink.insecure,
            trusted.read_bytes() if trusted else None,
            interceptors,
        ) as client:
            yield client
    except httpx.HTTPStatusError as error:
        raise FedEditError(
            f"server {superlink.address}: refuses this node (HTTP status "
            f"{error.response.status_code}); compare the clocks, and the versions of flwr, on both "
            "machines"
        ) from None
    except httpx.TransportError as error:
        raise Unreachable(f"server {superlink.address}: not reachable ({error})") from None
