"""MEMIT (Meng et al., arXiv 2210.07229, algorithm 1).

v* is the wanted output of the last edited layer, L = l_n. For the edited layers l_1 .. l_n in turn,
with the model as edited so far:

    k_l = mean over contexts of the input of W_l at the subject's last token
    change_l = (v* - h_L) / (n - i),   i = 0 .. n-1 the number of l

In families with a norm between W_l and the residual stream the change is carried through it, see
`EditableModel.projection_shift`.
"""

from __future__ import annotations

from torch import Tensor

from fedit_app.editing.method import EditingMethod, Wanted
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.sites import LayerOutput
from fedit_app.editing.subjects import Places, SubjectStates
from fedit_app.editing.values import Values
from fedit_app.models.editable import EditableModel


def value_site(model: EditableModel, settings: EditSettings) -> LayerOutput:
    """The output of the last edited layer."""
    return LayerOutput(model, settings.layers[-1])


def changes(model: EditableModel, _: Places, settings: EditSettings, values: Values) -> Wanted:
    """The way to v*, divided over the layers that are left; see `method.Changes`."""
    layers, n = settings.layers, len(settings.layers)
    v_star = values.v_star[:, -1]

    def wanted(i: int, subjects: SubjectStates) -> tuple[Tensor, Tensor]:
        seen = subjects.see(layers[i], until=layers[-1])
        change = (v_star - seen.state.to(v_star)) / (n - i)
        return seen.key, model.projection_shift(layers[i], seen.first_projection, change)

    return wanted


MEMIT = EditingMethod(value_site, changes)
