"""A locate-then-edit method, and how its values become keys and shifts.

The loop over the layers is that of MEMIT (Meng et al., arXiv 2210.07229, algorithm 1), on top of a
ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit_app.editing.contexts import Template
from fedit_app.editing.optimise import Objective, memit_objective, optimise_values
from fedit_app.editing.pairs import Pairs
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.sites import Site
from fedit_app.editing.solver import Solver
from fedit_app.editing.subjects import SubjectStates
from fedit_app.editing.value_store import ValueStore
from fedit_app.editing.values import Values
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel


@dataclass(frozen=True)
class EditVectors:
    """Keys, shifts and values of n requests.

    Attributes:
        keys: (n, n_layers, d_ff) float64.
        shifts: (n, n_layers, d_model) float64, by how much the output of W_l at the key is to
            move, measured from the base weights.
        v_star: (n, d_model) optimised values at the editor's site.
        h0: (n, d_model) what stands there in the unedited model.
    """

    keys: Tensor
    shifts: Tensor
    v_star: Tensor
    h0: Tensor


Wanted = Callable[[int, SubjectStates], tuple[Tensor, Tensor]]
"""(number i of the edited layer, states of the model as edited so far) -> keys (n, d_ff), and by
how much the outputs of W_l are to move, (n, d_model)."""

Changes = Callable[[EditableModel, Sequence[EditRequest], EditSettings, Values], Wanted]
"""(model, n requests, settings, their optimised values) -> what is wanted of the edited layers."""


def covariance_solver(
    covariances: Mapping[int, Tensor], settings: EditSettings, device: torch.device
) -> Solver:
    """MEMIT's solve, with lambda C_l."""
    return Solver(covariances, settings.covariance_weight, device, settings.max_condition)


@dataclass(frozen=True)
class EditingMethod:
    """One locate-then-edit method.

    Attributes:
        site: where its value v* is optimised, and patched in to see what an MKV says.
        changes: how v* is spread over the edited layers.
        objective: what v* minimises.
        solver: the joint solve, from covariances (layer -> C_l) and settings, on a device.
    """

    site: Callable[[EditableModel, EditSettings], Site]
    changes: Changes
    objective: Objective = memit_objective
    solver: Callable[[Mapping[int, Tensor], EditSettings, torch.device], Solver] = covariance_solver

    def values(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        templates: Sequence[Template],
        settings: EditSettings,
        starts: Sequence[Tensor | None] | None = None,
        store: ValueStore | None = None,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> Values:
        """Optimise the values of requests on the unedited model; see `optimise_values`."""
        site = self.site(model, settings)
        return optimise_values(
            model, requests, templates, site, settings, self.objective, starts, store, groups
        )

    def vectors(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        templates: Sequence[Template],
        solver: Solver,
        ledger: Pairs,
        settings: EditSettings,
        values: Values,
    ) -> EditVectors:
        """Write values layer by layer on top of a ledger.

        Args:
            model: the model, unedited.
            requests: n >= 1 requests.
            templates: context templates, the bare one first.
            solver: the joint solve of the edited layers.
            ledger: the m pairs edited before.
            settings: hyperparameters.
            values: of these requests.
        """
        wanted = self.changes(model, requests, settings, values)
        keys, shifts = write_layers(model, requests, templates, solver, ledger, wanted)
        return EditVectors(keys, shifts, values.v_star[:, -1], values.h0[:, -1])


@torch.no_grad()
def write_layers(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[Template],
    solver: Solver,
    ledger: Pairs,
    wanted: Wanted,
) -> tuple[Tensor, Tensor]:
    """Write new requests layer by layer, each layer seeing what the earlier ones did.

    With k_l the key and change_l the wanted move of the output of W_l, as it is now,

        r_l = change_l + Delta_l k_l

    is measured from the base weights: old and new MKVs can be solved in one joint batch, so old
    edits are kept, and the order in which they arrived does not matter.

    Args:
        model: the model, unedited; the ledger's Deltas are in it while this runs.
        requests: n requests.
        templates: context templates, the bare one first.
        solver: the joint solve.
        ledger: the m pairs edited before.
        wanted: see `Wanted`.

    Returns:
        keys (n, n_layers, d_ff) and shifts (n, n_layers, d_model), float64.
    """
    layers, device = solver.layers, solver.device
    deltas = solver.deltas(ledger)
    keys, shifts = [], []
    with model.edited(deltas) as write:
        subjects = SubjectStates(model, requests, templates, layers[0], layers[-1])
        for i, layer in enumerate(layers):
            key, change = (part.to(device, torch.float64) for part in wanted(i, subjects))
            shift = change + key @ deltas[layer].T
            deltas[layer] = solver.delta(layer, ledger.layer(i).with_more(key, shift))
            write(layer, deltas[layer])
            keys.append(key)
            shifts.append(shift)
    return torch.stack(keys, 1), torch.stack(shifts, 1)
