"""Flower's SuperLink behind FedEdit's gate: `python -m fedit_app.deployment.superlink`.

It takes the arguments of `flower-superlink`; before them `--control-from NETWORK` may be repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flwr.superlink import main as superlink
from flwr.superlink.cli import flower_superlink

from fedit_app.deployment.gate import Gate

OPTION = "--control-from"


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

    def create_gated(*given, **named):
        app = create_app(*given, **named)
        app.add_middleware(Gate, control_from=control_from)
        return app

    superlink.create_app = create_gated
    sys.argv = ["flower-superlink", *rest]
    flower_superlink()


if __name__ == "__main__":
    main(sys.argv[1:])
