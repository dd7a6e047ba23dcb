"""Hyperparameters of locate-then-edit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from fedit_app.config import parse_layers
from fedit_app.errors import FedEditError
from fedit_app.models.defaults import edit_defaults


@dataclass(frozen=True)
class EditSettings:
    """How values are optimised and written; names and defaults as in MEMIT (arXiv 2210.07229).

    Attributes:
        layers: edited layers l_1 < .. < l_n; v* is the wanted output of the last one, L.
        covariance_weight: lambda in Delta = R K^T (lambda C + K K^T)^-1.
        learning_rate: Adam's step size for delta = v* - h0.
        steps: most forward passes of the optimisation.
        stop_after: stop a request once its target was the argmax in every context for so many
            passes beyond the first (ENCORE); 0: never.
        weight_decay: weight of |delta| / |h0|^2 in the loss.
        kl_weight: weight of KL(p_0 || p_delta) at the subject in "SUBJECT is a".
        clamp: largest |delta| as a multiple of |h0|.
        batch: requests optimised together.
    """

    layers: tuple[int, ...]
    covariance_weight: float
    learning_rate: float
    steps: int = 25
    stop_after: int = 3
    weight_decay: float = 0.5
    kl_weight: float = 0.0625
    clamp: float = 0.75
    batch: int = 16

    @property
    def value_layer(self) -> int:
        """L, the layer at whose output v* is optimised."""
        return self.layers[-1]

    def digest(self) -> str:
        """Hash of everything that two nodes must agree on (the batch size is a node's own)."""
        values = dataclasses.asdict(self)
        del values["batch"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def edit_settings(
    model_type: str,
    n_layers: int,
    d_model: int,
    *,
    layers: tuple[int, ...] = (),
    covariance_weight: float = 0.0,
    learning_rate: float = 0.0,
    **others: float,
) -> EditSettings:
    """Settings for a model: what is given, and the model's defaults for the rest.

    Args:
        model_type: `config.model_type`.
        n_layers: number of decoder layers.
        d_model: width of the residual stream.
        layers: edited layers; empty for the model's default.
        covariance_weight: lambda; 0 for the model's default.
        learning_rate: step size; 0 for the model's default.
        others: further fields of `EditSettings`.

    Raises:
        FedEditError: a layer that the model does not have, or that has nothing above it.
    """
    defaults = edit_defaults(model_type, n_layers, d_model)
    layers = layers or parse_layers(defaults.layers)
    if layers[-1] > n_layers - 2:
        raise FedEditError(
            f"layers: {layers[-1]} is out of range, the model has {n_layers} layers; the last "
            f"edited one must be at most {n_layers - 2}, so that a layer above can read the edit"
        )
    return EditSettings(
        layers=layers,
        covariance_weight=covariance_weight or defaults.covariance_weight,
        learning_rate=learning_rate or defaults.learning_rate,
        **others,
    )
