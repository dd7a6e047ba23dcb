"""The node's handlers: each unpacks a message, asks the `Participant`, and packs its answer.

Nothing of a request's text leaves a node: of an unexpected error only the type is reported; the
node's own log has all of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedit_app.config.run_config import RunConfig
from fedit_app.ledger.conflicts import Conflict
from fedit_app.node.compose_stage import Contested
from fedit_app.node.envelope import Envelope
from fedit_app.node.participant import Participant
from fedit_app.node.reedit_stage import ReeditOutcome
from fedit_app.protocol.messages import (
    COMPOSE,
    EDIT,
    EVALUATE,
    HELLO,
    KEY_SUMS,
    LEAST_WEIGHT,
    PRIOR,
    REEDIT,
    TRAIN,
    Call,
    arrays_record,
    note_cost,
    pack_error,
    unpack_arrays,
    unpack_info,
    unpack_values,
    with_lookup,
    with_values,
)
from fedit_app.protocol.schema import (
    ComposeAnswer,
    ComposeAsk,
    ConflictIds,
    EditAnswer,
    EditAsk,
    EvaluateAsk,
    HelloAsk,
    ReeditAnswer,
    ReeditAsk,
    RoundAsk,
    TrainAnswer,
)
from fedit_app.support.errors import FedEditError
from fedit_app.support.memory import peak_memory

logger = logging.getLogger(__name__)

_SERVER = "the server's message"

Handler = Callable[[RecordDict, Participant], RecordDict]


class Answer(NamedTuple):
    """A node's answer to a message.

    Attributes:
        content: what goes back to the server; an error is an answer, too.
        sound: False after an unexpected error: this process should answer no further message.
    """

    content: RecordDict
    sound: bool = True


def answer(call: Call, content: RecordDict) -> Answer:
    """Answer a message to a node.

    Args:
        call: which message, to which node, in which run.
        content: its content.
    """
    started = time.perf_counter()
    name, stage = call.node, call.stage
    try:
        config = RunConfig.parse(call.run_config)
        participant = Participant(config, call.node_config, call.run_id)
        name = participant.name
        logger.info("node %s%s: %s begins", name, _slot(content), stage)
        found = Answer(HANDLERS[call.message_type](content, participant))
    except FedEditError as error:
        logger.error("node %s: %s failed: %s", name, stage, error)
        found = Answer(pack_error(name, stage, error))
    except Exception as error:
        logger.exception("node %s: %s failed", name, stage)
        found = Answer(pack_error(name, stage, error), sound=False)
    torch.cuda.empty_cache()  # other processes on this device may need the memory
    seconds = time.perf_counter() - started
    note_cost(found.content, seconds, _peak_memory())
    logger.info("node %s%s: %s took %.1f s", name, _slot(content), stage, seconds)
    return found


def _peak_memory() -> int:
    """Most bytes so far: of the CUDA device if one is in use, else of this process."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else peak_memory()


def _slot(content: RecordDict) -> str:
    """For the log: the slot that a message is about, if it is about one."""
    try:
        return f", slot {unpack_info(content)['slot']}"
    except (FedEditError, KeyError):
        return ""


def hello(content: RecordDict, participant: Participant) -> RecordDict:
    """Introduce the node, and send the lookup keys of the slot with which it begins."""
    asked = HelloAsk.read(content)
    slot, envelope = _of_the_run(asked.first_slot, participant), participant.envelope
    answered = participant.hello(slot)
    ids = {name: getattr(answered, name) for name in ("wants", "holds", "withdrawn")}
    outer = {name: [*map(envelope.id_out, found)] for name, found in ids.items()}
    return _with_keys(answered.model_copy(update=outer).packed(), participant, slot)


def edit(content: RecordDict, participant: Participant) -> RecordDict:
    """Edit stage: the node's own requests of a slot."""
    asked, envelope = EditAsk.read(content), participant.envelope
    slot = _of_the_run(asked.slot, participant)
    candidates = envelope.unpack(content).mkvs
    missing = [envelope.id_in(id_) for id_ in asked.missing]
    withdrawn = {envelope.id_in(id_): set(names) for id_, names in asked.withdrawn.items()}
    outcome = participant.edit(slot, candidates, asked.central, missing, withdrawn)
    upload = asked.upload and participant.policy.upload
    answered = EditAnswer(
        node=participant.name,
        head=participant.head,
        requests=outcome.requests,
        optimised=len(outcome.new) - outcome.renewed,
        cached=outcome.cached,
        renewed=outcome.renewed,
        warm_started=outcome.warm_started,
        reused=[envelope.id_out(id_) for id_ in outcome.reused],
        again=[envelope.id_out(mkv.id) for mkv in outcome.again],
        quarantined=outcome.quarantined,
        supersedes=_ids_out(outcome.supersedes if upload else {}, envelope),
        conflicts=_conflicts(outcome.conflicts, envelope),
        gone=[envelope.id_out(id_) for id_ in participant.without(withdrawn)],
    )
    return answered.packed(envelope.sealed([*outcome.new, *outcome.again] if upload else ()))


def reedit(content: RecordDict, participant: Participant) -> RecordDict:
    """Re-edit stage: MKVs of others, and the lookup keys of the next slot."""
    asked, envelope = ReeditAsk.read(content), participant.envelope
    slot, offered = _of_the_run(asked.slot, participant), envelope.unpack(content)
    votes = {envelope.id_in(id_): count for id_, count in asked.votes.items()}
    supersedes = _ids_in(asked.supersedes, envelope)
    outcome = participant.reedit(slot, offered.mkvs, votes, supersedes)
    answered = ReeditAnswer(
        node=participant.name,
        head=participant.head,
        received_from=outcome.received_from,
        rejections={**outcome.rejections, **offered.rejections},
        quarantined=outcome.quarantined,
        conflicts=_conflicts(outcome.conflicts, envelope),
        contested=_conflicts(outcome.contested, envelope),
        agreed=[envelope.id_out(id_) for id_ in outcome.agreed],
    )
    return _with_keys(answered.packed(), participant, slot + 1)


def compose(content: RecordDict, participant: Participant) -> RecordDict:
    """A round of composition: values of contested keys, and the MKVs of settled ones."""
    asked, envelope = ComposeAsk.read(content), participant.envelope
    slot, offered = _of_the_run(asked.slot, participant), envelope.unpack(content)
    keys = _contested_keys(asked, content, participant)
    accepted = ReeditOutcome({}, {}, [])
    if offered.mkvs:  # a re-edit scores the node's probes
        supersedes = _ids_in(asked.supersedes, envelope)
        accepted = participant.reedit(slot, offered.mkvs, supersedes=supersedes)
    outcome = participant.compose(slot, keys)
    answered = ComposeAnswer(
        node=participant.name,
        head=participant.head,
        said=outcome.said,
        leads=outcome.leads,
        received_from=accepted.received_from,
        rejections={**accepted.rejections, **offered.rejections},
        quarantined=accepted.quarantined,
        conflicts=_conflicts(accepted.conflicts, envelope),
        supersedes=_ids_out(outcome.supersedes, envelope),
    )
    taken = [key for key, said in zip(keys, outcome.said, strict=True) if said != "declined"]
    values = [
        envelope.value_out(
            change.astype("<f2"),
            participant.value_place(slot, key.round + 1, key.ids, participant.name),
        )
        for key, change in zip(taken, outcome.changes, strict=True)
    ]
    reply = answered.packed(envelope.sealed(outcome.made))
    return with_values(reply, np.stack(values)) if values else reply


def _contested_keys(
    asked: ComposeAsk, content: RecordDict, participant: Participant
) -> list[Contested]:
    """The keys of a round, with the values that came with it; one that does not open counts not."""
    envelope, d_model = participant.envelope, participant.workbench.model.d_model
    count = sum(len(key.holders) for key in asked.keys)
    values = iter(unpack_values(content, count, d_model, envelope.seals))
    found = []
    for key in asked.keys:
        ids = tuple(sorted(map(envelope.id_in, key.ids)))
        changes = {}
        for holder, value in zip(key.holders, values, strict=False):
            place = participant.value_place(asked.slot, key.round, ids, holder)
            try:
                changes[holder] = _finite(envelope.value_in(value, place))
            except FedEditError as error:
                logger.warning("value of node %r: left out: %s", holder, error)
        found.append(Contested(ids, key.round, changes, key.settled))
    return found


def _finite(value: np.ndarray) -> np.ndarray:
    if not np.isfinite(value).all():
        raise FedEditError("NaN or infinity in it")
    return value


def train(content: RecordDict, participant: Participant) -> RecordDict:
    """A round of a stock strategy: edit the global model with the slot's own requests."""
    deltas = _global_deltas(content, participant)
    asked = _round(content)
    slot, name = _of_the_run(asked.server_round, participant), participant.name
    found = participant.train(slot, deltas, asked.key_sums, asked.prior_from == name)
    requests = found.requests
    answered = TrainAnswer(node=name, requests=requests, optimised=requests, cached=found.cached)
    reply = answered.packed()
    reply["arrays"] = _as_arrays(found.changed)
    for record, matrices in ((KEY_SUMS, found.key_sums), (PRIOR, found.prior)):
        if matrices:
            reply[record] = _as_arrays(matrices)
    # Stock strategies divide by the sum of the weights, which may not be zero.
    reply["metrics"] = MetricRecord({"num-examples": float(requests) or LEAST_WEIGHT})
    return reply


def evaluate(content: RecordDict, participant: Participant) -> RecordDict:
    """Metrics of the node's model, or of the global model of a stock strategy."""
    if "arrays" in content.array_records:
        slot = _of_the_run(_round(content).server_round, participant, first=0)
        found = participant.evaluate(slot, _global_deltas(content, participant))
    else:
        asked = EvaluateAsk.read(content)
        slot = _of_the_run(asked.slot, participant, first=0)
        found = participant.evaluate(slot, central=asked.central)
    reply = found.packed()
    reply["metrics"] = MetricRecord({"num-examples": float(found.own.count if found.own else 0)})
    return reply


HANDLERS: dict[str, Handler] = {
    HELLO: hello,
    EDIT: edit,
    REEDIT: reedit,
    COMPOSE: compose,
    TRAIN: train,
    EVALUATE: evaluate,
}


def _conflicts(conflicts: Sequence[Conflict], envelope: Envelope) -> list[ConflictIds]:
    return [
        ConflictIds(held=envelope.id_out(c.held), gave_way=envelope.id_out(c.gave_way))
        for c in conflicts
    ]


def _ids_in(found: Mapping[str, Sequence[str]], envelope: Envelope) -> dict[str, list[str]]:
    """Ids of MKVs by id, as the ledger has them."""
    return {envelope.id_in(id_): [*map(envelope.id_in, ids)] for id_, ids in found.items()}


def _ids_out(found: Mapping[str, Sequence[str]], envelope: Envelope) -> dict[str, list[str]]:
    """Ids of MKVs by id, as the server has them."""
    return {envelope.id_out(id_): [*map(envelope.id_out, ids)] for id_, ids in found.items()}


def _with_keys(reply: RecordDict, participant: Participant, slot: int) -> RecordDict:
    """The reply with the lookup keys of a slot, if it has any."""
    keys = participant.lookup_keys(slot)
    return with_lookup(reply, participant.envelope.lookup(keys)) if len(keys) else reply


def _of_the_run(slot: int, participant: Participant, first: int = 1) -> int:
    """A slot that the server names, if the run has it."""
    last = participant.config.num_slots
    if not first <= slot <= last:
        raise FedEditError(f"{_SERVER} has an invalid slot: {slot} found; {first} to {last} exist")
    return slot


def _round(content: RecordDict) -> RoundAsk:
    """What a stock strategy's message asks beside the weights."""
    return RoundAsk.parse(dict(content.config_records.get("config", {})))


def _global_deltas(content: RecordDict, participant: Participant) -> dict[int, torch.Tensor]:
    """Layer -> change of its weights, of every edited layer."""
    arrays, bench = unpack_arrays(content, "arrays"), participant.workbench
    shape = (bench.model.d_model, bench.model.d_ff)
    names = {f"layer-{layer}": layer for layer in bench.settings.layers}
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != dict.fromkeys(names, shape):
        raise FedEditError(
            f"{_SERVER}: its arrays have to be {', '.join(names)}, each of shape {shape}"
        )
    return {
        names[name]: torch.from_numpy(array.astype(np.float64)) for name, array in arrays.items()
    }


def _as_arrays(deltas: dict[int, torch.Tensor]) -> ArrayRecord:
    arrays: dict[str, Any] = {
        f"layer-{layer}": delta.float().numpy() for layer, delta in sorted(deltas.items())
    }
    return arrays_record(arrays)
