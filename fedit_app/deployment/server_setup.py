"""Making a server's folder, and renewing its certificate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fedit_app.config.documentation import commented_keys
from fedit_app.deployment.certificates import (
    expires,
    handshake_problem,
    issue_server_certificate,
    make_authority,
)
from fedit_app.deployment.server_folder import SERVER_FILE, ServerFolder, ServerSettings
from fedit_app.deployment.services import write_services
from fedit_app.mkv.node_key import Pair
from fedit_app.support.addresses import DEFAULT_PORT, check_host
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_file, write_private
from fedit_app.support.formats import typed

_HEAD = """\
# A FedEdit server, made by `fedit server init`. Relative paths are relative to this folder.
# A change counts from the next start of the server on.

"""
_THIS_MACHINE = {"localhost", "127.0.0.1"}


def init_server(
    folder: Path,
    hosts: Sequence[str] = (),
    port: int = DEFAULT_PORT,
    ca_cert: Path | None = None,
    ca_key: Path | None = None,
    cert: Path | None = None,
    cert_key: Path | None = None,
) -> ServerFolder:
    """Make a server's folder: certificates, server.toml, start script and systemd unit.

    Without certificate files an authority is made; with an authority's certificate and key it
    signs; with a server certificate that one is used where it lies. A key that the folder holds
    already is kept.

    Args:
        folder: the folder; made if it does not exist.
        hosts: names and addresses by which nodes reach the server; none: this machine only.
        port: TCP port.
        ca_cert: the authority's certificate.
        ca_key: its private key.
        cert: the server's certificate.
        cert_key: its private key.

    Raises:
        FedEditError: the folder is a server's already, files do not belong together, or nodes
            would not trust the certificate.
    """
    folder = folder.expanduser().absolute()
    if (folder / SERVER_FILE).exists():
        raise FedEditError(
            f"{folder}: is already a server's folder; edit its {SERVER_FILE}, or choose "
            "another folder"
        )
    if not 1 <= port <= 65535:
        raise FedEditError(f"--port {port}: must be between 1 and 65535")
    named = tuple(dict.fromkeys(check_host(host, "--host") for host in hosts))
    settings = ServerSettings(hosts=named or ("localhost",), port=port)
    if not _THIS_MACHINE.issuperset(named):
        settings = settings.model_copy(update={"bind": "0.0.0.0"})
    settings = _with_given(settings, ca_cert, ca_key, cert, cert_key)
    for part in (folder, folder / "tls", folder / settings.runs):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    server = ServerFolder(folder, settings)
    if cert is None:
        _make_certificates(server)
    elif named and handshake_problem(cert, server.cert_key, server.ca_cert, server.local_host):
        # A certificate without this machine's loopback address: its processes take a name, too.
        server = dataclasses.replace(
            server, settings=settings.model_copy(update={"bind": named[0]})
        )
    problems = server.certificate_problems()
    if problems:
        raise FedEditError("; ".join(problems))
    write_services(folder, "server", "fedit-server", "FedEdit server")
    write_file(folder / SERVER_FILE, _HEAD + commented_keys(server.settings))
    return server


def _with_given(
    settings: ServerSettings,
    ca_cert: Path | None,
    ca_key: Path | None,
    cert: Path | None,
    cert_key: Path | None,
) -> ServerSettings:
    """The settings with the paths of given certificate files."""
    given = {"ca_cert": ca_cert, "ca_key": ca_key, "cert": cert, "cert_key": cert_key}
    paths = {name: file.expanduser().absolute() for name, file in given.items() if file}
    if set(paths) not in (set(), {"ca_cert", "ca_key"}, {"ca_cert", "cert", "cert_key"}):
        raise FedEditError(
            "give --ca-cert and --ca-key (your authority signs), or --ca-cert, --cert and --key "
            "(your certificate is used), or none of them (an authority is made)"
        )
    if cert and settings.hosts == ServerSettings().hosts:
        raise FedEditError("--cert: say with --host by which of its names nodes reach the server")
    for file in paths.values():
        if not file.is_file():
            raise FedEditError(f"{file}: no such file")
    given_paths: dict[str, str | None] = {name: str(file) for name, file in paths.items()}
    if cert:
        given_paths["ca_key"] = None
    return settings.model_copy(update=given_paths)


def _make_certificates(server: ServerFolder) -> None:
    """Make what is not there yet: an authority, and a certificate that it signs."""
    if server.ca_key is not None and not server.ca_key.exists():
        authority = make_authority(f"FedEdit authority of {server.settings.hosts[0]}"[:64])
        write_file(server.ca_cert, authority.public)
        write_private(server.ca_key, authority.private)
    if not server.cert_key.exists():
        renew_certificate(server)


def renew_certificate(server: ServerFolder) -> None:
    """Issue the server's certificate and key with its authority's key; old ones are replaced.

    Raises:
        FedEditError: the folder has no key of the authority.
    """
    if server.ca_key is None or not server.ca_key.is_file():
        raise FedEditError(
            f"{server.folder / SERVER_FILE}: ca-key names no file; get a new certificate from "
            f"whoever made {server.cert}, put it in its place and restart the server"
        )
    authority = Pair(server.ca_cert.read_bytes(), server.ca_key.read_bytes())
    made = issue_server_certificate(authority, server.settings.hosts)
    write_private(server.cert_key, made.private, replace=True)
    write_file(server.cert, made.public)


def next_steps(server: ServerFolder) -> str:
    """What to do with a new server's folder, for its operator."""
    where, address = server.folder, server.addresses[0]
    alone = ""
    if server.local_host == "127.0.0.1" and server.settings.hosts == ("localhost",):
        alone = (
            "\nIt listens on this machine alone; for nodes elsewhere, make one with --host NAME.\n"
        )
    return f"""\
server folder {where}
certificate   for {", ".join(server.settings.hosts)}, valid until {expires(server.cert):%Y-%m-%d}
{alone}
1. Start it:  fedit server start {typed(where)}
   or with systemd: {where / "fedit-server.service"}
2. Give every organisation {server.ca_cert} and the address {address}; they run
     fedit node init DIR --name NAME --superlink {address} --ca-cert ca.crt --data FILE
3. Each of them sends you its public key, NAME.pub; while the server runs:
     fedit server register {typed(where)} --node-key NAME.pub --name NAME
4. Start a run:  fedit run --superlink {typed(where)} --config PRESET.toml
Anything wrong?  fedit doctor {typed(where)}
"""
