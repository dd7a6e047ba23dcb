"""LoRA under FedAvg: every node trains an adapter on its own facts, and both factors are averaged.

As in FedIT (Zhang et al., ICASSP 2024, arXiv 2305.05644), by PEFT. With A_i (r, d_ff) and B_i
(d_model, r) of n nodes, the change of a layer after each round is

    alpha / r mean_i(B_i) mean_i(A_i),   which is not   alpha / r mean_i(B_i A_i):

the trap of averaging factors (FFA-LoRA, Sun et al., ICLR 2024, arXiv 2403.12313). No text leaves a
node, and neither does a fact leave it by itself: what is averaged is everybody's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from fedit_app.evaluation.scores import Before, nothing
from fedit_app.experiments.baselines.lora import (
    ALPHA,
    NAME,
    RANK,
    RATE,
    STEPS,
    changes_of,
    peft,
)
from fedit_app.experiments.baselines.training import Lesson, descend, fact_rows, target_loss
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import TokenRow

ROUNDS = 5
"""Rounds, in which the steps of `lora` are taken in equal parts."""


@contextmanager
def lora_fedavg(model: EditableModel, lesson: Lesson) -> Iterator[Before]:
    """The model with the averaged adapter merged into its weights.

    Raises:
        FedEditError: PEFT is not installed.
    """
    with model.edited(averaged_changes(model, lesson.groups, lesson.seed)):
        yield nothing


def averaged_changes(
    model: EditableModel, groups: Sequence[Sequence[EditRequest]], seed: int
) -> dict[int, Tensor]:
    """Layer -> alpha / r mean(B) mean(A) (d_model, d_ff) after the last round.

    All nodes begin a round with the same factors; a step is on all facts of a node.
    """
    found = peft()
    model.require_editable(range(model.n_layers))
    torch.manual_seed(seed)
    names, d_model = model.module_names(range(model.n_layers)), model.d_model
    config = found.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[*names.values()])
    rows = [fact_rows(model, facts) for facts in groups if facts]
    adapted: Any = cast(Any, found.LoraModel)(model.model, {NAME: config}, NAME)
    try:
        factors = [factor for factor in adapted.parameters() if factor.requires_grad]
        for _ in range(ROUNDS):
            begun = [factor.detach().clone() for factor in factors]
            sums = [torch.zeros_like(factor) for factor in begun]
            for own in rows:
                _set(factors, begun)
                _train(model, factors, own)
                for total, factor in zip(sums, factors, strict=True):
                    total += factor.detach()
            _set(factors, [total / len(rows) for total in sums])
        return changes_of(model, names, d_model)
    finally:
        adapted.unload()
        model.model.requires_grad_(False)


def _train(model: EditableModel, factors: Sequence[Tensor], rows: Sequence[TokenRow]) -> None:
    """A node's steps of a round, on all its facts."""
    steps = [[range(len(rows))]] * (STEPS // ROUNDS)
    descend(factors, lambda batch: target_loss(model, [rows[i] for i in batch]), RATE, steps)


@torch.no_grad()
def _set(factors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for factor, value in zip(factors, values, strict=True):
        factor.copy_(value)
