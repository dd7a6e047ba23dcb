"""Fine-tuning of one layer's output projection W_l on the facts.

`ft_m` is FT-M of EasyEdit (Wang et al., ACL 2024, arXiv 2308.07269): depth first, each fact is
trained to its end before the next one begins. `locft_bf` is LocFT-BF (Yang et al., ICLR 2026, arXiv
2509.22072): breadth first, epochs over all facts in batches. `ft_fedavg` and `ft_fedprox` train its
layer at the nodes, each on its own facts, and average it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fedit_app.evaluation.scores import Before, nothing
from fedit_app.experiments.baselines.federated import MU, train_in_rounds
from fedit_app.experiments.baselines.training import Lesson, descend, fact_rows, target_loss
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel

STEPS, RATE, BATCH = 25, 5e-4, 100
"""Steps of a fact, or epochs, and Adam's step size, of both; facts in a batch of LocFT-BF."""

# The tuned layer, by model_type and depth. Other models get Llama-3-8B's share of their depth, not
# measured for them.
_LLAMA = ("llama", 32)
_FT_M = {_LLAMA: 21}
_LOCFT_BF = {_LLAMA: 22, ("qwen2", 28): 6}


def tuned_layer(model: EditableModel, known: Mapping[tuple[str, int], int]) -> int:
    """The layer to tune."""
    shape = (model.model.config.model_type, model.n_layers)
    return known.get(shape, round(known[_LLAMA] / _LLAMA[1] * model.n_layers))


@contextmanager
def ft_m(model: EditableModel, lesson: Lesson) -> Iterator[Before]:
    """FT-M: 25 steps on the first fact, then on the second one, and so on."""
    facts = lesson.facts
    alone = [[[[number]]] * STEPS for number in range(len(facts))]
    with _tuned(model, _FT_M, lambda weight: _tune(model, weight, facts, alone)):
        yield nothing


@contextmanager
def locft_bf(model: EditableModel, lesson: Lesson) -> Iterator[Before]:
    """LocFT-BF: 25 epochs over all facts in new orders."""
    facts = lesson.facts
    random = np.random.default_rng(lesson.seed)
    orders = [random.permutation(len(facts)).tolist() for _ in range(STEPS)]
    epochs = [[o[at : at + BATCH] for at in range(0, len(o), BATCH)] for o in orders]
    with _tuned(model, _LOCFT_BF, lambda weight: _tune(model, weight, facts, [epochs])):
        yield nothing


@contextmanager
def ft_fedavg(model: EditableModel, lesson: Lesson, mu: float = 0.0) -> Iterator[Before]:
    """LocFT-BF's layer, steps and step size under FedAvg; under FedProx with a mu."""

    def train(weight: Tensor) -> None:
        train_in_rounds(model, [weight], lesson.groups, RATE, STEPS, mu)

    with _tuned(model, _LOCFT_BF, train):
        yield nothing


@contextmanager
def ft_fedprox(model: EditableModel, lesson: Lesson) -> Iterator[Before]:
    """The same under FedProx."""
    with ft_fedavg(model, lesson, MU) as before:
        yield before


@contextmanager
def _tuned(
    model: EditableModel,
    known: Mapping[tuple[str, int], int],
    train: Callable[[Tensor], None],
) -> Iterator[None]:
    """The model with W_l trained inside the block; afterwards bit for bit as before.

    Args:
        model: the model.
        known: its layer l, see `tuned_layer`.
        train: trains W_l.
    """
    layer = tuned_layer(model, known)
    model.require_editable([layer])
    weight = model.mlp_output(layer).get_parameter("weight")
    with model.edited({layer: torch.zeros_like(model.weight(layer))}):
        weight.requires_grad_(True)
        try:
            train(weight)
        finally:
            weight.requires_grad_(False)
        yield


def _tune(
    model: EditableModel,
    weight: Tensor,
    facts: Sequence[EditRequest],
    runs: Sequence[Sequence[Sequence[Sequence[int]]]],
) -> None:
    """Train W_l on facts by the epochs of one Adam after the other, see `descend`."""
    rows = fact_rows(model, facts)
    for epochs in runs:
        descend([weight], lambda b: target_loss(model, [rows[i] for i in b]), RATE, epochs)
