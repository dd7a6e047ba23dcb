"""FedAvg and FedProx over what a baseline trains: every node on its own facts, then the mean.

FedAvg (McMahan et al., AISTATS 2017, arXiv 1602.05629); FedProx (Li et al., MLSys 2020, arXiv
1812.06127) adds mu / 2 |w - w_t|^2 to a node's loss, with w_t what the round began with. All nodes
count alike. No text leaves a node, and neither does a fact leave it by itself: what is averaged is
everybody's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedit_app.experiments.baselines.training import descend, fact_rows, target_loss
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import TokenRow

ROUNDS = 5
"""Rounds, in which a baseline's steps are taken in equal parts."""

MU = 0.01
"""FedProx's mu, of the values that the paper tries."""


def train_in_rounds(
    model: EditableModel,
    parameters: Sequence[Tensor],
    groups: Sequence[Sequence[EditRequest]],
    rate: float,
    steps: int,
    mu: float = 0.0,
) -> None:
    """Leave in the parameters what FedAvg, or FedProx, makes of them.

    All nodes begin a round with the same values; a step is on all facts of a node.

    Args:
        model: the model that the parameters belong to.
        parameters: what is trained and averaged, each by itself.
        groups: the facts of each node; nodes without any take no part.
        rate: Adam's step size.
        steps: of a node in all rounds together.
        mu: weight of the proximal term; 0: FedAvg.
    """
    rows = [fact_rows(model, facts) for facts in groups if facts]
    for _ in range(ROUNDS):
        begun = [parameter.detach().clone() for parameter in parameters]
        sums = [torch.zeros_like(parameter) for parameter in begun]
        for own in rows:
            _set(parameters, begun)
            _train(model, parameters, own, rate, steps // ROUNDS, mu)
            for total, parameter in zip(sums, parameters, strict=True):
                total += parameter.detach()
        _set(parameters, [total / len(rows) for total in sums])


def _train(
    model: EditableModel,
    parameters: Sequence[Tensor],
    rows: Sequence[TokenRow],
    rate: float,
    steps: int,
    mu: float,
) -> None:
    """A node's steps of a round."""
    begun = [parameter.detach().clone() for parameter in parameters]

    def loss_of(batch: Sequence[int]) -> Tensor:
        loss = target_loss(model, [rows[i] for i in batch])
        if not mu:
            return loss
        gaps = [(p - b).square().sum() for p, b in zip(parameters, begun, strict=True)]
        return loss + mu / 2 * torch.stack(gaps).sum()

    descend(parameters, loss_of, rate, [[range(len(rows))]] * steps)


@torch.no_grad()
def _set(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
