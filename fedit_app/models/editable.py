"""A causal language model whose MLP output projections can be changed and put back exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from fedit_app.config.model import ModuleNames
from fedit_app.models.architectures import NO_NAMES, architecture_of
from fedit_app.models.modules import (
    find_layers,
    find_module,
    on_device_of,
    projection_shape,
    projection_weight,
)
from fedit_app.models.quantised import dequantise, is_quantised
from fedit_app.support.errors import FedEditError

_NORM_TOLERANCE = 0.05


class EditableModel:
    """A frozen Hugging Face model with named access to what locate-then-edit reads and writes.

    Args:
        model: the causal language model; put in evaluation mode, its parameters frozen.
        tokenizer: a fast tokenizer (character offsets are needed to find the subject).
        name: what the user called the model.
        fingerprint: hash of its weights and tokenizer, see `models.fingerprint`.
        names: module names that the run config gives.

    Attributes:
        quantised: whether bitsandbytes keeps its weights in few bits.
        shows_base: whether it is the base model now, within `unedited`.

    Raises:
        FedEditError: unknown model family, a module name that the model does not have, or a
            tokenizer without character offsets.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        fingerprint: str,
        names: ModuleNames = NO_NAMES,
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
        self.quantised = any(map(is_quantised, model.modules()))
        self.architecture = architecture_of(model.config.model_type, names)
        self.layers = find_layers(model, self.architecture)
        self._base: dict[int, Tensor] = {}  # of the layers that are edited now
        self.shows_base = False
        self._final_norm = find_module(model, "final_norm", self.architecture.final_norm)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """Device of the input embeddings, where token ids go."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.device

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return projection_shape(self.mlp_output(0))[0]

    @property
    def d_ff(self) -> int:
        """Width of the MLP's hidden layer."""
        return projection_shape(self.mlp_output(0))[1]

    @property
    def pad_token_id(self) -> int:
        """Id that fills padded positions; they are masked, so any valid id serves."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else (self.tokenizer.eos_token_id or 0)

    def mlp_output(self, layer: int) -> nn.Module:
        """The output projection W_out of the MLP of a layer."""
        return find_module(self.layers[layer], "mlp_output", self.architecture.mlp_output)

    def module_names(self, layers: Iterable[int]) -> dict[int, str]:
        """Layer -> path of its W_out from the causal language model."""
        path = f"{self.architecture.layers}.{{}}.{self.architecture.mlp_output}"
        return {layer: path.format(layer) for layer in layers}

    def attention_output(self, layer: int) -> nn.Module:
        """The output projection of the attention of a layer.

        Raises:
            FedEditError: its name is not known for this family.
        """
        path = self.architecture.attention_output
        if path is None:
            raise FedEditError(
                f"model {self.name!r}: where its attention ends is not known; give "
                "module-attention-output in the run config, the attention's output projection in "
                "a layer, such as 'self_attn.o_proj'"
            )
        return find_module(self.layers[layer], "attention_output", path)

    def weight(self, layer: int) -> Tensor:
        """W_out of a layer as (d_model, d_ff), a view (GPT-2's Conv1D keeps the transpose).

        Raises:
            FedEditError: it is quantised and not made editable, of a module that FedEdit cannot
                write to, or not in memory.
        """
        weight = projection_weight(self.mlp_output(layer))
        if weight.is_meta:
            raise FedEditError(
                f"device-map: layer {layer} of model {self.name!r} is offloaded to disk or to the "
                "CPU, so it cannot be edited; give the edited layers a GPU in the device map, or "
                "edit other layers"
            )
        return weight

    def is_transposed(self, layer: int) -> bool:
        """Whether the base model has W_out of a layer as (d_ff, d_model), as GPT-2's Conv1D does.

        A quantised one has it in a Linear module, whatever its family has.
        """
        return isinstance(self.mlp_output(layer), Conv1D) and not self.quantised

    def require_editable(self, layers: Iterable[int]) -> None:
        """Check that layers can be edited, before anything is computed for them.

        A quantised W_out is de-quantised, for good.

        Raises:
            FedEditError: see `weight`.
        """
        for layer, path in self.module_names(layers).items():
            if is_quantised(self.mlp_output(layer)):
                dequantise(self.model, path)
            self.weight(layer)

    def projection_shift(self, layer: int, output: Tensor, change: Tensor) -> Tensor:
        """By how much the output of W_out has to move for the residual stream to move by `change`.

        By `change` itself where the output is added to the residual stream as it is. With an RMS
        norm between the two, y = g * m / rms(m), rms(m) = sqrt(mean(m^2)), it is

            change / g * rms(m)

        which takes rms(m) for fixed, as it is for small changes across m; where g is 0 nothing
        can move and the shift is 0.

        Args:
            layer: the layer.
            output: (n, d_model) current output m of W_out.
            change: (n, d_model) wanted change of the residual stream.

        Returns:
            (n, d_model), in at least float32.

        Raises:
            FedEditError: the norm is not an RMS norm.
        """
        m = at_least_float32(output)
        wanted = change.to(m.device, torch.promote_types(m.dtype, change.dtype))
        if self.architecture.post_norm is None:
            return wanted
        gain = self._post_norm_gain(layer, m.dtype).to(m.device)
        root_mean_square = m.square().mean(-1, keepdim=True).sqrt()
        return torch.where(gain == 0, 0.0, wanted / gain) * root_mean_square

    def _post_norm_gain(self, layer: int, dtype: torch.dtype) -> Tensor:
        """(1, d_model) g of the norm behind W_out: its output for ones, whose RMS is 1."""
        ones = torch.ones(1, self.d_model, dtype=dtype, device=self.device)
        signs = 1 - 2 * (torch.arange(self.d_model, device=self.device) % 3 == 0).to(dtype)
        gain = self.post_norm(layer, ones)
        other = self.post_norm(layer, 7 * signs[None])
        if not torch.allclose(other, gain * signs, rtol=_NORM_TOLERANCE):
            raise _no_root_mean_square(self.architecture.post_norm)
        return gain

    def post_norm(self, layer: int, output: Tensor) -> Tensor:
        """What the output of W_out adds to the residual stream: through the norm, if there is one.

        Args:
            layer: the layer.
            output: (..., d_model).

        Raises:
            FedEditError: the module of that name is not a norm.
        """
        path = self.architecture.post_norm
        if path is None:
            return output
        norm = find_module(self.layers[layer], "post_norm", path)
        try:
            normed: Tensor = norm(on_device_of(output, norm))
        except torch.OutOfMemoryError:
            raise
        except (TypeError, RuntimeError) as error:
            raise _no_root_mean_square(path) from error
        return normed.to(output.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) of last-layer states (..., d_model), as the model's own head.

        They are on the device of `hidden`, wherever the head is.
        """
        normed = self._final_norm(on_device_of(hidden, self._final_norm))
        head = self.model.get_output_embeddings()
        logits: Tensor = head(on_device_of(normed, head)).to(hidden.device)
        config = self.model.config.get_text_config()
        scale = getattr(config, "logit_scale", None)  # Cohere's
        logits = logits if scale is None else scale * logits
        cap = getattr(config, "final_logit_softcapping", None)
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
        outermost = {layer: weight for layer, weight in original.items() if layer not in self._base}
        self._base |= outermost

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
            for layer in outermost:
                del self._base[layer]

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """The base model inside the block, also within `edited`; afterwards bit for bit as before.

        Nothing may be written to the weights meanwhile.
        """
        now = {layer: self.weight(layer).clone() for layer in self._base}
        shown, self.shows_base = self.shows_base, True
        try:
            for layer, weight in self._base.items():
                self.weight(layer).copy_(weight)
            yield
        finally:
            self.shows_base = shown
            for layer, weight in now.items():
                self.weight(layer).copy_(weight)

    def edits_hash(self) -> str:
        """Hash of the projections that are edited now; empty if all are bit for bit the base's."""
        edited = [n for n, base in sorted(self._base.items()) if not base.equal(self.weight(n))]
        if not edited:
            return ""
        digest = hashlib.sha256(str(edited).encode())
        for layer in edited:
            digest.update(self.weight(layer).contiguous().cpu().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _no_root_mean_square(path: str | None) -> FedEditError:
    return FedEditError(
        f"model: module-post-norm = {path!r} is not an RMS norm; name the norm between the MLP's "
        "output projection and the residual stream. With another kind of norm there FedEdit "
        "cannot edit the model"
    )


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision promoted to float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
