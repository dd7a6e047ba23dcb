"""Many nodes in one process: `python -m benchmarks.connections NODE_DIR ...`.

Each node is registered, signs with its own key, holds its own TLS connection to the server and runs
the ClientApp on its own ledger, as a SuperNode would; but they share a process and a model, so that
a machine holds far more of them than of real nodes. ClientApps run one at a time. Messages of the
app `flower_messages` are answered as its ClientApp does.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.common.config import get_fused_config_from_fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import (
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supernode.fleet_http_connection import http_request_response

from benchmarks.flower_messages.echo_client import app as echo_app
from fedit_app.deployment.node_folder import NodeFolder
from fedit_app.mkv.node_key import read_private_key
from fedit_app.node.app import app

_SECONDS_BETWEEN_PULLS = 3.0  # as a SuperNode
_ECHO = "query.echo"
_one_app = threading.Lock()


def serve(node: NodeFolder) -> None:
    """Connect a node to its server and answer messages until the process ends.

    Args:
        node: the folder of a node that the server knows.
    """
    secret = read_private_key(node.node_key)
    contexts: dict[int, Context] = {}
    with http_request_response(
        node.settings.superlink,
        insecure=False,
        root_certificates=str(node.ca_cert),
        authentication_keys=(secret, secret.public_key()),
    ) as (node_id, receive, send, get_run, get_fab, pull_object, push_object, confirm):
        while True:
            received = receive()
            if received is None:
                time.sleep(_SECONDS_BETWEEN_PULLS)
                continue
            head, tree = received
            run_id = head.metadata.run_id
            if run_id not in contexts:
                run = get_run(run_id)
                fab = get_fab(run.fab_hash, run_id)
                contexts[run_id] = Context(
                    run_id=run_id,
                    node_id=node_id,
                    node_config=node.node_config(),
                    state=RecordDict(),
                    run_config=get_fused_config_from_fab(fab.content, run),
                )
            message = pull_and_inflate_object_from_tree(
                tree,
                partial(pull_object, run_id),
                partial(confirm, run_id),
                return_type=Message,
            )
            message.metadata.__dict__["_message_id"] = head.metadata.message_id
            started = time.perf_counter()
            with _one_app:
                answer = echo_app if message.metadata.message_type == _ECHO else app
                reply = answer(message, contexts[run_id])
            reply.metadata.__dict__["_message_id"] = reply.object_id
            wanted, session = send(reply, get_object_tree(reply), time.perf_counter() - started)
            push_objects(
                get_all_nested_objects(reply),
                partial(push_object, run_id, session),
                object_ids_to_push=wanted,
            )


def main(folders: Sequence[str]) -> None:
    """Serve all nodes, each in a thread, until the process ends.

    Args:
        folders: of the nodes.
    """
    threads = [
        threading.Thread(target=serve, args=(NodeFolder.open(Path(folder)),)) for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1:])
