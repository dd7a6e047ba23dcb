"""The checks of `fedit doctor` on a server's folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from datetime import UTC, datetime

from fedit_app.deployment.certificates import expires
from fedit_app.deployment.findings import FAIL, OK, WARN, Finding, attempt
from fedit_app.deployment.foreground import is_running
from fedit_app.deployment.reaching import check_gate
from fedit_app.deployment.server_folder import ServerFolder
from fedit_app.deployment.serving import SOON
from fedit_app.flower_compat.registry import ONLINE, registered_nodes
from fedit_app.support.addresses import is_free, is_ip, join
from fedit_app.support.files import check_private


def server(found: ServerFolder) -> list[Finding]:
    """Check certificate, names, port and files, and list the registered nodes.

    Args:
        found: the server's folder.
    """
    return [
        *attempt("certificate", lambda: _certificate(found)),
        *attempt("names", lambda: _names(found)),
        *attempt("port", lambda: _port(found)),
        *attempt("files", lambda: _files(found)),
        *(attempt("nodes", lambda: _nodes(found)) if is_running(found.home) else []),
    ]


def _certificate(found: ServerFolder) -> Iterable[Finding]:
    problems = found.certificate_problems()
    for problem in problems:
        remedy = (
            "fedit server renew" if found.settings.ca_key else "get a certificate for these names"
        )
        yield Finding(FAIL, "certificate", f"{problem}; {remedy}")
    check_private(found.cert_key)
    end = expires(found.cert)
    left = end - datetime.now(UTC)
    if left < SOON and not problems:
        yield Finding(WARN, "certificate", f"expires in {left.days} days: fedit server renew")
    elif not problems:
        hosts = ", ".join(found.settings.hosts)
        yield Finding(OK, "certificate", f"for {hosts}, valid until {end:%Y-%m-%d}")


def _names(found: ServerFolder) -> Iterable[Finding]:
    for host in found.settings.hosts:
        if is_ip(host):
            continue
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            text = f"{host} cannot be resolved here ({error}); make sure that the nodes can"
            yield Finding(WARN, "names", text)
    local = {"127.0.0.1", "::1", "localhost"}
    if found.settings.bind in local and not set(found.settings.hosts) <= local:
        text = (
            f"bind = {found.settings.bind}: nodes elsewhere reach this server only through a proxy "
            "or tunnel on this machine; else set bind to 0.0.0.0"
        )
        yield Finding(WARN, "names", text)


def _port(found: ServerFolder) -> Iterable[Finding]:
    bind, port = found.settings.bind, found.settings.port
    if is_running(found.home):
        check_gate(found.local_address, found.ca_cert)
        yield Finding(OK, "port", f"the server answers on {found.local_address}, over TLS")
        open_to = ", ".join(["this machine", *found.settings.control_from])
        yield Finding(OK, "control API", f"closed to all but {open_to}")
    elif is_free(bind, port):
        yield Finding(OK, "port", f"{join(bind, port)} is free; the server is not running")
    else:
        text = (
            f"{join(bind, port)} cannot be listened on: another program has it, or it is no "
            "address of this machine; change bind or port in server.toml"
        )
        yield Finding(FAIL, "port", text)


def _files(found: ServerFolder) -> Iterable[Finding]:
    database, runs = found.path(found.settings.database), found.path(found.settings.runs)
    places = [found.folder, database.parent, runs, *([database] if database.exists() else [])]
    shut = [place for place in dict.fromkeys(places) if not os.access(place, os.W_OK)]
    for place in shut:
        yield Finding(
            FAIL,
            "files",
            f"{place} is missing or not writable for this user; create it or change its mode",
        )
    if not shut:
        size = database.stat().st_size / 1e6 if database.exists() else 0.0
        yield Finding(OK, "files", f"database {database} ({size:.1f} MB), run folders {runs}")


def _nodes(found: ServerFolder) -> Iterable[Finding]:
    nodes = registered_nodes(found.superlink)
    if not nodes:
        yield Finding(WARN, "nodes", "none is registered yet; fedit server register")
    for node in nodes:
        level = OK if node.status == ONLINE else WARN
        yield Finding(level, "nodes", f"{node.name} is {node.status}")
