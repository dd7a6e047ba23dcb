"""What a message to every node and back takes: empty, in many parts, and as a parcel.

It sends and fetches as `fedit_app.server.grid` does, but empty messages as Flower's own strategies
do: all with one call. Nobody computes anything. The content is an answer of the edit stage with
five open MKVs of SmolLM2-135M, other ones for each node. The log has the seconds of every exchange,
and those that the processor worked for the server.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import psutil
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedit_app.mkv import create
from fedit_app.protocol.messages import pack, with_lookup
from fedit_app.protocol.parcel import wrap
from fedit_app.server.pulls import Pulls, push

__all__ = ["app"]

_POLL_SECONDS = 0.2
_LAYERS, _D_FF, _D_MODEL, _MKVS = 5, 1536, 576, 5

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Exchange messages of each kind with all nodes, one exchange after the other."""
    kinds = {"empty": lambda _: RecordDict(), "parts": upload, "parcel": lambda n: wrap(upload(n))}
    for _ in range(int(context.run_config["exchanges"])):
        for kind in str(context.run_config["kinds"]).split(","):
            worked, seconds = _worked(), _exchange(grid, kinds[kind], own=kind != "empty")
            print(f"exchange: {kind} {seconds:.3f} s {_worked() - worked:.3f} s", flush=True)


def _worked() -> float:
    """Processor seconds so far of this process, and of the SuperLink and others that began it."""
    me = psutil.Process()
    server = [p for p in me.parents() if any("superlink" in part for part in p.cmdline())]
    return sum(p.cpu_times().user + p.cpu_times().system for p in (me, *server))


def upload(number: int) -> RecordDict:
    """What a node answers that has edited."""
    draw = np.random.default_rng(number).standard_normal
    fingerprint = "f" * 32
    mkvs = [
        create(
            f"node-{number}",
            slot,
            fingerprint,
            draw((_LAYERS, _D_FF)),
            draw((_LAYERS, _D_MODEL)),
            draw(_D_MODEL),
            draw(_D_MODEL),
            "int8",
        )
        for slot in range(1, _MKVS + 1)
    ]
    content = with_lookup(pack({"node": f"node-{number}"}, mkvs), draw((_MKVS, _D_FF)))
    content["signature"] = ConfigRecord({"signature": f"{number:0128x}"})
    return content


def _exchange(grid: Grid, content: Callable[[int], RecordDict], own: bool) -> float:
    nodes = sorted(grid.get_node_ids())
    messages = [
        Message(content(number), message_type="query.echo", dst_node_id=node)
        for number, node in enumerate(nodes)
    ]
    began = time.perf_counter()
    (partial(push, grid) if own else grid.push_messages)(messages)
    waiting = {message.metadata.message_id for message in messages}
    fetch = Pulls(grid).ask if own else grid.pull_messages
    while waiting:
        asked = time.perf_counter()
        for reply in fetch(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
        if waiting:
            time.sleep(max(_POLL_SECONDS, time.perf_counter() - asked))
    return time.perf_counter() - began
