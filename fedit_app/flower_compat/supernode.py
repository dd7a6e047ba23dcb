"""Flower's SuperNode that runs listed apps only: `python -m fedit_app.flower_compat.supernode`.

It takes the arguments of `flower-supernode`; before them `--allow-app sha256:...` may be repeated.
Flower installs and imports whatever app the server sends with a run. Here a bundle that is not
listed is refused as soon as it has arrived: it is neither stored nor unpacked, and every message of
its run is answered with Flower's error for invalid bundles.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from fedit_app.flower_compat.bundle import app_hash
from fedit_app.flower_compat.contract import require

with require("the list of apps that a node runs"):
    from flwr.app import Message
    from flwr.supernode import start_client_internal as internal
    from flwr.supernode.cli import flower_supernode

logger = logging.getLogger("flwr")

OPTION = "--allow-app"


class _NotAllowed(Exception):
    """A bundle has arrived that the node does not run."""


def only(allowed: Collection[str], pull: Callable[..., int | None]) -> Callable[..., int | None]:
    """What takes messages from the server, for the listed apps alone.

    Args:
        allowed: hashes of bundles, see `bundle.app_hash`.
        pull: Flower's own way to take a message: it asks for the bundle of a run that is new to
            the node by `get_fab`, and stores it for the process that imports it.
    """

    def checked(
        *,
        receive: Callable[[], tuple[Message, Any] | None],
        get_fab: Callable[[str, int], Any],
        **rest: Any,
    ) -> int | None:
        arrived: list[Message] = []

        def received() -> tuple[Message, Any] | None:
            found = receive()
            if found is not None:
                arrived.append(found[0])
            return found

        def allowed_fab(fab_hash: str, run_id: int) -> Any:
            fab = get_fab(fab_hash, run_id)
            found = app_hash(fab.content)
            if found not in allowed:
                raise _NotAllowed(found)
            return fab

        try:
            return pull(receive=received, get_fab=allowed_fab, **rest)
        except _NotAllowed as refused:
            (message,) = arrived
            logger.error(
                "run %d refused: its app is %s, which `apps` in node.toml does not list",
                message.metadata.run_id,
                refused,
            )
            reply = Message(internal.FAB_VERIFICATION_ERROR, reply_to=message)
            internal._insert_message(reply, rest["state"], rest["object_store"])
            return message.metadata.run_id

    return checked


def main(arguments: Sequence[str]) -> None:
    """Run a SuperNode until it is ended.

    Args:
        arguments: the command line.
    """
    rest, allowed = list(arguments), set[str]()
    while rest[:1] == [OPTION]:
        allowed.add(rest[1])
        rest = rest[2:]
    internal._pull_and_store_message = only(allowed, internal._pull_and_store_message)
    sys.argv = ["flower-supernode", *rest]
    flower_supernode()


if __name__ == "__main__":
    main(sys.argv[1:])
