"""What the edited layers see at the subject's last token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedit_app.editing.contexts import context_weights
from fedit_app.editing.requests import EditRequest
from fedit_app.editing.tokens import pad, subject_row
from fedit_app.models.editable import EditableModel
from fedit_app.models.partial import Trace, projection_inputs, trace


class SubjectStates:
    """Keys and states at the subject's last token, in every context of every request.

    Nothing behind the subject is run, since it cannot be seen from there, and each layer below
    the current one is run once.

    Args:
        model: the model, edited or not.
        requests: n requests.
        templates: context templates, the bare one first.
        first: first edited layer.
        last: last edited layer.
    """

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        templates: Sequence[str],
        first: int,
        last: int,
    ) -> None:
        self._model, self._last = model, last
        self._weights = context_weights(len(templates)).to(model.device)
        rows = [subject_row(model, request, text) for request in requests for text in templates]
        ids, mask = pad([row.ids[: row.lookup + 1] for row in rows], model.pad_token_id)
        self._at = (mask.sum(1) - 1).to(model.device)
        self._trace: Trace = trace(
            model,
            first,
            last,
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            use_cache=False,
        )
        self._hidden, self._next = self._trace.hidden, first

    def key_and_state(self, layer: int) -> tuple[Tensor, Tensor]:
        """The key of a layer and the output of the last edited layer, with the weights of now.

        Args:
            layer: an edited layer; they have to be asked for in rising order, since the layers
                below are run once and for good.

        Returns:
            (n, d_ff) float64 weighted mean over the contexts, and (n, d_model) state in the clean
            prompt.
        """
        self._hidden = self._trace.run(self._hidden, self._next, layer - 1)
        self._next = layer
        with projection_inputs(self._model, [layer]) as inputs:
            output = self._trace.run(self._hidden, layer, self._last)
        rows = torch.arange(len(self._at), device=self._at.device)
        found = inputs[layer][rows, self._at].double()
        per_request = found.view(-1, len(self._weights), found.shape[1])
        key = (per_request * self._weights[:, None]).sum(1)
        return key, output[rows, self._at][:: len(self._weights)]


@torch.no_grad()
def lookup_keys(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
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
    return SubjectStates(model, requests, templates, first, first).key_and_state(first)[0]
