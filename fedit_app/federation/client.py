"""The ClientApp: each handler unpacks a message, asks the `Participant`, and packs its answer.

Nothing of a request's text leaves a node: an error that was not foreseen is reported by its type
only, and read in full in the node's own log.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedit_app.config import RunConfig
from fedit_app.errors import FedEditError
from fedit_app.federation.participant import Participant
from fedit_app.federation.protocol import (
    VERSION,
    arrays_record,
    code_fingerprint,
    pack,
    unpack_arrays,
    unpack_info,
    unpack_mkvs,
)
from fedit_app.federation.site import node_run_config
from fedit_app.log import set_up_logging

logger = logging.getLogger(__name__)

app = ClientApp()
Handler = Callable[[Message, Participant], RecordDict]


def _answers(handler: Handler) -> Callable[[Message, Context], Message]:
    """Make a handler a Flower one: with the node's participant, its errors as answers."""

    @functools.wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        set_up_logging()
        started = time.perf_counter()
        name = str(context.node_config.get("name", ""))
        try:
            config = RunConfig.parse(node_run_config(context.run_config, context.node_config))
            participant = Participant(config, context.node_config, context.run_id)
            name = participant.name
            content = handler(message, participant)
        except FedEditError as error:
            logger.error("node %s: %s failed: %s", name, handler.__name__, error)
            content = pack({"node": name, "error": str(error)})
        except Exception as error:
            logger.exception("node %s: %s failed", name, handler.__name__)
            reason = f"unexpected {type(error).__name__} in {handler.__name__}; see the node's log"
            content = pack({"node": name, "error": reason})
        logger.info(
            "node %s: %s took %.1f s", name, handler.__name__, time.perf_counter() - started
        )
        return Message(content, reply_to=message)

    return answer


@app.query("hello")
@_answers
def hello(message: Message, participant: Participant) -> RecordDict:
    """Introduce the node, and hand over the lookup keys of slot 1."""
    asked = unpack_info(message.content)
    if (asked.get("version"), asked.get("code")) != (VERSION, code_fingerprint()):
        raise FedEditError(
            f"server runs FedEdit code {asked.get('code')} (protocol {asked.get('version')}), this "
            f"node {code_fingerprint()} (protocol {VERSION}); install the same version"
        )
    content = pack(participant.hello())
    return _with_keys(content, participant.lookup_keys(1))


@app.train("edit")
@_answers
def edit(message: Message, participant: Participant) -> RecordDict:
    """Edit stage: the node's own requests of a slot."""
    asked = unpack_info(message.content)
    candidates = unpack_mkvs(message.content, participant.workbench.fingerprint)
    outcome = participant.edit(asked["slot"], candidates, asked["central"])
    info = {
        "node": participant.name,
        "requests": outcome.requests,
        "optimised": len(outcome.new),
        "reused": outcome.reused,
        "conflicts": [vars(conflict) for conflict in outcome.conflicts],
    }
    return pack(info, outcome.new if asked["upload"] else ())


@app.train("reedit")
@_answers
def reedit(message: Message, participant: Participant) -> RecordDict:
    """Re-edit stage: MKVs of others, and the lookup keys of the next slot."""
    slot = unpack_info(message.content)["slot"]
    offered = unpack_mkvs(message.content, participant.workbench.fingerprint)
    outcome = participant.reedit(slot, offered)
    info = {
        "node": participant.name,
        "received_from": outcome.received_from,
        "rejections": outcome.rejections,
        "conflicts": [vars(conflict) for conflict in outcome.conflicts],
    }
    return _with_keys(pack(info), participant.lookup_keys(slot + 1))


@app.train()
@_answers
def train(message: Message, participant: Participant) -> RecordDict:
    """A round of a stock strategy: edit the global model with the slot's own requests."""
    deltas = _global_deltas(message.content)
    slot = int(message.content.config_records["config"]["server-round"])
    changed, requests = participant.train(slot, deltas)
    info = {"node": participant.name, "requests": requests, "optimised": requests}
    content = pack(info)
    content["arrays"] = _as_arrays(changed)
    # Stock strategies divide by the sum of the weights, which may not be zero.
    content["metrics"] = MetricRecord({"num-examples": float(requests) or 1e-9})
    return content


@app.evaluate()
@_answers
def evaluate(message: Message, participant: Participant) -> RecordDict:
    """Metrics of the node's model, or of the global model of a stock strategy."""
    if "arrays" in message.content.array_records:
        slot = int(message.content.config_records["config"]["server-round"])
        found = participant.evaluate(slot, _global_deltas(message.content))
    else:
        asked = unpack_info(message.content)
        found = participant.evaluate(asked["slot"], central=asked["central"])
    content = pack({"node": participant.name, **found})
    content["metrics"] = MetricRecord({"num-examples": float((found["own"] or {}).get("count", 0))})
    return content


def _with_keys(content: RecordDict, keys: np.ndarray) -> RecordDict:
    if len(keys):
        content["keys"] = arrays_record({"lookup": keys.astype(np.float32)})
    return content


def _global_deltas(content: RecordDict) -> dict[int, torch.Tensor]:
    arrays = unpack_arrays(content, "arrays")
    return {
        int(name.removeprefix("layer-")): torch.from_numpy(array.astype(np.float64))
        for name, array in arrays.items()
    }


def _as_arrays(deltas: dict[int, torch.Tensor]) -> ArrayRecord:
    arrays: dict[str, Any] = {
        f"layer-{layer}": delta.float().numpy() for layer, delta in sorted(deltas.items())
    }
    return arrays_record(arrays)
