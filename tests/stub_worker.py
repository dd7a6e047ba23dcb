"""A resident process with everything but a model: it does what a message's `do` says.

The environment may give it another identity or smaller limits than it has.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from flwr.app import RecordDict

from fedit_app.node import channel, worker
from fedit_app.protocol.messages import Call, pack, unpack_info

_answered = 0


def answer(call: Call, content: RecordDict) -> tuple[RecordDict, bool]:
    global _answered
    _answered += 1
    asked = unpack_info(content)
    what = asked.get("do")
    if what == "crash" or (what == "crash once" and not Path(asked["marker"]).exists()):
        if what == "crash once":
            Path(asked["marker"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(600)
    if what == "wait":
        while not Path(asked["marker"]).exists():
            time.sleep(0.05)
    reply = pack({"pid": os.getpid(), "answered": _answered, "stage": call.stage})
    for name, record in content.array_records.items():
        reply[name] = record
    return reply, what != "fail"


if __name__ == "__main__":
    if status := os.environ.get("STUB_EXIT"):
        sys.exit(int(status))
    if code := os.environ.get("STUB_CODE"):
        worker.code_fingerprint = lambda: code
    channel.MOST_BYTES = int(os.environ.get("STUB_MOST_BYTES", channel.MOST_BYTES))
    worker.LARGEST_LOG = int(os.environ.get("STUB_LARGEST_LOG", worker.LARGEST_LOG))
    worker.main(Path(sys.argv[1]), json.load(sys.stdin), answer)
