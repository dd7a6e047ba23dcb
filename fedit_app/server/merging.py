"""Strategies that merge the nodes' changes of the weights in other ways than by their mean.

They are what one does with edited models without MKVs: the peers that the ledger is compared with.
Each round the nodes edit the common model with their requests of the slot; tau_i is what a node's
edits add to it, and the next common model is the present one plus the merged change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedit_app.protocol.messages import arrays_record, unpack_arrays

Merge = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Changes (d_model, d_ff) of the nodes, in an order that does not depend on that of arrival."""

KEPT = 0.2

_ARRAYS = "arrays"


def task_arithmetic(changes: Sequence[np.ndarray], scale: float = 1.0) -> np.ndarray:
    """scale sum_i tau_i (Ilharco et al., ICLR 2023, arXiv 2212.04089).

    Args:
        changes: n arrays of one shape.
        scale: lambda; with 1 no edit is weakened by the number of nodes.

    Returns:
        The merged change, float64.
    """
    total: np.ndarray = np.sum(np.asarray(changes, np.float64), axis=0)
    return scale * total


def ties(changes: Sequence[np.ndarray], kept: float = KEPT, scale: float = 1.0) -> np.ndarray:
    """TIES merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708): trim, elect a sign, merge.

    Each change keeps its `kept` largest entries; the sign of an entry is that of their sum; its
    value the mean of those that have this sign and were not trimmed.

    Args:
        changes: n arrays of one shape.
        kept: share of the entries of a change that are kept, over 0 to 1; the paper's is 0.2.
        scale: lambda.

    Returns:
        The merged change, float64.
    """
    trimmed = np.stack([_largest(np.asarray(change, np.float64), kept) for change in changes])
    agree = (np.sign(trimmed) == np.sign(trimmed.sum(axis=0))) & (trimmed != 0)
    total: np.ndarray = np.where(agree, trimmed, 0.0).sum(axis=0)
    merged: np.ndarray = scale * total / np.maximum(agree.sum(axis=0), 1)
    return merged


def _largest(change: np.ndarray, kept: float) -> np.ndarray:
    """A change with only its largest entries, at least one."""
    count = max(1, round(kept * change.size))
    least = np.partition(np.abs(change), change.size - count, axis=None)[change.size - count]
    return np.where(np.abs(change) >= least, change, 0.0)


class Merging(FedAvg):
    """Flower's FedAvg with another merge in the place of the mean.

    FedAvg's own `aggregate_train` checks the answers and averages their metrics. Its mean of the
    weights, which counts a node by its requests, is not used: none of these merges follows from it.

    Attributes:
        merge: how the changes of a layer become one.
    """

    merge: Merge

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sent: dict[str, np.ndarray] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note the common model, of which the nodes' answers are changed copies."""
        self._sent = unpack_arrays(RecordDict({_ARRAYS: arrays}), _ARRAYS)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The common model with the merged change; None if nobody answered."""
        arrived = list(replies)
        arrays, metrics = super().aggregate_train(server_round, arrived)
        if arrays is None:
            return arrays, metrics
        valid = [message for message in arrived if not message.has_error()]
        found = [unpack_arrays(message.content, _ARRAYS) for message in valid]
        merged = {
            name: sent + type(self).merge(_ordered([each[name] - sent for each in found]))
            for name, sent in self._sent.items()
        }
        return arrays_record({name: a.astype(np.float32) for name, a in merged.items()}), metrics


def _ordered(changes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Changes in an order of their own, so that a sum is the same however the nodes answer."""
    return sorted(changes, key=lambda change: change.tobytes())


class TaskArithmetic(Merging):
    """Strategy `task-arithmetic`: the sum of the nodes' changes."""

    merge = staticmethod(task_arithmetic)


class Ties(Merging):
    """Strategy `ties`: the largest entries of the nodes' changes, where their signs agree."""

    merge = staticmethod(ties)
