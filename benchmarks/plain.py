"""Optimising a value as the published codes do, to compare the library with.

One request at a time with its contexts as one padded batch, every layer and every position in each
pass, and a fixed number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedit_app.editing.contexts import Template
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.values import Values, key_rows
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel, at_least_float32
from fedit_app.models.partial import trace
from fedit_app.models.tokens import pad


def plain_values(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[Template],
    settings: EditSettings,
) -> Values:
    """MEMIT's v* of requests, one after the other.

    Args:
        model: the model, unedited.
        requests: n requests.
        templates: context templates, the bare one first.
        settings: hyperparameters; `stop_after` and `batch` are not looked at.
    """
    found = [_plain_value(model, request, templates, settings) for request in requests]
    columns = zip(*found, strict=True)
    return Values(*(torch.stack(column) for column in columns))


def _plain_value(
    model: EditableModel,
    request: EditRequest,
    templates: Sequence[Template],
    settings: EditSettings,
) -> tuple[Tensor, ...]:
    rows = key_rows(model, [request], templates, with_copy=True)
    (copying,) = rows.copies
    texts = [*rows.contexts, rows.essence, copying]
    of_essence, of_copy = len(texts) - 2, len(texts) - 1
    ids, mask = (part.to(model.device) for part in pad([r.ids for r in texts], model.pad_token_id))
    number = torch.arange(len(texts), device=model.device)
    lookup = torch.tensor([row.lookup for row in texts], device=model.device)
    layer = settings.layers[-1]
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        upper = trace(model, layer + 1, model.n_layers - 1, inputs)
        states = at_least_float32(upper.hidden[number, lookup])

    wanted = [
        (line, position - 1, row.ids[position], 1 / (len(row.ids) - row.target))
        for line, row in enumerate(rows.contexts)
        for position in range(row.target, len(row.ids))
    ]
    line, position, token = (
        torch.tensor(part, device=model.device) for part in list(zip(*wanted, strict=True))[:3]
    )
    share = torch.tensor([part[3] for part in wanted], device=model.device)

    copied = slice(copying.target - 1, len(copying.ids) - 1)

    def scores(delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the target tokens, of every token behind the essence, in the copy.

        (targets,), (vocabulary,), (tokens of the copy, vocabulary).
        """
        final = _whole_pass(model, layer, (number, lookup), delta, inputs)
        everything = model.log_probabilities(final)
        at_targets = everything[line, position].gather(1, token[:, None])[:, 0]
        essence = everything[of_essence, lookup[of_essence]]
        return at_targets, essence, everything[of_copy, copied]

    h0 = states[0]
    norms = states[:of_essence].norm(dim=1)
    reach = settings.clamp * norms[0].minimum(settings.norm_guard * norms.median())
    delta = torch.zeros_like(h0, requires_grad=True)
    with torch.no_grad():
        _, essence0, copy0 = scores(delta)
    adam = torch.optim.Adam([delta], lr=settings.learning_rate)
    for step in range(1, settings.steps + 1):
        target, essence, copy = scores(delta)
        nll = -(target * share).sum() / len(rows.contexts)
        kl = (essence.exp() * (essence - essence0)).sum()
        decay = settings.weight_decay * delta.norm() / h0.norm() ** 2
        name = (copy.exp() * (copy - copy0)).sum(-1).mean()
        loss = nll + settings.kl_weight * kl + settings.subject_weight * name + decay
        if step < settings.steps:
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                delta *= (reach / delta.norm()).clamp(max=1)
    v_star = (h0 + delta).detach()
    return v_star[None], h0[None], loss.detach(), torch.tensor(settings.steps)


def _whole_pass(
    model: EditableModel,
    layer: int,
    place: tuple[Tensor, Tensor],
    delta: Tensor,
    inputs: dict[str, Any],
) -> Tensor:
    """(rows, tokens, d_model) output of the last layer, every layer run."""
    last: list[Tensor] = []

    def change(_: Any, __: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[place] += delta.to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def keep(_: Any, __: Any, output: Any) -> None:
        last.append(output[0] if isinstance(output, tuple) else output)

    handles = [
        model.layers[layer].register_forward_hook(change),
        model.layers[-1].register_forward_hook(keep),
    ]
    try:
        model.model(**inputs, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return last[0]
