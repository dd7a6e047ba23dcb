"""MEMIT with targets from the first layer on (FE, ICML 2026).

v* is the wanted output of the *first* edited layer, l_1. One forward pass with v* in its place
gives every later layer its own target: v_l, the output that layer l has then. For the edited
layers in turn, with the model as edited so far, nothing is divided:

    change_l = v_l - h_l
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedit_app.editing.method import EditingMethod, Wanted
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.sites import LayerOutput
from fedit_app.editing.subjects import Places, SubjectStates
from fedit_app.editing.values import Values
from fedit_app.models.editable import EditableModel


def value_site(model: EditableModel, settings: EditSettings) -> LayerOutput:
    """The output of the first edited layer."""
    return LayerOutput(model, settings.layers[0])


@torch.no_grad()
def changes(model: EditableModel, places: Places, settings: EditSettings, values: Values) -> Wanted:
    """The whole way to each layer's own target; see `method.Changes`."""
    layers, v_star = settings.layers, values.v_star[:, -1]
    clean = SubjectStates(model, places.clean, layers[0], layers[-1])
    targets = [v_star, *clean.states_behind(layers[0], v_star, layers[1:])]

    def wanted(i: int, subjects: SubjectStates) -> tuple[Tensor, Tensor]:
        seen = subjects.see(layers[i], until=layers[i])
        change = targets[i] - seen.state.to(targets[i])
        return seen.key, model.projection_shift(layers[i], seen.first_projection, change)

    return wanted


MEMIT_FE = EditingMethod(value_site, changes)
