"""A causal language model whose MLP output projections can be changed and put back exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedit_app.errors import FedEditError
from fedit_app.models.architectures import architecture_of


class EditableModel:
    """A frozen Hugging Face model with named access to what locate-then-edit reads and writes.

    Args:
        model: the causal language model; put in evaluation mode, its parameters frozen.
        tokenizer: a fast tokenizer (character offsets are needed to find the subject).
        name: what the user called the model.
        fingerprint: hash of its weights and tokenizer, see `models.fingerprint`.

    Raises:
        FedEditError: unknown model family, or a tokenizer without character offsets.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        fingerprint: str,
    ) -> None:
        if not tokenizer.is_fast:
            raise FedEditError(
                f"model {name!r}: its tokenizer gives no character offsets; "
                "FedEdit needs a fast tokenizer (tokenizer.json in the model folder)"
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.fingerprint = fingerprint
        self.architecture = architecture_of(model.config.model_type)
        self.layers: nn.ModuleList = model.get_submodule(self.architecture.layers)
        self._final_norm = model.get_submodule(self.architecture.final_norm)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """Device of the input embeddings, where token ids go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.weight(0).shape[0]

    @property
    def d_ff(self) -> int:
        """Width of the MLP's hidden layer."""
        return self.weight(0).shape[1]

    @property
    def pad_token_id(self) -> int:
        """Id that fills padded positions; they are masked, so any valid id serves."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else (self.tokenizer.eos_token_id or 0)

    def mlp_output(self, layer: int) -> nn.Module:
        """The output projection W_out of the MLP of a layer."""
        return self.layers[layer].get_submodule(self.architecture.mlp_output)

    def weight(self, layer: int) -> Tensor:
        """W_out of a layer as (d_model, d_ff), a view (GPT-2's Conv1D keeps the transpose)."""
        module = self.mlp_output(layer)
        return module.weight if isinstance(module, nn.Linear) else module.weight.T

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) of last-layer states (..., d_model), as the model's own head."""
        logits = self.model.get_output_embeddings()(self._final_norm(hidden))
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """Log-softmax of `logits`, (..., vocabulary), in at least float32."""
        return at_least_float32(self.logits(hidden)).log_softmax(-1)

    @contextmanager
    def edited(self, deltas: Mapping[int, Tensor]) -> Iterator[Callable[[int, Tensor], None]]:
        """The model with W_l + Delta_l inside the block; afterwards bit for bit as before.

        Only the edited projections are copied. Sums are made in float64 and rounded once.

        Args:
            deltas: layer -> Delta_l (d_model, d_ff), any float dtype.

        Yields:
            write(layer, delta): replaces the Delta of one of these layers.
        """
        original = {layer: self.weight(layer).clone() for layer in deltas}

        def write(layer: int, delta: Tensor) -> None:
            base = original[layer]
            self.weight(layer).copy_(base.double() + delta.to(base.device, torch.float64))

        try:
            for layer, delta in deltas.items():
                write(layer, delta)
            yield write
        finally:
            for layer, weight in original.items():
                self.weight(layer).copy_(weight)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision promoted to float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
