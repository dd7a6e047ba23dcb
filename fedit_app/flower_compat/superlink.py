"""Flower's SuperLink behind FedEdit's gate: `python -m fedit_app.flower_compat.superlink`.

It takes the arguments of `flower-superlink`; before them `--control-from NETWORK` may be repeated.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence

from fedit_app.flower_compat.contract import require
from fedit_app.flower_compat.gate import Gate
from fedit_app.flower_compat.turns import take_turns

with require("the gate before the SuperLink"):
    from fastapi import FastAPI
    from flwr.superlink import main as superlink
    from flwr.superlink.cli import flower_superlink
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig

logger = logging.getLogger("flwr")

OPTION = "--control-from"
_SECONDS_BETWEEN_LOOKS = 2.0


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

    def create_gated(
        config: SuperLinkLifespanConfig | None = None,
        superlink_lifespan_class: type[SuperLinkLifespan] | None = None,
    ) -> FastAPI:
        app = create_app(config, Lifespan)
        app.add_middleware(Gate, control_from=control_from)
        return app

    superlink.create_app = create_gated
    take_turns()
    sys.argv = ["flower-superlink", *rest]
    flower_superlink()


if __name__ == "__main__":
    main(sys.argv[1:])
