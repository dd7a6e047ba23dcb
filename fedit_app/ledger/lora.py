"""A ledger's Deltas as a low-rank adapter, in the files that PEFT reads.

The columns of Delta_l = R_l K_l^T (...)^-1 are combinations of the shifts R_l, so its rank is at
most the number of MKVs, and Delta_l = Q (Q^T Delta_l) with an orthonormal basis Q of the shifts.
The singular value decomposition Q^T Delta_l = U S V^T then gives both factors, and by the first r
of them the best approximation of rank r (Eckart and Young, 1936):

    B_l = Q U_r S_r^(1/2)  (d_model, r)        A_l = S_r^(1/2) V_r^T  (r, d_ff)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fedit_app.editing.rows import Stack
from fedit_app.models.editable import EditableModel
from fedit_app.models.embedded import EMBEDDED_MODEL, embedded_model
from fedit_app.support.tables import Shown, Table

ADAPTER_CONFIG = "adapter_config.json"
_VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)  # its --max-lora-rank; the first is the default


@dataclass(frozen=True)
class Adapter:
    """A low-rank adapter of a model's edited layers.

    Attributes:
        rank: r, of every layer.
        exact: whether no Delta had to be truncated.
        factors: layer -> B (d_model, r) and A (r, d_ff), float32.
        errors: layer -> |B A - Delta| / |Delta| in the Frobenius norm, of the float32 factors.
        error: the same over all layers.
    """

    rank: int
    exact: bool
    factors: dict[int, tuple[Tensor, Tensor]]
    errors: dict[int, float]
    error: float

    @property
    def described(self) -> str:
        """Rank and exactness in words."""
        exact = "exact but for rounding to float32" if self.exact else "truncated"
        return f"Rank {self.rank}, {exact}"

    @property
    def served(self) -> str:
        """What vLLM has to be told to load it; empty if nothing."""
        if self.rank <= _VLLM_RANKS[0]:
            return ""
        fits = next((rank for rank in _VLLM_RANKS if rank >= self.rank), None)
        if fits is None:
            return (
                f"vLLM loads adapters up to rank {_VLLM_RANKS[-1]}: export with --format hf, or "
                "truncate with --rank"
            )
        return f"vLLM needs --max-lora-rank {fits} for it"

    def error_table(self) -> Table:
        """The relative error of every layer and of all."""
        errors = [*self.errors.items(), ("all", self.error)]
        rows = [(str(layer), Shown(error, f"{error:.2e}")) for layer, error in errors]
        return Table(("layer", "relative error"), rows)


def adapter(deltas: Mapping[int, Tensor], shifts: Stack, rank: int | None = None) -> Adapter:
    """The adapter that adds a ledger's Deltas to the weights.

    Args:
        deltas: layer -> Delta_l (d_model, d_ff).
        shifts: (n, n_layers, d_model), of the MKVs that hold, layers in rising order.
        rank: truncate to this rank; None or more than necessary: exact, with the smallest of n,
            d_model and d_ff.
    """
    needed = min(len(shifts), *next(iter(deltas.values())).shape)
    chosen = min(rank or needed, needed)
    factors, misses, sizes = {}, {}, {}
    for i, layer in enumerate(sorted(deltas)):
        delta = deltas[layer].double()
        basis = torch.linalg.qr(shifts[:, i].T.to(delta)).Q
        u, s, vt = torch.linalg.svd(basis.T @ delta, full_matrices=False)
        root = s[:chosen].sqrt()
        b = ((basis @ u)[:, :chosen] * root).float().cpu()
        a = (root[:, None] * vt[:chosen]).float().cpu()
        factors[layer] = b, a
        sizes[layer] = float(delta.norm())
        misses[layer] = float((b.double() @ a.double() - delta.cpu()).norm())
    return Adapter(
        rank=chosen,
        exact=chosen == needed,
        factors=factors,
        errors={layer: _ratio(misses[layer], sizes[layer]) for layer in factors},
        error=_ratio(math.hypot(*misses.values()), math.hypot(*sizes.values())),
    )


def write_adapter(found: Adapter, model: EditableModel, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        found: the adapter.
        model: the model that it belongs to.
        folder: where to.
    """
    names = model.module_names(found.factors)
    tensors = {}
    for layer, (b, a) in found.factors.items():
        tensors[f"base_model.model.{names[layer]}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{names[layer]}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": _loadable(model.name),
        "inference_mode": True,
        "target_modules": list(names.values()),
        "r": found.rank,
        "lora_alpha": found.rank,  # PEFT multiplies by lora_alpha / r
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(map(model.is_transposed, found.factors)),
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def _loadable(name: str) -> str:
    """A name that PEFT finds the base model by: a hub id, or else the folder on this machine."""
    embedded = name == EMBEDDED_MODEL
    folder = embedded_model() if embedded else Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else name


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
