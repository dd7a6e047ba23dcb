"""Checks of what a node uploads."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from fedit_app.mkv import Form, Record
from fedit_app.protocol.messages import KEY_SUMS, LEAST_WEIGHT, PRIOR, unpack_arrays
from fedit_app.protocol.schema import Answer, RoundAsk, TrainAnswer
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

_ARRAYS, _METRICS, _WEIGHT = "arrays", "metrics", "num-examples"


def form_of(model: ArrayRecord, sketch_width: int, kinds: int) -> Form:
    """What the MKVs of a run look like.

    Args:
        model: the weights of the edited layers, each `(d_model, d_ff)`.
        sketch_width: of the run configuration.
        kinds: of how many kinds of contexts an MKV has a pair.
    """
    d_model, d_ff = next(iter(model.values())).shape
    return Form(len(model), d_ff, d_model, sketch_width, kinds)


def check_average(content: RecordDict, sent: RecordDict, answer: Answer) -> None:
    """Check what a stock strategy averages: one answer that does not fit would end its run.

    Args:
        content: the node's answer.
        sent: what it answers.
        answer: what it says.

    Raises:
        FedEditError: weights, or other arrays that were asked for, are missing, of other names or
            shapes than they have to be, or not finite; or the number by which the weights are
            weighted is another than the node's number of requests.
    """
    metrics = dict(content.metric_records)
    if list(metrics) != [_METRICS] or list(metrics[_METRICS]) != [_WEIGHT]:
        raise FedEditError(f"its metrics have to be {_WEIGHT} alone")
    number = metrics[_METRICS][_WEIGHT]
    if not isinstance(number, int | float) or not 0 <= number < math.inf:
        raise FedEditError(f"its {_WEIGHT} has to be a number from 0")
    if not isinstance(answer, TrainAnswer):
        return
    if number != (answer.requests or LEAST_WEIGHT):
        raise FedEditError(f"its {_WEIGHT} has to be its number of requests")
    asked = RoundAsk.parse(dict(sent.config_records["config"]))
    shapes = _shapes(unpack_arrays(sent, _ARRAYS))
    squares = {name: (shape[-1], shape[-1]) for name, shape in shapes.items()}
    wanted: dict[str, Mapping[str, tuple[int, ...]]] = {_ARRAYS: shapes}
    wanted |= {KEY_SUMS: squares} if asked.key_sums else {}
    wanted |= {PRIOR: squares} if asked.prior_from == answer.node else {}
    if set(content.array_records) != set(wanted):
        raise FedEditError(f"{' and '.join(wanted)} have to come with it, and no other arrays")
    for record, expected in wanted.items():
        found = unpack_arrays(content, record)
        if _shapes(found) != expected:
            raise FedEditError(f"its {record} have other names or shapes than those of the weights")
        if not all(np.isfinite(array).all() for array in found.values()):
            raise FedEditError(f"its {record} are not finite")


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def check_amount(count: int, most: int) -> None:
    """Raises FedEditError for an upload of more MKVs than a node may make in a slot."""
    if count > most:
        raise FedEditError(
            f"uploaded {count} MKVs, the run takes {most} from a node in a slot, so it takes none "
            "of them; lower requests-per-slot, or raise max-uploads-per-slot"
        )


def within(lookup: np.ndarray, most: int, name: str) -> np.ndarray:
    """The lookup keys of a node that are looked up: no more than it may upload MKVs in a slot.

    Every answer tells the node of MKVs near a key of its choice, so that it could map the subjects
    of others with keys that belong to no request of its own.

    Args:
        lookup: `(n, width)`.
        most: of the run configuration.
        name: the node, for the log.
    """
    if len(lookup) > most:
        logger.warning(
            "node %s: %d lookup keys sent; only the first %d are looked up (max-uploads-per-slot)",
            *(name, len(lookup), most),
        )
    return lookup[:most]


def check_again(again: Collection[str], asked: Collection[str]) -> None:
    """Raises FedEditError for MKVs of earlier slots that a node was not asked for."""
    unasked = set(again).difference(asked)
    if unasked:
        raise FedEditError(f"uploaded MKV {min(unasked)} again, which it was not asked for")


def check_origin(name: str, slot: int, mkvs: Sequence[Record], again: Collection[str] = ()) -> None:
    """Raises FedEditError for an upload that is not a node's own, or of a slot to come."""
    for mkv in mkvs:
        if mkv.node != name or (mkv.slot > slot and mkv.id not in again):
            raise FedEditError(
                f"uploaded MKV {mkv.id} says it is of node {mkv.node!r}, slot {mkv.slot}"
            )
