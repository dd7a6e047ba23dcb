"""What Flower takes for a message to every node and back if there is nothing in it.

It sends and fetches as `fedit_app.server.grid` does. The log has the seconds of every exchange.
"""

import time

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

__all__ = ["app"]

_POLL_SECONDS = 0.2

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Exchange empty messages with all nodes, one exchange after the other."""
    for _ in range(int(context.run_config["exchanges"])):
        nodes = list(grid.get_node_ids())
        began = time.perf_counter()
        waiting = set(grid.push_messages([_empty(node) for node in nodes]))
        while waiting:
            asked = time.perf_counter()
            for reply in grid.pull_messages(list(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
            if waiting:
                time.sleep(max(_POLL_SECONDS, time.perf_counter() - asked))
        print(f"exchange: {time.perf_counter() - began:.3f} s", flush=True)


def _empty(node: int) -> Message:
    return Message(RecordDict(), message_type="query.empty", dst_node_id=node)
