"""Host names, IP addresses and ports, as people write them."""

from __future__ import annotations

import ipaddress
import re
import socket

from fedit_app.support.errors import FedEditError

DEFAULT_PORT = 8000
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")


class Unreachable(FedEditError):
    """A server does not answer; trying again later can help."""


def is_ip(host: str) -> bool:
    """Whether a host is given as an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_host(host: str, place: str) -> str:
    """A host name or IP address.

    Raises:
        FedEditError: it is neither.
    """
    if is_ip(host) or (len(host) <= 253 and _HOST.fullmatch(host)):
        return host
    raise FedEditError(
        f"{place}: {host!r} is neither a host name nor an IP address, such as fedit.example.org "
        "or 192.0.2.7 (without https:// and port)"
    )


def join(host: str, port: int) -> str:
    """HOST:PORT; an IPv6 address goes into brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str, place: str) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises:
        FedEditError: it is not of that form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise FedEditError(
            f"{place}: {address!r} must be HOST:PORT, such as fedit.example.org:8000"
        )
    return check_host(host.removeprefix("[").removesuffix("]"), place), int(port)


def reached_locally(bind: str) -> str:
    """The host by which processes on the same machine reach a server that listens on `bind`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on an address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
