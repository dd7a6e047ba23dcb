"""The keys and outputs of the edited layers at the subject's last token.

    k_l = mean over contexts of the input of W_l at the subject's last token      (d_ff,)

(MEMIT, arXiv 2210.07229, algorithm 1.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedit_app.editing.contexts import Template, context_weights
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.models.partial import projection_inputs, trace
from fedit_app.models.tokens import TokenRow, chat_row, pad, subject_row


@dataclass(frozen=True)
class Seen:
    """One pass through some layers, at the subject's last token.

    Attributes:
        key: (n, d_ff) float64 input of W_out of the first of these layers, weighted mean over the
            contexts.
        state: (n, d_model) output of the last of these layers, in the clean prompt.
        first_projection: (n, d_model) output of W_out of the first layer, in the clean prompt.
        last_projection: (n, d_model) output of W_out of the last layer, in the clean prompt.
    """

    key: Tensor
    state: Tensor
    first_projection: Tensor
    last_projection: Tensor


class SubjectStates:
    """Keys and states at the subject's last token, in every context of every request.

    Nothing after the subject is run, since it cannot be seen from there, and each layer below the
    current one is run once.

    Args:
        model: the model, edited or not.
        requests: n requests.
        templates: context templates, the bare one first.
        first: first layer that will be asked for.
        last: last layer that will be asked for.
    """

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        templates: Sequence[Template],
        first: int,
        last: int,
    ) -> None:
        self._model = model
        self._weights = context_weights(templates)
        rows = [_row(model, request, one) for request in requests for one in templates]
        ids, mask = pad([row.ids[: row.lookup + 1] for row in rows], model.pad_token_id)
        self._at = mask.sum(1) - 1
        self._trace = trace(
            model,
            first,
            last,
            {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)},
            dry=True,
        )
        self._hidden, self._next = self._trace.hidden, first

    def see(self, layer: int, until: int) -> Seen:
        """Run layers `layer` .. `until` with the weights of now.

        Args:
            layer: an edited layer; they have to be asked for in rising order, since the layers
                below are run once and for good.
            until: a layer that is not below it.
        """
        self._hidden = self._trace.run(self._hidden, self._next, layer - 1)
        self._next = layer
        with (
            projection_inputs(self._model, [layer]) as inputs,
            _projection_outputs(self._model, {layer, until}) as outputs,
        ):
            state = self._trace.run(self._hidden, layer, until)
        found = self._pick(inputs[layer]).double()
        per_request = found.unflatten(0, (-1, len(self._weights)))
        weights = self._weights.to(found.device)
        return Seen(
            key=(per_request * weights[:, None]).sum(1),
            state=self._clean(state),
            first_projection=self._clean(outputs[layer]),
            last_projection=self._clean(outputs[until]),
        )

    def states_behind(self, layer: int, value: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Outputs of layers once the output of an earlier one is set to a value in every context.

        Args:
            layer: the layer whose output at the subject's last token is replaced.
            value: (n, d_model) what stands there then, in the clean prompt.
            layers: rising, all above `layer`.

        Returns:
            (n, d_model) per layer, in the clean prompt.
        """
        hidden = self._trace.run(self._hidden, self._next, layer)
        rows = torch.arange(len(self._at), device=hidden.device)
        at = self._at.to(hidden.device)
        change = value.to(hidden) - self._clean(hidden)
        hidden = hidden.clone()
        hidden[rows, at] += change.repeat_interleave(len(self._weights), 0)
        found, reached = [], layer
        for above in layers:
            hidden = self._trace.run(hidden, reached + 1, above)
            found.append(self._clean(hidden))
            reached = above
        return found

    def _pick(self, values: Tensor) -> Tensor:
        """(rows, width) at the subject's last token, of values (rows, tokens, width)."""
        at = self._at.to(values.device)
        by_row = values.view(len(at), -1, values.shape[-1])
        return by_row[torch.arange(len(at), device=values.device), at]

    def _clean(self, values: Tensor) -> Tensor:
        return self._pick(values)[:: len(self._weights)]


def _row(model: EditableModel, request: EditRequest, template: Template) -> TokenRow:
    """A request in a context.

    In a chat the user says the prompt even where there is a question: facts that begin alike have
    the same key, whatever they are asked by.
    """
    if isinstance(template, str):
        return subject_row(model, request, template)
    return chat_row(model, request, template)


@contextmanager
def _projection_outputs(model: EditableModel, layers: set[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs of the MLP output projections."""
    found: dict[int, Tensor] = {}

    def keep(layer: int, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found[layer] = output.clone()  # Falcon adds the attention to it in place

    with ExitStack() as hooks:
        for layer in layers:
            projection = model.mlp_output(layer)
            hooks.enter_context(projection.register_forward_hook(partial(keep, layer)))
        yield found


@torch.no_grad()
def lookup_keys(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[Template],
    first: int,
) -> Tensor:
    """The keys at the first edited layer, which no edit changes: equal facts have equal ones.

    Args:
        model: the model.
        requests: n requests.
        templates: context templates, the bare one first.
        first: first edited layer.

    Returns:
        (n, d_ff) float64.
    """
    return SubjectStates(model, requests, templates, first, first).see(first, first).key
