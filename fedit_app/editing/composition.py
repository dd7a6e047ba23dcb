"""Learning one value for facts that are spread over several holders, none of whom has all texts.

What `values` minimises over the facts of a key is learned here as federated averaging learns
weights: in each round every holder takes a few steps of Adam from the value that all have, on the
loss of its own facts, and the next value is a combination of what the holders return. Only the
change of the last output of the site is learned, the one that an MKV carries.

Every holder combines for itself, from the same numbers in the same order, so all of them have the
same value, and whoever passes the numbers on need not be able to read them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedit_app.editing.optimise import Objective, batch_that_fits, reach_of, within
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.sites import Site
from fedit_app.editing.values import KeyRows, ValueProblem
from fedit_app.mkv.packing import rounded
from fedit_app.models.editable import EditableModel

# An MKV's rounding may lengthen a value that is as long as it may be.
_ROUNDING = 1.02

# With steps of one size, holders whose facts pull apart pass each other from round to round.
_SHRINK = 0.85

# The lead of the targets, in nats, that a value must have before the first round to hold.
_FIRST_MARGIN = 1.0

Combination = Callable[[np.ndarray], np.ndarray]
"""Changes (holders, d_model) float64 of the holders, in the order of their names -> (d_model,)."""

COMBINATIONS: dict[str, Combination] = {
    "mean": lambda changes: changes.mean(axis=0),
    "median": lambda changes: np.median(changes, axis=0),
}


def combined(
    changes: Sequence[np.ndarray], h0: np.ndarray, clamp: float, rule: str, precision: str
) -> np.ndarray:
    """The next value of a key: (d_model,) float32, rounded as an MKV carries it.

    Args:
        changes: v - h0 of the holders, (d_model,) each, in the order of their names. One that is
            not finite does not count; one longer than clamp |h0| is shortened.
        h0: (d_model,) float32, as the MKVs of the key carry it.
        clamp: largest |v - h0|, in units of |h0|.
        rule: one of `COMBINATIONS`.
        precision: one of `mkv.PRECISIONS`.
    """
    longest = clamp * float(np.linalg.norm(h0.astype(np.float64)))
    finite = [c.astype(np.float64) for c in changes if np.isfinite(c).all()]
    norms = [float(np.linalg.norm(change)) for change in finite]
    kept = [
        change * min(1.0, longest / norm) if norm else change
        for change, norm in zip(finite, norms, strict=True)
    ]
    change = COMBINATIONS[rule](np.stack(kept)) if kept else np.zeros(h0.shape)
    return rounded((h0 + change).astype(np.float32), precision)


def step_size(rate: float, round_: int) -> float:
    """Adam's step size after so many rounds, from that of the first one."""
    return rate * _SHRINK**round_


def margin(round_: int, rounds: int) -> float:
    """The least lead, in nats, with which a value holds: large at first, none after all rounds.

    Args:
        round_: how many rounds were before.
        rounds: how many there are at most.
    """
    return _FIRST_MARGIN * max(0.0, 1 - round_ / rounds)


@dataclass(frozen=True)
class LocalSteps:
    """What a holder makes of n values.

    Attributes:
        change: (n, d_model) v - h0 after its steps.
        lead: (n,) by how much the value with which it began, patched in, says the targets of its
            facts, see `values.Outcome`; -inf if it is longer than a value may be.
    """

    change: Tensor
    lead: Tensor


def local_steps(
    model: EditableModel,
    keys: Sequence[KeyRows],
    site: Site,
    settings: EditSettings,
    objective: Objective,
    change: Tensor,
    steps: int,
    rate: float,
) -> LocalSteps:
    """Take a few steps of Adam on the loss of own facts, from given values on.

    Args:
        model: the model, unedited.
        keys: the holder's own facts of n keys.
        site: where the values stand.
        settings: hyperparameters.
        objective: what is minimised.
        change: (n, d_model) v - h0 of the given values.
        steps: how many steps; 0 only looks at the given values.
        rate: Adam's step size.
    """
    size = settings.batch or batch_that_fits(model, keys, site.first)
    parts = []
    for begin in range(0, len(keys), size):
        chosen = slice(begin, begin + size)
        problem = ValueProblem.of(model, keys[chosen], site)
        given = change[chosen].to(problem.h0)
        said = problem.patched(given).lead
        short = given.norm(dim=-1) <= _ROUNDING * reach_of(problem, settings)[:, -1, 0]
        stepped = _stepped(problem, settings, objective, given, steps, rate)
        parts.append(LocalSteps(stepped, torch.where(short, said, -torch.inf)))
    return LocalSteps(
        torch.cat([part.change for part in parts]),
        torch.cat([part.lead for part in parts]),
    )


def _stepped(
    problem: ValueProblem,
    settings: EditSettings,
    objective: Objective,
    given: Tensor,
    steps: int,
    rate: float,
) -> Tensor:
    """(n, d_model) v - h0 after steps of Adam from given values on."""
    h0 = problem.h0
    reach, norms = reach_of(problem, settings)[:, -1], h0[:, -1].norm(dim=-1)
    delta = given.clone().requires_grad_()
    adam = torch.optim.Adam([delta], lr=rate)
    others = torch.zeros_like(h0[:, :-1])
    for _ in range(steps):
        outcome = problem.evaluate(torch.cat([others, delta[:, None]], dim=1))
        decay = settings.weight_decay * delta.norm(dim=-1) / norms**2
        loss, _ = objective(outcome, decay, settings)
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        with torch.no_grad():
            delta.copy_(within(delta, reach))
    return delta.detach()
