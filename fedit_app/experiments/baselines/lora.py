"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) by PEFT, with AdaLoRA's form of the change.

As in EasyEdit: AdaLoRA (Zhang et al., ICLR 2023, arXiv 2303.10512) of rank 8, alpha 32, 50 steps of
5e-3. Here it changes the MLPs' output projections of all layers, where EasyEdit's changes queries
and values: what a model was before is then told by its W_out alone, as with every other method.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import torch

from fedit_app.evaluation.scores import Before, nothing
from fedit_app.experiments.baselines.training import Lesson, descend, fact_rows, target_loss
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError

RANK, ALPHA, STEPS, RATE = 8, 32, 50, 5e-3

NAME = "facts"


@contextmanager
def lora(model: EditableModel, lesson: Lesson) -> Iterator[Before]:
    """The model with a trained adapter merged into its weights.

    Raises:
        FedEditError: PEFT is not installed.
    """
    with model.edited(trained_changes(model, lesson.facts, lesson.seed)):
        yield nothing


def trained_changes(
    model: EditableModel, facts: Sequence[EditRequest], seed: int
) -> dict[int, torch.Tensor]:
    """Layer -> B A of the trained adapter (d_model, d_ff), all facts in one batch a step."""
    found = peft()
    model.require_editable(range(model.n_layers))
    torch.manual_seed(seed)
    names, d_model = model.module_names(range(model.n_layers)), model.d_model
    config = found.AdaLoraConfig(
        init_r=RANK,
        target_r=RANK,
        lora_alpha=ALPHA,
        total_step=STEPS,
        tfinal=STEPS - 1,
        target_modules=[*names.values()],
    )
    rows, everything = fact_rows(model, facts), [[range(len(facts))]] * STEPS
    adapted: Any = cast(Any, found.AdaLoraModel)(model.model, {NAME: config}, NAME)
    try:
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        descend(trained, lambda b: target_loss(model, [rows[i] for i in b]), RATE, everything)
        return changes_of(model, names, d_model)
    finally:
        adapted.unload()
        model.model.requires_grad_(False)


def peft() -> ModuleType:
    """PEFT, which is no requirement of FedEdit.

    Raises:
        FedEditError: it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError:
        raise FedEditError(
            "baseline lora: PEFT is not installed; pip install 'fedit[baselines]'"
        ) from None


def changes_of(
    model: EditableModel, layers: Iterable[int], d_model: int
) -> dict[int, torch.Tensor]:
    """Layer -> change (d_model, d_ff) that PEFT's adapter makes of W_out.

    Args:
        model: the model, whose layers are adapted now.
        layers: the layers.
        d_model: its own, which adapted layers do not tell.
    """
    changes = {layer: _change(model.mlp_output(layer)) for layer in layers}
    # Conv1D keeps the transpose.
    return {n: c if len(c) == d_model else c.T for n, c in changes.items()}


def _change(adapted: Any) -> torch.Tensor:
    """B A of an adapted module of PEFT, as its weight lies."""
    change: torch.Tensor = adapted.get_delta_weight(NAME).detach().clone()
    return change
