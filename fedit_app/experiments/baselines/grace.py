"""GRACE (Hartvigsen et al., NeurIPS 2023, arXiv 2211.11031): a memory beside one layer.

The layer l is W_l, as in EasyEdit. With x its input at a token, the memory's keys k_i, values v_i
and deferral radii e_i, the layer puts out

    v_i*  if |x - k_i*| <= e_i*  else  W_l x,      i* = argmin_i |x - k_i|

A fact's key is x at the last token of its prompt, and its value is trained to say the target. No
weight changes: whoever serves the model has to serve the memory with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fedit_app.evaluation.scores import Before, last_states
from fedit_app.experiments.baselines.fine_tuning import tuned_layer
from fedit_app.experiments.baselines.training import (
    Lesson,
    descend,
    fact_rows,
    no_text,
    target_loss,
)
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import TokenRow, pad

STEPS, RATE, RADIUS = 50, 1.0, 1.0
"""EasyEdit's for Llama-2-7B: steps a fact, Adam's step size, and e of a new key."""

_LAYERS = {("llama", 32): 27}
_LESS = 1e-5


class Memory:
    """Keys with values, radii and what their values say.

    Attributes:
        keys: (d_ff,) each.
        values: (d_model,) each.
        radii: their deferral radii.
        labels: the targets.
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.radii: list[float] = []
        self.labels: list[str] = []

    def place(self, key: Tensor, label: str, start: Tensor) -> int:
        """Make room for a fact, by the rules of the paper's algorithm 1.

        A key far from all others is new. Near one that says the same, that one's radius grows to
        reach it. Near one that says something else, both get half their distance as radius.

        Args:
            key: (d_ff,) of the fact.
            label: its target.
            start: (d_model,) value of a new entry.

        Returns:
            The number of the entry that answers for the fact.
        """
        radius = RADIUS
        if self.keys:
            distances = torch.stack(self.keys).sub(key).norm(dim=1)
            near = int(distances.argmin())
            distance = float(distances[near])
            if distance <= self.radii[near] + RADIUS:
                if self.labels[near] == label:
                    self.radii[near] = max(self.radii[near], distance)
                    return near
                radius = distance / 2
                self.radii[near] = radius - _LESS
        self.keys.append(key)
        self.values.append(start)
        self.radii.append(radius)
        self.labels.append(label)
        return len(self.keys) - 1

    def read(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """What the layer puts out.

        Args:
            inputs: (..., d_ff) x.
            outputs: (..., d_model) W_l x.
        """
        if not self.keys:
            return outputs
        keys, values = torch.stack(self.keys), torch.stack(self.values)
        distances = torch.cdist(
            inputs.float().flatten(0, -2), keys, compute_mode="donot_use_mm_for_euclid_dist"
        )
        smallest, nearest = distances.min(1)
        radii = torch.tensor(self.radii, device=smallest.device)
        held = (smallest <= radii[nearest]).view(*outputs.shape[:-1], 1)
        chosen = values[nearest].view(outputs.shape).to(outputs.dtype)
        return torch.where(held, chosen, outputs)


@contextmanager
def grace(model: EditableModel, lesson: Lesson) -> Iterator[Before]:
    """The model with a memory of the facts, learned one after another."""
    facts = lesson.facts
    layer, memory = tuned_layer(model, _LAYERS), Memory()
    torch.manual_seed(lesson.seed)

    def answer(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output if model.shows_base else memory.read(inputs[0], output)

    hook = model.mlp_output(layer).register_forward_hook(answer)
    try:
        for fact, row in zip(facts, fact_rows(model, facts), strict=True):
            _learn(model, layer, memory, fact.target_new, row)
        yield no_text
    finally:
        hook.remove()


def _learn(model: EditableModel, layer: int, memory: Memory, label: str, row: TokenRow) -> None:
    """Place a fact in the memory, and train the value that answers for it."""
    key = _key(model, layer, row)
    # A cold start, as in EasyEdit: uniform in 0..1.
    at = memory.place(key, label, torch.rand(model.d_model).to(key.device))
    value = memory.values[at].clone().requires_grad_(True)
    memory.values[at] = value
    descend([value], lambda _: target_loss(model, [row]), RATE, [[[0]]] * STEPS)
    memory.values[at] = value.detach()


@torch.no_grad()
def _key(model: EditableModel, layer: int, row: TokenRow) -> Tensor:
    """(d_ff,) input of W_l at the last token of a prompt, float32."""
    inputs: list[Tensor] = []
    hook = model.mlp_output(layer).register_forward_pre_hook(
        lambda _, arguments: inputs.append(arguments[0])
    )
    try:
        ids, mask = (part.to(model.device) for part in pad([row.ids], model.pad_token_id))
        last_states(model, ids, mask)
    finally:
        hook.remove()
    return inputs[0][0, row.target - 1].float()
