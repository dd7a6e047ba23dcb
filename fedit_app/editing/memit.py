"""MEMIT (Meng et al., arXiv 2210.07229, algorithm 1), writing into a ledger.

For the edited layers l_1 .. l_n in turn, with the model as edited so far:

    k_l = mean over contexts of the input of W_l at the subject's last token
    residual_l = (v* - h_L) / (n - i),   i = 0 .. n-1 the number of l
    r_l = residual_l + Delta_l k_l

r_l is measured from the base weights, so old and new MKVs can be solved in one joint batch, and
the order in which they arrived does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit_app.editing.requests import EditRequest
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.solver import Solver
from fedit_app.editing.subjects import SubjectStates
from fedit_app.editing.values import optimise_values
from fedit_app.models.editable import EditableModel


@dataclass(frozen=True)
class EditVectors:
    """What an editor finds for n requests.

    Attributes:
        keys: (n, n_layers, d_ff) float64.
        shifts: (n, n_layers, d_model) float64, measured from the base weights.
        v_star: (n, d_model) optimised values at layer L.
        h0: (n, d_model) unedited states at layer L.
    """

    keys: Tensor
    shifts: Tensor
    v_star: Tensor
    h0: Tensor


def memit(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    solver: Solver,
    ledger: tuple[Tensor, Tensor],
    settings: EditSettings,
) -> EditVectors:
    """Compute the vectors of new requests on top of a ledger.

    Args:
        model: the model, unedited.
        requests: n >= 1 requests.
        templates: context templates, the bare one first.
        solver: the joint solve of the edited layers.
        ledger: keys (m, n_layers, d_ff) and shifts (m, n_layers, d_model) edited before.
        settings: hyperparameters.
    """
    values = optimise_values(model, requests, templates, settings)
    keys, shifts = _spread(model, requests, templates, solver, ledger, values.v_star)
    return EditVectors(keys, shifts, values.v_star, values.h0)


@torch.no_grad()
def _spread(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    solver: Solver,
    ledger: tuple[Tensor, Tensor],
    v_star: Tensor,
) -> tuple[Tensor, Tensor]:
    """Spread the way to v* over the edited layers, each layer seeing what the earlier ones did."""
    layers, device = solver.layers, solver.device
    old_keys, old_shifts = (part.to(device) for part in ledger)
    deltas = solver.deltas(old_keys, old_shifts)
    keys, shifts = [], []
    with model.edited(deltas) as write:
        subjects = SubjectStates(model, requests, templates, layers[0], layers[-1])
        for i, layer in enumerate(layers):
            key, state = subjects.key_and_state(layer)
            residual = (v_star.double() - state.double()).to(device) / (len(layers) - i)
            key = key.to(device)
            shift = residual + key @ deltas[layer].T
            deltas[layer] = solver.delta(
                layer, torch.cat([old_keys[:, i], key]), torch.cat([old_shifts[:, i], shift])
            )
            write(layer, deltas[layer])
            keys.append(key)
            shifts.append(shift)
    return torch.stack(keys, 1), torch.stack(shifts, 1)
