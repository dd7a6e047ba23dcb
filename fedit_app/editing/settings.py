"""Hyperparameters of locate-then-edit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from fedit_app.config.run_config import RunConfig, parse_layers
from fedit_app.editing.solver import MAX_CONDITION
from fedit_app.models.defaults import edit_defaults
from fedit_app.support.errors import FedEditError


@dataclass(frozen=True)
class EditSettings:
    """How values are optimised and written; names and defaults as in MEMIT (arXiv 2210.07229).

    Attributes:
        layers: edited layers l_1 < .. < l_n.
        covariance_weight: lambda in Delta = R K^T (lambda C + K K^T)^-1.
        learning_rate: Adam's step size for delta = v* - h0.
        steps: most forward passes of the optimisation.
        stop_after: stop a request once its target was the argmax in every context for so many
            passes beyond the first (ENCORE); 0: never.
        weight_decay: weight of |delta| / |h0|^2 in the loss.
        kl_weight: weight of KL(p_0 || p_delta) at the subject in "SUBJECT is a".
        clamp: largest |delta| as a multiple of |h0|.
        norm_guard: |h0| counts there at most as so many times its median over the contexts; 0:
            no limit.
        max_condition: largest condition number of lambda C; above it a ridge is added.
        null_space_threshold: AlphaEdit: eigenvalues of C below it belong to the null space.
        l2: AlphaEdit: weight of |Delta|^2.
        batch: requests optimised together; 0: as many as fit in memory.
    """

    layers: tuple[int, ...]
    covariance_weight: float
    learning_rate: float
    steps: int = 25
    stop_after: int = 2
    weight_decay: float = 0.5
    kl_weight: float = 0.0625
    clamp: float = 0.75
    norm_guard: float = 2.0
    max_condition: float = MAX_CONDITION
    null_space_threshold: float = 0.02
    l2: float = 10.0
    batch: int = 0

    def digest(self) -> str:
        """Hash of everything that two nodes must agree on (the batch size is a node's own)."""
        values = dataclasses.asdict(self)
        del values["batch"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def edit_settings(
    model_type: str,
    n_layers: int,
    d_model: int,
    editor: str = "memit",
    *,
    layers: tuple[int, ...] = (),
    **given: float | None,
) -> EditSettings:
    """Settings for a model: what is given, and the defaults of model and editor for the rest.

    Args:
        model_type: `config.model_type`.
        n_layers: number of decoder layers.
        d_model: width of the residual stream.
        editor: name of the editor.
        layers: edited layers; empty for the default.
        given: further fields of `EditSettings`; None for the default.

    Raises:
        FedEditError: a layer that the model does not have, or that has nothing above it.
    """
    defaults = dataclasses.asdict(edit_defaults(model_type, n_layers, d_model, editor))
    del defaults["source"]
    layers = layers or parse_layers(defaults["layers"])
    if layers[-1] > n_layers - 2:
        raise FedEditError(
            f"layers: {layers[-1]} is out of range, the model has {n_layers} layers; the last "
            f"edited one must be at most {n_layers - 2}, so that a layer above can read the edit"
        )
    del defaults["layers"]
    chosen = {name: value for name, value in given.items() if value is not None}
    return EditSettings(layers=layers, **{**defaults, **chosen})


def run_settings(config: RunConfig, model_type: str, n_layers: int, d_model: int) -> EditSettings:
    """Settings of a run configuration for a model; see `edit_settings`."""
    return edit_settings(
        model_type,
        n_layers,
        d_model,
        config.editor,
        layers=parse_layers(config.layers) if config.layers else (),
        covariance_weight=config.covariance_weight or None,
        learning_rate=config.learning_rate or None,
        steps=config.value_steps or None,
        clamp=config.clamp or None,
        kl_weight=None if config.kl_weight < 0 else config.kl_weight,
        null_space_threshold=config.null_space_threshold or None,
        l2=config.l2 or None,
        stop_after=config.stop_after,
        weight_decay=config.weight_decay,
        norm_guard=config.norm_guard,
        max_condition=config.max_condition,
        batch=config.edit_batch,
    )
