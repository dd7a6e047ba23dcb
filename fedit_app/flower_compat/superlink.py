"""Flower's SuperLink behind FedEdit's gate: `python -m fedit_app.flower_compat.superlink`.

It takes the arguments of `flower-superlink`; before them `--control-from NETWORK` may be repeated.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from base64 import b64decode
from collections.abc import Sequence
from datetime import UTC, datetime

from fedit_app.flower_compat.contract import require
from fedit_app.flower_compat.expiry import look_seldom
from fedit_app.flower_compat.gate import Gate, Scope
from fedit_app.flower_compat.held import Held, end_with_server
from fedit_app.flower_compat.turns import take_turns

with require("the gate before the SuperLink"):
    from fastapi import FastAPI, Request
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
    from flwr.superlink import main as superlink
    from flwr.superlink.cli import flower_superlink
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.dependencies.linkstate import get_linkstate

logger = logging.getLogger("flwr")

OPTION = "--control-from"
_SECONDS_BETWEEN_LOOKS = 2.0
# A SuperExec of the server starts one task a run, that of a node one a message, which is in haste.
_FOR_THE_SUPEREXEC = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1"}


class Lifespan(SuperLinkLifespan):
    """What belongs to a SuperLink, with a SuperExec that is restarted if it has ended.

    The SuperExec starts the ServerApps. Flower starts it once; without one the server looks sound,
    but no run would ever begin.
    """

    _ending: threading.Event

    def startup(self) -> None:
        """Start everything, and watch over the SuperExec."""
        self._ending = threading.Event()
        super().startup()
        if self.superexec_process is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    def shutdown(self) -> None:
        """End everything."""
        self._ending.set()
        super().shutdown()

    def _watch(self) -> None:
        while not self._ending.wait(_SECONDS_BETWEEN_LOOKS):
            process = self.superexec_process
            status = process.poll() if process is not None else None
            if status is not None:
                logger.error("the SuperExec has ended (status %d); restarting it", status)
                self._start_superexec_if_needed()


def is_of_known_node(scope: Scope) -> bool:
    """Whether a request has the signature of a registered node, by its headers alone.

    What Flower checks of them once it has read the body; it also checks there whose id it names.
    """
    request = Request(scope)
    try:
        public_key = b64decode(request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        signature = b64decode(request.headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
        timestamp = request.headers[TIMESTAMP_HEADER]
        age = (datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return False
        signed = timestamp.encode("ascii")
        if not verify_signature(bytes_to_public_key(public_key), signed, signature):
            return False
    except (KeyError, ValueError, TypeError):
        return False
    return get_linkstate(request).get_node_id_by_public_key(public_key) is not None


def main(arguments: Sequence[str]) -> None:
    """Serve a SuperLink until it is ended.

    Args:
        arguments: the command line.
    """
    rest, control_from = list(arguments), []
    while rest[:1] == [OPTION]:
        control_from.append(rest[1])
        rest = rest[2:]
    create_app = superlink.create_app
    held: list[Held] = []

    def create_gated(
        config: SuperLinkLifespanConfig | None = None,
        superlink_lifespan_class: type[SuperLinkLifespan] | None = None,
    ) -> FastAPI:
        app = create_app(config, Lifespan)
        app.add_middleware(Held, known=held)
        app.add_middleware(Gate, control_from=control_from, known=is_of_known_node)
        return app

    superlink.create_app = create_gated
    take_turns()
    look_seldom()
    end_with_server(held)
    os.environ |= _FOR_THE_SUPEREXEC
    sys.argv = ["flower-superlink", *rest]
    flower_superlink()


if __name__ == "__main__":
    main(sys.argv[1:])
