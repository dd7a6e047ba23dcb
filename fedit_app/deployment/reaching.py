"""Whether a server can be reached and trusted, and whether its clock agrees with this machine's."""

from __future__ import annotations

import http.client
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from fedit_app.flower_compat.connection import SuperLink
from fedit_app.flower_compat.fleet import MOST_AHEAD, MOST_BEHIND
from fedit_app.flower_compat.gate import GATE_PATH
from fedit_app.support.addresses import Unreachable, split
from fedit_app.support.errors import FedEditError

_SECONDS = 10


def clock_offset(superlink: SuperLink) -> float:
    """Ask a server for its time over TLS.

    Returns:
        By how many seconds this machine is ahead of the server.

    Raises:
        Unreachable: no answer.
        FedEditError: what answers is not trusted, or speaks no TLS.
    """
    address, authority = superlink.address, superlink.root_certificates
    host, port = split(address, "superlink")
    connection = http.client.HTTPSConnection(
        host, port, timeout=_SECONDS, context=_trusting(authority)
    )
    try:
        connection.request("HEAD", "/health")
        date = connection.getresponse().headers["date"]
    except ssl.SSLCertVerificationError as error:
        raise FedEditError(
            f"server {address}: its certificate is not trusted: {error.verify_message}; ask its "
            f"operator for the CA certificate ({authority or 'ca-cert is empty'}) and for the "
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
    """Make sure that Flower accepts this machine's signatures, which contain the time.

    Args:
        ahead: see `clock_offset`.

    Raises:
        FedEditError: the clocks differ too much.
    """
    if not -MOST_BEHIND < ahead < MOST_AHEAD:
        raise FedEditError(
            f"clock: this machine is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} "
            f"the server; Flower accepts up to {MOST_AHEAD} s ahead, {MOST_BEHIND} s behind. "
            "Synchronise both clocks by NTP"
        )


def _trusting(authority: Path | None) -> ssl.SSLContext:
    """What Flower trusts: the given authority, or those that its HTTP library knows."""
    if authority is None:
        return httpx.create_ssl_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise FedEditError(f"ca-cert {authority}: cannot be used ({error})") from None
    return context


def check_gate(address: str, authority: Path) -> None:
    """Make sure that the control API of a server on this machine is closed.

    Args:
        address: HOST:PORT.
        authority: certificate of the authority that it is checked against.

    Raises:
        Unreachable: it does not answer.
        FedEditError: it answers, but not from behind the gate.
    """
    context = ssl.create_default_context(cafile=authority)
    try:
        answer = httpx.get(f"https://{address}{GATE_PATH}", timeout=5, verify=context)
    except httpx.TransportError as error:
        raise Unreachable(f"server {address}: does not answer ({error})") from None
    if not answer.is_success:
        raise FedEditError(
            f"server {address}: the SuperLink runs without the gate that closes its control API; "
            "start it with `fedit server start`"
        )
