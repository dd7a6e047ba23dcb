"""CollabEdit (Zheng et al., ICLR 2025, arXiv 2410.09508): a merge that loses nothing of an edit.

Beside its change of the weights, Delta_i, each node sends K_i K_i^T of the keys behind it. Then

    Delta = sum_i Delta_i (lambda C + K_i K_i^T) (lambda C + sum_i K_i K_i^T)^-1

is what one solve of all nodes' keys and shifts gives, as Delta_i (lambda C + K_i K_i^T) is
R_i K_i^T. Sums of earlier rounds stay in the last factor, the paper's dynamic covariance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from scipy.linalg import solve

from fedit_app.protocol.messages import KEY_SUMS, PRIOR, arrays_record, unpack_arrays
from fedit_app.server.grid import RunGrid
from fedit_app.support.errors import FedEditError

_ARRAYS = "arrays"


def collabedit(
    changes: Sequence[np.ndarray],
    key_sums: Sequence[np.ndarray],
    prior: np.ndarray,
    earlier: np.ndarray | float = 0.0,
) -> np.ndarray:
    """The merged change of one layer.

    With G_i = K_i K_i^T, E those of earlier rounds and T = E + sum_i G_i it is computed as

        sum_i Delta_i - (sum_i Delta_i (T - G_i)) (lambda C + T)^-1

    which is the same, and does not multiply the rounding of Delta_i by the whole of lambda C.

    Args:
        changes: Delta_i (d_model, d_ff) of n nodes.
        key_sums: G_i (d_ff, d_ff).
        prior: lambda C (d_ff, d_ff).
        earlier: E (d_ff, d_ff); 0 in the first round.

    Returns:
        (d_model, d_ff) float64.
    """
    deltas, sums = np.asarray(changes, np.float64), np.asarray(key_sums, np.float64)
    total = earlier + sums.sum(axis=0)
    others = sum(delta @ (total - own) for delta, own in zip(deltas, sums, strict=True))
    taken: np.ndarray = solve(prior.astype(np.float64) + total, others.T, assume_a="sym").T
    merged: np.ndarray = deltas.sum(axis=0) - taken
    return merged


class CollabEdit(FedAvg):
    """Strategy `collabedit`. The first of the nodes sends lambda C once, which all have alike."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sent: dict[str, np.ndarray] = {}
        self._prior: dict[str, np.ndarray] = {}
        self._earlier: dict[str, np.ndarray] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for the sums of keys as well, and one node for lambda C until it is here."""
        self._sent = unpack_arrays(RecordDict({_ARRAYS: arrays}), _ARRAYS)
        config["key-sums"] = True
        config["prior-from"] = ""
        if not self._prior and isinstance(grid, RunGrid):
            config["prior-from"] = min(grid.members)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The common model with the merged change.

        Raises:
            FedEditError: the node that was to send lambda C has not answered.
        """
        arrived = [message for message in replies if not message.has_error()]
        sums = [unpack_arrays(message.content, KEY_SUMS) for message in arrived]
        for message in arrived:
            del message.content[KEY_SUMS]
            if PRIOR in message.content.array_records:
                self._prior = unpack_arrays(message.content, PRIOR)
                del message.content[PRIOR]
        arrays, metrics = super().aggregate_train(server_round, arrived)
        if arrays is None:
            return arrays, metrics
        if not self._prior:
            raise FedEditError(
                "strategy collabedit: the node that was to send lambda C did not answer; start the "
                "run again"
            )
        changed = [unpack_arrays(message.content, _ARRAYS) for message in arrived]
        merged = {}
        for name, sent in self._sent.items():
            pairs = [(c[name] - sent, s[name]) for c, s in zip(changed, sums, strict=True)]
            pairs.sort(key=lambda pair: pair[0].tobytes())  # whoever answers first
            earlier = self._earlier.get(name, np.zeros_like(pairs[0][1], np.float64))
            deltas, own = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            merged[name] = sent + collabedit(deltas, own, self._prior[name], earlier)
            self._earlier[name] = earlier + np.sum(own, axis=0)
        return arrays_record({name: a.astype(np.float32) for name, a in merged.items()}), metrics
