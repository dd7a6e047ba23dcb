"""Starting a node."""

from __future__ import annotations

import logging
import sys
import time

import tomli_w

from fedit_app.deployment.foreground import alone, foreground
from fedit_app.deployment.node_folder import NodeFolder
from fedit_app.deployment.node_setup import handover
from fedit_app.deployment.reaching import check_clock, clock_offset
from fedit_app.facts.jsonl import read_requests
from fedit_app.flower_compat.fleet import is_registered
from fedit_app.flower_compat.supernode import OPTION
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.node_key import read_private_key
from fedit_app.support.addresses import Unreachable
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import check_private, write_file
from fedit_app.support.processes import free_port, tool

logger = logging.getLogger(__name__)

_SOUND_SECONDS = 20.0
"""A SuperNode that ran for longer was not stopped by wrong settings."""
_RETRY_SECONDS = 5


def join_federation(node: NodeFolder) -> int:
    """Run a node's SuperNode until it is stopped.

    Waits for a server that does not answer yet. A SuperNode exits when its server fails; it is
    restarted if it ran well until then.

    Args:
        node: the node's folder.

    Returns:
        1: it exited soon after its start. (Stopping it raises KeyboardInterrupt.)

    Raises:
        FedEditError: it is already running; its files cannot be used; the server is not trusted, or
            the node is not registered there.
    """
    name = node.settings.name
    with alone(node.home):
        read_private_key(node.node_key)
        check_private(node.node_key)
        if node.federation_key is not None:
            FederationKey.read(node.federation_key)
        requests = read_requests(node.data_path)
        wait_for_server(node)
        while (lived := _run(node, len(requests))) >= _SOUND_SECONDS:
            logger.warning("node %s: restarting it after %.0f s", name, lived)
            time.sleep(_RETRY_SECONDS)
            wait_for_server(node)
        _check_server(node)
    return 1


def _run(node: NodeFolder, requests: int) -> float:
    """Run the SuperNode until it exits; returns its running time in seconds."""
    name, started = node.settings.name, time.monotonic()
    if node.settings.apps is None:
        logger.warning(
            "node %s: trusts the server with code: it runs whatever app a run brings, until apps "
            "in node.toml lists some (`fedit node allow`)",
            name,
        )
    with foreground(_command(node), node.home) as process:
        server = node.settings.superlink
        logger.info("node %s: started with %d edit requests, server %s", name, requests, server)
        process.wait()
        status = process.returncode
        logger.error("node %s: the SuperNode ended by itself (exit %d), see above", name, status)
    return time.monotonic() - started


def wait_for_server(node: NodeFolder) -> None:
    """Wait until the server answers, and check that the node is registered there.

    Args:
        node: a node that is not running.

    Raises:
        FedEditError: the server is not trusted, or does not know the node's key.
    """
    while True:
        try:
            return _check_server(node)
        except Unreachable as error:
            logger.warning("node %s: waiting: %s", node.settings.name, error)
            time.sleep(_RETRY_SECONDS)


def _check_server(node: NodeFolder) -> None:
    check_clock(clock_offset(node.superlink))
    key = read_private_key(node.node_key)
    if not is_registered(node.superlink, key, node.registration):
        raise FedEditError(
            f"node {node.settings.name}: the server {node.settings.superlink} does not know its "
            f"key.\n   {handover(node)}"
        )


def _command(node: NodeFolder) -> list[str]:
    settings = node.settings
    config = node.home / "node-config.toml"
    write_file(config, tomli_w.dumps(node.node_config()))
    command = [tool("flower-supernode")]
    if settings.apps is not None:
        command = [sys.executable, "-m", "fedit_app.flower_compat.supernode"]
        command += [part for app in settings.apps for part in (OPTION, app)]
    command += ["--superlink", settings.superlink]
    if node.ca_cert is not None:
        command += ["--root-certificates", str(node.ca_cert)]
    command += ["--auth-supernode-private-key", str(node.node_key)]
    command += ["--port", str(settings.runtime_port or free_port())]
    command += ["--node-config", str(config), "--isolation", "subprocess"]
    if settings.trusted_entities:
        command += ["--trusted-entities", str(node.path(settings.trusted_entities))]
    return command
