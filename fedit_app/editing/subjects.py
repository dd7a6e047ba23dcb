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
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from fedit_app.editing.contexts import Template, context_weights
from fedit_app.facts.request import EditRequest
from fedit_app.models.chat import ChatForm
from fedit_app.models.editable import EditableModel
from fedit_app.models.partial import Trace, projection_inputs, trace
from fedit_app.models.tokens import TokenRow, alike, chat_row, pad, subject_row

_TOKENS_PER_PASS = 4096


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
    def firsts(self) -> list[int]:
        """Which of all texts are the clean ones, one for each key."""
        return [0, *accumulate(self.counts[:-1])] if self.counts else []


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
    current one is run once. Texts of similar length run together, few enough at a time that what a
    layer needs for them does not grow with n. The layers above the current one see the clean texts
    only: of the others no more than the key is asked for.

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
        texts = [row.ids for key in places.rows for row in key]
        clean = set(places.firsts)
        others = [number for number in range(len(texts)) if number not in clean]
        self._clean = _passes(model, texts, places.firsts, first, last)
        self._others = _passes(model, texts, others, first, last)

    def see(self, layer: int, until: int) -> Seen:
        """Run layers `layer` .. `until` with the weights of now.

        Args:
            layer: an edited layer; they have to be asked for in rising order, since the layers
                below are run once and for good.
            until: a layer that is not below it.
        """
        keys, states, first_outputs, last_outputs = [], [], [], []
        with projection_inputs(self._model, [layer]) as inputs:
            for some in self._others:
                some.reach(layer)
                some.run(layer)
                keys.append(some.pick(inputs[layer]))
            with _projection_outputs(self._model, {layer, until}) as outputs:
                for some in self._clean:
                    some.reach(layer)
                    states.append(some.pick(some.run(until)))
                    keys.append(some.pick(inputs[layer]))
                    first_outputs.append(some.pick(outputs[layer]))
                    last_outputs.append(some.pick(outputs[until]))
        return Seen(
            key=self._mean(_in_order([*self._others, *self._clean], keys).double()),
            state=_in_order(self._clean, states),
            first_projection=_in_order(self._clean, first_outputs),
            last_projection=_in_order(self._clean, last_outputs),
        )

    def states_behind(self, layer: int, value: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Outputs of layers once the output of an earlier one is set to a value.

        Args:
            layer: the layer whose output at the subject's last token is replaced.
            value: (n, d_model) what stands there then, in the clean prompt.
            layers: rising, all above `layer`.

        Returns:
            (n, d_model) per layer, in the clean prompt.
        """
        place = {number: key for key, number in enumerate(self._places.firsts)}
        found: list[list[Tensor]] = [[] for _ in layers]
        for some in self._clean:
            hidden = some.run(layer).clone()
            rows, at = torch.arange(len(some.at), device=hidden.device), some.at.to(hidden.device)
            hidden[rows, at] = value[[place[number] for number in some.texts]].to(hidden)
            reached = layer
            for states, above in zip(found, layers, strict=True):
                hidden = some.trace.run(hidden, reached + 1, above)
                states.append(some.pick(hidden))
                reached = above
        return [_in_order(self._clean, states) for states in found]

    def _mean(self, keys: Tensor) -> Tensor:
        """(n, d_ff) weighted means of keys (texts, d_ff)."""
        weights = torch.tensor(
            [w for of_key in self._places.weights for w in of_key], dtype=torch.float64
        )
        # Adding rows by number would add in any order on a GPU.
        weighted = (keys * weights.to(keys)[:, None]).split(self._places.counts)
        return torch.stack([of_key.sum(0) for of_key in weighted])


@dataclass
class _Pass:
    """Texts that run together.

    Attributes:
        texts: their numbers.
        at: (texts,) where each ends.
        trace: how the layers are called for them.
        hidden: (texts, tokens, d_model) input of layer `layer`.
        layer: what has been reached.
    """

    texts: Sequence[int]
    at: Tensor
    trace: Trace
    hidden: Tensor
    layer: int

    def reach(self, layer: int) -> None:
        """Run the layers below a layer, for good."""
        self.hidden = self.trace.run(self.hidden, self.layer, layer - 1)
        self.layer = layer

    def run(self, until: int) -> Tensor:
        """(texts, tokens, d_model) output of a layer that has not been passed."""
        return self.trace.run(self.hidden, self.layer, until)

    def pick(self, values: Tensor) -> Tensor:
        """(texts, width) at the end of each text, of values (texts, tokens, width)."""
        at = self.at.to(values.device)
        by_row = values.view(len(at), -1, values.shape[-1])
        return by_row[torch.arange(len(at), device=values.device), at]


def _in_order(passes: Sequence[_Pass], parts: Sequence[Tensor]) -> Tensor:
    """What was found in passes, a part in each, in the order of the numbers of their texts."""
    texts = torch.tensor([number for some in passes for number in some.texts])
    found = torch.cat(list(parts))
    return found[texts.argsort().to(found.device)]


def _passes(
    model: EditableModel,
    texts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    first: int,
    last: int,
) -> list[_Pass]:
    """Passes over some of all texts, for layers `first` .. `last`."""
    found = []
    for some in alike([len(texts[number]) for number in numbers], _TOKENS_PER_PASS):
        chosen = [numbers[i] for i in some]
        ids, mask = pad([texts[number] for number in chosen], model.pad_token_id)
        inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        of_all = trace(model, first, last, inputs, dry=True)
        found.append(_Pass(chosen, mask.sum(1) - 1, of_all, of_all.hidden, first))
    return found


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
