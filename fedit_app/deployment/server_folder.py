"""The folder of a federation's server: what lies in it, and making it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from fedit_app.config.settings import Settings, key
from fedit_app.deployment.certificates import (
    handshake_problem,
)
from fedit_app.flower_compat.connection import SuperLink
from fedit_app.support.addresses import DEFAULT_PORT, check_host, join, reached_locally
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml
from fedit_app.support.formats import typed

SERVER_FILE = "server.toml"


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
                f"with `fedit server init {typed(folder)}`"
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
