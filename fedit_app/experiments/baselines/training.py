"""What baselines share: the facts to be learned, and gradient steps on their targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit_app.evaluation.scores import last_states
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import TokenRow, continuation_row, pad

ENOUGH = 1e-2
"""A batch whose loss is below this one is left alone (the threshold of EasyEdit and LocFT-BF)."""


@dataclass(frozen=True)
class Lesson:
    """What a baseline learns, and from what.

    Attributes:
        groups: the facts of each node.
        seed: of all that is random.
        spare: reads the records of the run's data that nobody edits and that have nothing to do
            with the facts, for a method that is trained before it edits.
    """

    groups: Sequence[Sequence[EditRequest]]
    seed: int
    spare: Callable[[], Sequence[EditRequest]]

    @property
    def facts(self) -> list[EditRequest]:
        """The facts of all nodes in one place, each once."""
        return list(dict.fromkeys(fact for own in self.groups for fact in own))


def no_text(_: str) -> str:
    """Nothing before any prompt, where scores do not depend on W_out alone."""
    return ""


def fact_rows(model: EditableModel, requests: Sequence[EditRequest]) -> list[TokenRow]:
    """Each fact's prompt with its target as tokens."""
    return [continuation_row(model, *request.asked_new) for request in requests]


def target_loss(model: EditableModel, rows: Sequence[TokenRow]) -> Tensor:
    """Mean over n facts of the mean negative log-likelihood of the target's tokens, in nats.

    The prompts' tokens are no part of it.
    """
    ids, mask = (
        part.to(model.device) for part in pad([row.ids for row in rows], model.pad_token_id)
    )
    final = last_states(model, ids, mask)
    losses = []
    for number, row in enumerate(rows):
        positions = range(row.target - 1, len(row.ids) - 1)
        log_p = model.log_probabilities(final[number, list(positions)])
        tokens = torch.tensor(row.ids[row.target :], device=log_p.device)
        losses.append(-log_p.gather(1, tokens[:, None]).mean())
    return torch.stack(losses).mean()


@torch.enable_grad()
def descend(
    parameters: Sequence[Tensor],
    loss_of: Callable[[Sequence[int]], Tensor],
    rate: float,
    epochs: Iterable[Sequence[Sequence[int]]],
) -> None:
    """Adam's steps on batches of facts, until the mean loss of an epoch is below `ENOUGH`.

    A batch whose loss is below it already is left alone.

    Args:
        parameters: what is trained.
        loss_of: the loss of some facts, by number.
        rate: Adam's step size.
        epochs: the batches of each epoch.
    """
    adam = torch.optim.Adam(parameters, lr=rate)
    for batches in epochs:
        losses = []
        for batch in batches:
            loss = loss_of(batch)
            losses.append(float(loss.detach()))
            if losses[-1] >= ENOUGH:
                adam.zero_grad()
                loss.backward()
                adam.step()
        if sum(losses) < ENOUGH * len(losses):
            return
