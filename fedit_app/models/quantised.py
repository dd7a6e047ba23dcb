"""Models whose weights bitsandbytes keeps in 4 bits (NF4, FP4) or 8 (LLM.int8).

Such a model computes with its few bits, and gradients go through its frozen layers. Only the output
projections that are edited become plain modules, because an edit is finer than the steps of so few
bits. See QLoRA (arXiv 2305.14314) and LLM.int8 (arXiv 2208.07339).
"""

from __future__ import annotations

import importlib.util
import logging
import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedit_app.support.errors import FedEditError

LIBRARY = "bitsandbytes"
QUANTISED_REMEDY = (
    "Edit the unquantised model, export a LoRA adapter (fedit export --format lora) and put it on "
    "the quantised one; or de-quantise this one (transformers: model.dequantize(), then "
    "save_pretrained)"
)
PACKED = ("U8", "I8")
"""Types of tensors, as safetensors names them, that are not loaded as the model's."""
# What is stored of a quantised weight beside it, and in whose place.
_BESIDE = re.compile(
    r"(.+\.weight)\.(?:(?:nested_)?(?:absmax|quant_map)|quant_state\.bitsandbytes__(?:nf4|fp4))"
    r"|(.+\.)(?:SCB|weight_format)"
)


def check_quantisation(settings: Mapping[str, Any], file: Path) -> None:
    """Check that weights are quantised in a way that can be edited here.

    Args:
        settings: `quantization_config` of the model.
        file: its config.json.

    Raises:
        FedEditError: another library than bitsandbytes has quantised them, or it is not installed.
    """
    known = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    kind = settings.get("quant_method", LIBRARY if known else None)
    if kind != LIBRARY or settings.get("llm_int8_has_fp16_weight"):
        raise FedEditError(f"model: {file}: the weights are quantised ({kind}). {QUANTISED_REMEDY}")
    if importlib.util.find_spec(LIBRARY) is None:
        raise FedEditError(
            f"model: {file}: the weights are quantised by {LIBRARY}, which is not installed; "
            "pip install 'fedit[quantised]'"
        )


def quantised_weight(name: str) -> str | None:
    """Of which weight a tensor of a checkpoint tells the scales or the form; None: of none."""
    found = _BESIDE.fullmatch(name)
    return found and (found[1] or f"{found[2]}weight")


def has_scales(weight: str, names: Container[str]) -> bool:
    """Whether all that is needed to read a quantised weight is among the tensors of a checkpoint.

    Args:
        weight: name of the weight.
        names: of the tensors.
    """
    if f"{weight.removesuffix('weight')}SCB" in names:
        return True
    forms = (f"{weight}.quant_state.bitsandbytes__{name}" for name in ("nf4", "fp4"))
    parts = (f"{weight}.{part}" for part in ("absmax", "quant_map"))
    return any(form in names for form in forms) and all(part in names for part in parts)


def holds(settings: Mapping[str, Any], stored: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a quantised tensor has as many numbers as the weight that it stands for.

    Args:
        settings: `quantization_config` of the model.
        stored: shape of the tensor, which may hold two numbers a byte or be transposed.
        wanted: shape of the weight.
    """
    if settings.get("load_in_4bit"):
        storage: torch.dtype = getattr(torch, settings.get("bnb_4bit_quant_storage", "uint8"))
        return math.prod(stored) * storage.itemsize == -(-math.prod(wanted) // 2)
    return sorted(stored) == sorted(wanted)


def scales(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What a model keeps of its quantised weights beside them, by the names of a checkpoint."""
    for name, tensor in model.state_dict().items():
        if quantised_weight(name):
            yield name, tensor


def silence() -> None:
    """Leave out what bitsandbytes says of its speed when it is imported."""
    logging.getLogger(LIBRARY).setLevel(logging.ERROR)


def is_quantised(module: nn.Module) -> bool:
    """Whether bitsandbytes keeps the weights of a module."""
    return type(module).__module__.partition(".")[0] == LIBRARY


def prepare(model: PreTrainedModel) -> None:
    """Let the quantised layers of a model compute for each text alone, and with gradients.

    In 4 bits: on a CPU with AVX512-BF16 the first pass without a gradient would convert the weights
    for good into a layout that has none, and round their scales. In 8 bits: the states that pass
    would be rounded as well, in another way for every batch; here they are not.
    """
    quantised: Iterator[Any] = filter(is_quantised, model.modules())
    for module in quantised:
        module.support_avx512bf16_for_cpu = False
        if hasattr(module, "state"):
            place = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
            setattr(module, place, MethodType(_forward_of_8_bits, module))


def _forward_of_8_bits(module: Any, x: Tensor) -> Tensor:
    """x W^T + b with W = CB SCB / 127, which is not kept in memory for the gradient."""
    from bitsandbytes.autograd._functions import MatMul8bitFp

    if module.weight.CB is not None:
        module.init_8bit_state()
    bias = None if module.bias is None else module.bias.to(x.dtype)
    multiply: Any = MatMul8bitFp.apply
    output: Tensor = multiply(x, module.weight, None, bias, module.state)
    return output


def dequantise(model: PreTrainedModel, path: str) -> None:
    """Put a plain module in the place of a quantised one, for good; it computes the same.

    The model's config then names it among the modules that are not quantised, so that what is
    saved of the model can be loaded.

    Args:
        model: the model.
        path: of the module.
    """
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    old: Any = model.get_submodule(path)
    weight = dequantize_bnb_weight(old.weight, getattr(old, "state", None)).to(model.dtype)
    transposed = old.source_cls is Conv1D
    with torch.device("meta"):
        new: Any = (
            Conv1D(*weight.shape)
            if transposed
            else nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)
        )
    kept = weight.T.contiguous() if transposed else weight
    new.weight = nn.Parameter(kept, requires_grad=False)
    if old.bias is not None:
        new.bias = nn.Parameter(old.bias.to(model.dtype), requires_grad=False)
    new.eval()
    hook = getattr(old, "_hf_hook", None)  # of a model that is spread over several devices
    if hook is not None:
        remove_hook_from_module(old)
        add_hook_to_module(new, hook)
    model.set_submodule(path, new)
    plain = [name for name, part in model.named_modules() if type(part) in (nn.Linear, Conv1D)]
    model.config.quantization_config.llm_int8_skip_modules = plain
