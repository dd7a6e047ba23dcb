"""LoRA under FedAvg and FedProx: nodes train an adapter on their own facts, factors are averaged.

As in FedIT (Zhang et al., ICASSP 2024, arXiv 2305.05644), by PEFT. With A_i (r, d_ff) and B_i
(d_model, r) of n nodes, the change of a layer after each round is

    alpha / r mean_i(B_i) mean_i(A_i),   which is not   alpha / r mean_i(B_i A_i):

the trap of averaging factors (FFA-LoRA, Sun et al., ICLR 2024, arXiv 2403.12313).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from fedit_app.evaluation.scores import Before, nothing
from fedit_app.experiments.baselines.federated import MU, train_in_rounds
from fedit_app.experiments.baselines.lora import (
    ALPHA,
    NAME,
    RANK,
    RATE,
    STEPS,
    changes_of,
    peft,
)
from fedit_app.experiments.baselines.training import Lesson
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel


@contextmanager
def lora_fedavg(model: EditableModel, lesson: Lesson, mu: float = 0.0) -> Iterator[Before]:
    """The model with the averaged adapter merged into its weights; FedProx with a mu.

    Raises:
        FedEditError: PEFT is not installed.
    """
    with model.edited(averaged_changes(model, lesson.groups, lesson.seed, mu)):
        yield nothing


@contextmanager
def lora_fedprox(model: EditableModel, lesson: Lesson) -> Iterator[Before]:
    """The same under FedProx.

    Raises:
        FedEditError: PEFT is not installed.
    """
    with lora_fedavg(model, lesson, MU) as before:
        yield before


def averaged_changes(
    model: EditableModel, groups: Sequence[Sequence[EditRequest]], seed: int, mu: float = 0.0
) -> dict[int, Tensor]:
    """Layer -> alpha / r mean(B) mean(A) (d_model, d_ff) after the last round."""
    found = peft()
    model.require_editable(range(model.n_layers))
    torch.manual_seed(seed)
    names, d_model = model.module_names(range(model.n_layers)), model.d_model
    config = found.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[*names.values()])
    adapted: Any = cast(Any, found.LoraModel)(model.model, {NAME: config}, NAME)
    try:
        factors = [factor for factor in adapted.parameters() if factor.requires_grad]
        train_in_rounds(model, factors, groups, RATE, STEPS, mu)
        return changes_of(model, names, d_model)
    finally:
        adapted.unload()
        model.model.requires_grad_(False)
