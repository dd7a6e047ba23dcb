"""`fedit doctor`: the checks of a server, a node, or just this machine."""

from __future__ import annotations

from pathlib import Path

from fedit_app.deployment.findings import Finding, attempt, machine
from fedit_app.deployment.node_checks import node
from fedit_app.deployment.node_folder import NODE_FILE, NodeFolder
from fedit_app.deployment.server_checks import server
from fedit_app.deployment.server_folder import SERVER_FILE, ServerFolder
from fedit_app.support.errors import FedEditError


def examine(folder: Path | None) -> list[Finding]:
    """Check a server or a node and this machine.

    Args:
        folder: folder of a server or a node; None for the machine alone.

    Raises:
        FedEditError: the folder is neither a server's nor a node's.
    """
    findings = machine(folder)
    if folder is not None:
        findings += _of_folder(folder)
    return findings


def _of_folder(folder: Path) -> list[Finding]:
    if (folder / SERVER_FILE).exists():
        return attempt("settings", lambda: server(ServerFolder.open(folder)))
    if (folder / NODE_FILE).exists():
        return attempt("settings", lambda: node(NodeFolder.open(folder)))
    raise FedEditError(
        f"{folder}: neither a server's folder ({SERVER_FILE}) nor a node's ({NODE_FILE}); name "
        "one, or none to check the machine alone"
    )
