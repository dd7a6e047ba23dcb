"""Starting a federation's server."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

from fedit_app.deployment.certificates import expires
from fedit_app.deployment.foreground import alone, foreground
from fedit_app.deployment.reaching import check_gate
from fedit_app.deployment.server_folder import ServerFolder
from fedit_app.flower_compat.registry import registered_nodes
from fedit_app.flower_compat.superlink import OPTION
from fedit_app.support.addresses import Unreachable, is_free, join
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import check_private

logger = logging.getLogger(__name__)

SOON = timedelta(days=30)
_START_SECONDS = 60


def serve(server: ServerFolder) -> int:
    """Run a server's SuperLink until it is stopped.

    Args:
        server: the server's folder.

    Returns:
        1: it exited. (Stopping it raises KeyboardInterrupt.)

    Raises:
        FedEditError: it is already running, or certificate, key or port cannot be used.
    """
    with alone(server.home):
        _check(server)
        with foreground(_command(server), server.home) as process:
            _wait_for_gate(server, process)
            names = ", ".join(node.name for node in registered_nodes(server.superlink))
            logger.info(
                "server ready at %s; registered nodes: %s",
                ", ".join(server.addresses),
                names or "none yet",
            )
            process.wait()
            logger.error("the SuperLink ended by itself (exit %d), see above", process.returncode)
    return 1


def _command(server: ServerFolder) -> list[str]:
    settings = server.settings
    command = [sys.executable, "-m", "fedit_app.flower_compat.superlink"]
    for network in settings.control_from:
        command += [OPTION, network]
    command += ["--host", settings.bind, "--port", str(settings.port)]
    command += ["--ssl-ca-certfile", str(server.ca_cert), "--ssl-certfile", str(server.cert)]
    command += ["--ssl-keyfile", str(server.cert_key), "--enable-supernode-auth"]
    command += ["--database", str(server.path(settings.database)), "--isolation", "subprocess"]
    return [*command, "--disable-runtime-dependency-installation"]


def _check(server: ServerFolder) -> None:
    problems = server.certificate_problems()
    if problems:
        raise FedEditError("; ".join(problems))
    check_private(server.cert_key)
    left = expires(server.cert) - datetime.now(UTC)
    if left < SOON:
        logger.warning("the certificate ends in %d days: fedit server renew DIR", left.days)
    if not is_free(server.settings.bind, server.settings.port):
        address = join(server.settings.bind, server.settings.port)
        raise FedEditError(
            f"server: cannot listen on {address}: the port is taken by another program, or the "
            "address is not this machine's; change bind or port in server.toml"
        )


def _wait_for_gate(server: ServerFolder, process: subprocess.Popen[bytes]) -> None:
    """Wait until the SuperLink answers, and check that its control API is closed."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return check_gate(server.local_address, server.ca_cert)
        except Unreachable:
            time.sleep(0.2)
    raise FedEditError(f"the SuperLink does not answer on {server.local_address}, see above")
