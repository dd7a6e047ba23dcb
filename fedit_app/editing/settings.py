"""The hyperparameters of an edit: what the run configuration gives, the model's defaults else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from fedit_app.config.editing import EditingSettings
from fedit_app.models.defaults import ModelDefaults, model_defaults
from fedit_app.support.errors import FedEditError

FIRST_AND_LAST = ("blue",)
"""Editors that write only the first and the last of the layers that are given."""

# Run-config fields with a longer name than the setting has.
_RUN_FIELDS = {"steps": "value_steps", "batch": "edit_batch"}


@dataclass(frozen=True, kw_only=True)
class EditSettings(ModelDefaults):
    """How values are optimised and written; `config.editing` documents every field.

    `steps` is the run config's value-steps, `batch` its edit-batch.
    """

    stop_after: int
    weight_decay: float
    subject_weight: float
    norm_guard: float
    max_condition: float
    batch: int | None = None

    def digest(self) -> str:
        """Hash of everything that two nodes must agree on (the batch size is a node's own).

        Without the term of the subject's name, the digest is that of versions that had no such
        term, whose values are the same.
        """
        values = dataclasses.asdict(self)
        del values["batch"]
        if not self.subject_weight:
            del values["subject_weight"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def run_field(setting: str) -> str:
    """The field of the run configuration that gives a field of `EditSettings`."""
    return _RUN_FIELDS.get(setting, setting)


def run_settings(
    config: EditingSettings, model_type: str, n_layers: int, d_model: int
) -> EditSettings:
    """Settings for a model: what is given, and the defaults of model and editor for the rest.

    Args:
        config: the run configuration, or its part about editing.
        model_type: `config.model_type` of the model.
        n_layers: number of decoder layers.
        d_model: width of the residual stream.

    Raises:
        FedEditError: a layer that the model does not have, or that has nothing above it.
    """
    values: dict[str, Any] = dataclasses.asdict(
        model_defaults(model_type, n_layers, d_model, config.editor).values
    )
    for field in dataclasses.fields(EditSettings):
        given = getattr(config, run_field(field.name))
        if given is not None:
            values[field.name] = given
    if config.editor in FIRST_AND_LAST:
        values["layers"] = tuple(dict.fromkeys((values["layers"][0], values["layers"][-1])))
    settings = EditSettings(**values)
    last = settings.layers[-1]
    if last > n_layers - 2:
        raise FedEditError(
            f"layers: {last} is out of range, the model has {n_layers} layers; the last edited one "
            f"must be at most {n_layers - 2}, so that a layer above can read the edit"
        )
    return settings


def edit_settings(
    model_type: str, n_layers: int, d_model: int, editor: str = "memit", **given: Any
) -> EditSettings:
    """Settings for a model without a run configuration, see `run_settings`.

    Args:
        model_type: `config.model_type` of the model.
        n_layers: number of decoder layers.
        d_model: width of the residual stream.
        editor: name of the editor.
        given: fields of `EditSettings`; None for the default.

    Raises:
        FedEditError: see `run_settings`.
    """
    values = {run_field(name): value for name, value in given.items() if value is not None}
    return run_settings(EditingSettings(editor=editor, **values), model_type, n_layers, d_model)
