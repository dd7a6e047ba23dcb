"""The folder of a federation's server: what lies in it, and making it."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedit_app.config.documentation import commented_keys
from fedit_app.config.settings import Settings, key
from fedit_app.deployment.certificates import (
    expires,
    handshake_problem,
    issue_server_certificate,
    make_authority,
)
from fedit_app.deployment.services import write_services
from fedit_app.flower_compat.connection import SuperLink
from fedit_app.mkv.node_key import Pair
from fedit_app.support.addresses import DEFAULT_PORT, check_host, join, reached_locally
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml, replace_file, write_private

SERVER_FILE = "server.toml"
_HEAD = """\
# A FedEdit server, made by `fedit server init`. Relative paths are relative to this folder.
# A change counts from the next start of the server on.

"""


class ServerSettings(Settings):
    """What stands in server.toml."""

    hosts: tuple[str, ...] = key(
        ("localhost",),
        "Host names and IP addresses by which nodes reach this server. They stand in its "
        "certificate: after a change, `fedit server renew`.",
    )
    bind: str = key(
        "127.0.0.1",
        "Address that the server listens on: 0.0.0.0 for all of this machine, 127.0.0.1 for this "
        "machine alone (behind a proxy or a tunnel).",
    )
    port: int = key(DEFAULT_PORT, "TCP port, the only one.", ge=1, le=65535)
    control_from: tuple[str, ...] = key(
        (),
        "Addresses or networks, such as 10.8.0.0/24, from which runs may be started and nodes "
        "registered, beside this machine itself. Whoever can do that can run code on the nodes.",
    )
    ca_cert: str = key("tls/ca.crt", "Certificate of the authority; every node gets this file.")
    ca_key: str | None = key(
        "tls/ca.key",
        "Its private key, for `fedit server renew`.",
        absent="somebody else makes the certificate",
    )
    cert: str = key("tls/server.crt", "The server's certificate, PEM.")
    cert_key: str = key("tls/server.key", "Its private key, readable by the server's user alone.")
    database: str = key("superlink.db", "What the SuperLink remembers: nodes and runs.")
    runs: str = key("runs", "Folder of the run folders.")


@dataclass(frozen=True)
class ServerFolder:
    """A server's folder.

    Attributes:
        folder: its absolute path.
        settings: what its server.toml says.
    """

    folder: Path
    settings: ServerSettings

    @staticmethod
    def open(folder: Path) -> ServerFolder:
        """Read a server's folder.

        Raises:
            FedEditError: it is none, or its server.toml is wrong.
        """
        file = folder.expanduser() / SERVER_FILE
        if not file.is_file():
            raise FedEditError(
                f"{folder}: no server's folder, it has no {SERVER_FILE}; make one "
                f"with `fedit server init {folder}`"
            )
        settings = ServerSettings.checked(read_toml(file, str(file)), str(file))
        if not settings.hosts:
            raise FedEditError(f"{file}: hosts is empty; name at least one")
        for host in (*settings.hosts, settings.bind):
            check_host(host, str(file))
        for network in settings.control_from:
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError as error:
                raise FedEditError(f"{file}: control-from: {error}") from None
        return ServerFolder(file.parent.absolute(), settings)

    def path(self, value: str) -> Path:
        """The absolute path of a path in server.toml."""
        return self.folder / Path(value).expanduser()

    @property
    def ca_cert(self) -> Path:
        """The authority's certificate."""
        return self.path(self.settings.ca_cert)

    @property
    def cert(self) -> Path:
        """The server's certificate."""
        return self.path(self.settings.cert)

    @property
    def ca_key(self) -> Path | None:
        """The authority's private key; None if somebody else makes the certificate."""
        return self.path(self.settings.ca_key) if self.settings.ca_key else None

    @property
    def cert_key(self) -> Path:
        """The server's private key."""
        return self.path(self.settings.cert_key)

    @property
    def home(self) -> Path:
        """Working directory of the SuperLink; holds no code."""
        return self.folder / "flower"

    @property
    def local_host(self) -> str:
        """The host by which this machine's own processes reach the server."""
        return reached_locally(self.settings.bind)

    @property
    def local_address(self) -> str:
        """HOST:PORT by which this machine's own processes reach the server."""
        return join(self.local_host, self.settings.port)

    @property
    def superlink(self) -> SuperLink:
        """The server's SuperLink, as this machine reaches it."""
        return SuperLink(self.local_address, self.ca_cert)

    @property
    def addresses(self) -> list[str]:
        """HOST:PORT of every name by which nodes reach the server."""
        return [join(host, self.settings.port) for host in self.settings.hosts]

    def certificate_problems(self) -> list[str]:
        """Why nodes, or the server's own processes, would not trust the certificate."""
        found = []
        for host in dict.fromkeys([*self.settings.hosts, self.local_host]):
            problem = handshake_problem(self.cert, self.cert_key, self.ca_cert, host)
            if problem and host == self.local_host and host not in self.settings.hosts:
                problem += (
                    "; the server's own processes reach it there: set bind to a name that the "
                    "certificate has, or get one with this address"
                )
            if problem:
                found.append(f"{self.cert} at {host}: {problem}")
        return found


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
            f"{folder}: is a server's folder already; edit its {SERVER_FILE}, or name another one"
        )
    if not 1 <= port <= 65535:
        raise FedEditError(f"--port {port}: must be between 1 and 65535")
    named = tuple(dict.fromkeys(check_host(host, "--host") for host in hosts))
    settings = ServerSettings(hosts=named or ("localhost",), port=port)
    if named:
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
    with replace_file(folder / SERVER_FILE) as temporary:
        temporary.write_text(_HEAD + commented_keys(server.settings), encoding="utf-8")
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
        _write_public(server.ca_cert, authority.public)
        write_private(server.ca_key, authority.private)
    if not server.cert_key.exists():
        _issue_certificate(server)


def renew_certificate(server: ServerFolder) -> None:
    """Replace the server's certificate and key by new ones of its authority.

    Raises:
        FedEditError: the authority's key is not here.
    """
    _issue_certificate(server)


def _issue_certificate(server: ServerFolder) -> None:
    if server.ca_key is None or not server.ca_key.is_file():
        raise FedEditError(
            f"{server.folder / SERVER_FILE}: ca-key names no file; get a new certificate from "
            f"whoever made {server.cert}, put it in its place and restart the server"
        )
    authority = Pair(server.ca_cert.read_bytes(), server.ca_key.read_bytes())
    made = issue_server_certificate(authority, server.settings.hosts)
    write_private(server.cert_key, made.private, replace=True)
    _write_public(server.cert, made.public)


def _write_public(file: Path, content: bytes) -> None:
    with replace_file(file) as temporary:
        temporary.write_bytes(content)


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
1. Start it:  fedit server start {where}
   or with systemd: {where / "fedit-server.service"}
2. Give every organisation {server.ca_cert} and the address {address}; they run
     fedit node init DIR --name NAME --superlink {address} --ca-cert ca.crt --data FILE
3. Each of them sends you its public key, NAME.pub; while the server runs:
     fedit server register {where} --node-key NAME.pub --name NAME
4. Start a run:  fedit run --superlink {where} --config PRESET.toml
Anything wrong?  fedit doctor {where}
"""
