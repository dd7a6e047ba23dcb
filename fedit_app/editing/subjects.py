"""The keys and outputs of the edited layers at the subject's last token.

    k_l = mean over contexts of the input of W_l at the subject's last token      (d_ff,)

(MEMIT, arXiv 2210.07229, algorithm 1.) The mean is over texts. In a chat, where the user asks for
the fact, the layers see another rest of the state than in a text, and no single key stands for
both: there a fact has a key of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from fedit_app.editing.contexts import Template, context_weights
from fedit_app.facts.request import EditRequest
from fedit_app.models.chat import ChatForm
from fedit_app.models.editable import EditableModel
from fedit_app.models.partial import projection_inputs, trace
from fedit_app.models.tokens import TokenRow, chat_row, pad, subject_row


@dataclass(frozen=True)
class Places:
    """Where n keys are met in contexts of one kind: texts, each cut after the subject.

    Attributes:
        rows: the texts of each key, one at least. The first is the clean one, whose state is moved.
        weights: those of each key's texts in the key, sum to 1.
    """

    rows: tuple[tuple[TokenRow, ...], ...]
    weights: tuple[tuple[float, ...], ...]

    @property
    def clean(self) -> Places:
        """The clean texts alone."""
        return Places(tuple(row[:1] for row in self.rows), ((1.0,),) * len(self.rows))

    @property
    def counts(self) -> list[int]:
        """How many texts each key has."""
        return [len(row) for row in self.rows]

    @cached_property
    def owner(self) -> Tensor:
        """(texts,) number of the key that a text belongs to."""
        return torch.arange(len(self.rows)).repeat_interleave(torch.tensor(self.counts))

    @cached_property
    def firsts(self) -> Tensor:
        """(n,) which of all texts are the clean ones."""
        counts = torch.tensor(self.counts)
        return counts.cumsum(0) - counts


def in_texts(
    model: EditableModel, requests: Sequence[EditRequest], templates: Sequence[Template]
) -> Places:
    """The prompts of n requests in the templates that are texts, the bare one first."""
    texts = [one for one in templates if isinstance(one, str)]
    rows = tuple(tuple(_cut(subject_row(model, r, text)) for text in texts) for r in requests)
    return Places(rows, (tuple(context_weights(texts).tolist()),) * len(rows))


def in_chats(
    model: EditableModel, groups: Sequence[Sequence[EditRequest]], templates: Sequence[Template]
) -> Places | None:
    """What the user of a chat model asks for the facts of n keys; None without a chat among them.

    Facts of a key that are asked for in different ways have the mean of their keys.
    """
    forms = [one for one in templates if isinstance(one, ChatForm)]
    if not forms:
        return None
    rows = tuple(
        tuple(
            dict.fromkeys(
                _cut(chat_row(model, request, form, asking=True))
                for request in group
                for form in forms
            )
        )
        for group in groups
    )
    return Places(rows, tuple((1 / len(row),) * len(row) for row in rows))


def _cut(row: TokenRow) -> TokenRow:
    end = row.lookup + 1
    return replace(row, ids=row.ids[:end], target=end)


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
    """Keys and states at the subject's last token, in every text of n keys.

    Nothing after the subject is run, since it cannot be seen from there, and each layer below the
    current one is run once.

    Args:
        model: the model, edited or not.
        places: the texts.
        first: first layer that will be asked for.
        last: last layer that will be asked for.
    """

    def __init__(
        self,
        model: EditableModel,
        places: Places,
        first: int,
        last: int,
    ) -> None:
        self._model, self._places = model, places
        ids, mask = pad([row.ids for key in places.rows for row in key], model.pad_token_id)
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
        return Seen(
            key=self._mean(found),
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
        hidden[rows, at] += change[self._places.owner.to(change.device)]
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
        return self._pick(values)[self._places.firsts.to(values.device)]

    def _mean(self, keys: Tensor) -> Tensor:
        """(n, d_ff) weighted means of keys (texts, d_ff)."""
        weights = torch.tensor(
            [w for of_key in self._places.weights for w in of_key], dtype=torch.float64
        )
        # Adding rows by number would add in any order on a GPU.
        weighted = (keys * weights.to(keys)[:, None]).split(self._places.counts)
        return torch.stack([of_key.sum(0) for of_key in weighted])


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
    """The keys in texts at the first edited layer, which no edit changes.

    Facts that begin alike have the same, whatever they are asked by in a chat.

    Args:
        model: the model.
        requests: n requests.
        templates: context templates, the bare one first.
        first: first edited layer.

    Returns:
        (n, d_ff) float64.
    """
    return (
        SubjectStates(model, in_texts(model, requests, templates), first, first)
        .see(first, first)
        .key
    )
