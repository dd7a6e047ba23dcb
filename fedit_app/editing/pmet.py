"""PMET (Li et al., AAAI 2024, arXiv 2308.08742).

Two changes are optimised together, one at the output of the attention and one at the output of the
MLP of the last edited layer L, each within its own reach. As soon as the target is the argmax in
every context, its NLL counts a tenth, and the request ends once KL <= 0.01 as well. Only the MLP's
part is written: m* is the wanted output of W_L, and for the edited layers l_1 .. l_n in turn,
with the model as edited so far:

    change_l = (m* - m_L) / sqrt(n - i),   i = 0 .. n-1 the number of l
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fedit_app.editing.method import EditingMethod, Wanted
from fedit_app.editing.optimise import memit_objective
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.sites import LayerParts
from fedit_app.editing.subjects import Places, SubjectStates
from fedit_app.editing.values import Outcome, Values
from fedit_app.models.editable import EditableModel

_WEIGHT_ONCE_DECODED = 0.1
_ENOUGH_KL = 0.01


def value_site(model: EditableModel, settings: EditSettings) -> LayerParts:
    """The outputs of attention and MLP of the last edited layer."""
    return LayerParts(model, settings.layers[-1])


def objective(outcome: Outcome, decay: Tensor, settings: EditSettings) -> tuple[Tensor, Tensor]:
    """MEMIT's loss with a smaller NLL once the target is decoded."""
    nll = torch.where(outcome.decoded, _WEIGHT_ONCE_DECODED * outcome.nll, outcome.nll)
    loss, solved = memit_objective(replace(outcome, nll=nll), decay, settings)
    return loss, solved | (outcome.decoded & (outcome.kl.detach() <= _ENOUGH_KL))


def changes(_: EditableModel, __: Places, settings: EditSettings, values: Values) -> Wanted:
    """The way to m*, more of it per layer than an even share; see `method.Changes`."""
    layers, n = settings.layers, len(settings.layers)
    m_star = values.v_star[:, -1]

    def wanted(i: int, subjects: SubjectStates) -> tuple[Tensor, Tensor]:
        seen = subjects.see(layers[i], until=layers[-1])
        return seen.key, (m_star - seen.last_projection.to(m_star)) / math.sqrt(n - i)

    return wanted


PMET = EditingMethod(value_site, changes, objective)
