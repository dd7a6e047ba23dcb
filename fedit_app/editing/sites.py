"""The place in the model where delta is added: the output of a layer, or of its two parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedit_app.models.editable import EditableModel
from fedit_app.models.partial import Trace


class Site(Protocol):
    """A place in the model at whose output, at the subject's last token, delta is added.

    Attributes:
        parts: at how many outputs.
        first: first layer that has to be run again when delta changes.
    """

    parts: int
    first: int

    def outputs(self, upper: Trace) -> Tensor:
        """(rows, parts, d_model) what stands there without any change.

        Args:
            upper: trace from layer `first` on whose token 0 is the subject's last one.
        """

    def run(self, upper: Trace, delta: Tensor) -> Tensor:
        """Output of the model's last layer with a change.

        Args:
            upper: as for `outputs`.
            delta: (rows, parts, d_model).

        Returns:
            (rows, tokens, d_model).
        """


class LayerOutput:
    """The output of a decoder layer (MEMIT).

    Args:
        model: the model.
        layer: number of the layer.
    """

    parts = 1

    def __init__(self, model: EditableModel, layer: int) -> None:
        self.first, self._last = layer + 1, model.n_layers - 1

    def outputs(self, upper: Trace) -> Tensor:
        """See `Site.outputs`."""
        return upper.hidden[:, :1]

    def run(self, upper: Trace, delta: Tensor) -> Tensor:
        """See `Site.run`."""
        hidden = upper.hidden
        changed = torch.cat([hidden[:, :1] + delta.to(hidden), hidden[:, 1:]], dim=1)
        return upper.run(changed, self.first, self._last)


class LayerParts:
    """The outputs of a layer's attention and of its MLP, in this order (PMET).

    Args:
        model: the model.
        layer: number of the layer.

    Raises:
        FedEditError: the name of the attention's output projection is not known.
    """

    parts = 2

    def __init__(self, model: EditableModel, layer: int) -> None:
        self._modules = (model.attention_output(layer), model.mlp_output(layer))
        self.first, self._last = layer, model.n_layers - 1

    def outputs(self, upper: Trace) -> Tensor:
        """See `Site.outputs`."""
        found: dict[int, Tensor] = {}

        def keep(part: int, state: Tensor) -> Tensor:
            found[part] = state
            return state

        with _at_first_token(self._modules, len(upper.hidden), keep):
            upper.run(upper.hidden, self.first, self.first)
        states = [found[part] for part in range(self.parts)]
        return torch.stack(states, dim=1).to(upper.hidden.device)

    def run(self, upper: Trace, delta: Tensor) -> Tensor:
        """See `Site.run`."""

        def change(part: int, state: Tensor) -> Tensor:
            return state + delta[:, part].to(state)

        with _at_first_token(self._modules, len(upper.hidden), change):
            return upper.run(upper.hidden, self.first, self._last)


@contextmanager
def _at_first_token(
    modules: Sequence[nn.Module], rows: int, change: Callable[[int, Tensor], Tensor]
) -> Iterator[None]:
    """Let `change(part, state)` replace the outputs (rows, d_model) of modules at token 0."""

    def hook(part: int, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        by_row = output.view(rows, -1, output.shape[-1])  # some families flatten rows and tokens
        first = change(part, by_row[:, 0])
        return torch.cat([first[:, None], by_row[:, 1:]], dim=1).view_as(output)

    with ExitStack() as hooks:
        for part, module in enumerate(modules):
            hooks.enter_context(module.register_forward_hook(partial(hook, part)))
        yield
