"""A locate-then-edit method, and how its values become keys and shifts.

The loop over the layers is that of MEMIT (Meng et al., arXiv 2210.07229, algorithm 1), on top of a
ledger. A value that is learned in chats, too, is written twice: at the key of the texts, and at the
key that the subject has where the user asks for the fact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedit_app.editing.contexts import Template
from fedit_app.editing.optimise import Objective, memit_objective, optimise_values
from fedit_app.editing.pairs import Pairs
from fedit_app.editing.prefixes import trace_from_lookup
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.sites import Site
from fedit_app.editing.solver import Solver
from fedit_app.editing.subjects import Places, SubjectStates, in_chats, in_texts
from fedit_app.editing.value_store import ValueStore
from fedit_app.editing.values import Values
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel


@dataclass(frozen=True)
class EditVectors:
    """Keys, shifts and values of n MKVs.

    Attributes:
        keys: (n, n_layers, kinds, d_ff) float64: the key of the texts, then that of the chats.
        shifts: (n, n_layers, kinds, d_model) float64, by how much the output of W_l at the key is
            to move, measured from the base weights.
        v_star: (n, d_model) optimised values at the editor's site.
        h0: (n, d_model) what stands there in the unedited model.
    """

    keys: Tensor
    shifts: Tensor
    v_star: Tensor
    h0: Tensor

    @property
    def pairs(self) -> Pairs:
        """What is solved: the pairs of each MKV in turn."""
        keys, shifts = (part.transpose(1, 2).flatten(0, 1) for part in (self.keys, self.shifts))
        return Pairs(keys, shifts)


@dataclass(frozen=True)
class Kind:
    """One kind of contexts, texts or chats, and what is wanted there.

    Attributes:
        places: where n keys are met.
        values: of these keys, as outputs at the clean places.
    """

    places: Places
    values: Values


Wanted = Callable[[int, SubjectStates], tuple[Tensor, Tensor]]
"""(number i of the edited layer, states of the model as edited so far) -> keys (n, d_ff), and by
how much the outputs of W_l are to move, (n, d_model)."""

Changes = Callable[[EditableModel, Places, EditSettings, Values], Wanted]
"""(model, places of n keys, settings, their values) -> what is wanted of the edited layers."""


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

    def kinds(
        self,
        model: EditableModel,
        groups: Sequence[Sequence[EditRequest]],
        templates: Sequence[Template],
        settings: EditSettings,
        values: Values,
    ) -> list[Kind]:
        """Where the values of n keys are written: in texts, and in chats if some are among them.

        Args:
            model: the model on which the values were learned.
            groups: the requests of each key.
            templates: context templates, the bare one first.
            settings: hyperparameters.
            values: of these keys.
        """
        texts = Kind(in_texts(model, [group[0] for group in groups], templates), values)
        asked = in_chats(model, groups, templates)
        if asked is None:
            return [texts]
        rows = [row for (row,) in asked.clean.rows]
        site = self.site(model, settings)
        with torch.no_grad():
            trace = trace_from_lookup(model, rows, [0] * len(rows), site.first)
            h0 = site.outputs(trace)[:, -1:].to(values.h0)
        change = values.v_star[:, -1:] - values.h0[:, -1:]
        return [texts, Kind(asked, replace(values, v_star=h0 + change, h0=h0))]

    def vectors(
        self,
        model: EditableModel,
        kinds: Sequence[Kind],
        solver: Solver,
        ledger: Pairs,
        settings: EditSettings,
    ) -> EditVectors:
        """Write values layer by layer on top of a ledger.

        Args:
            model: the model, unedited.
            kinds: where n values are written, the texts first.
            solver: the joint solve of the edited layers.
            ledger: the m pairs edited before.
            settings: hyperparameters.
        """
        wanted = [
            (kind.places, self.changes(model, kind.places, settings, kind.values)) for kind in kinds
        ]
        keys, shifts = write_layers(model, wanted, solver, ledger)
        values = kinds[0].values
        return EditVectors(keys, shifts, values.v_star[:, -1], values.h0[:, -1])


@torch.no_grad()
def write_layers(
    model: EditableModel,
    kinds: Sequence[tuple[Places, Wanted]],
    solver: Solver,
    ledger: Pairs,
) -> tuple[Tensor, Tensor]:
    """Write new MKVs layer by layer, each layer seeing what the earlier ones did.

    With k_l the key and change_l the wanted move of the output of W_l, as it is now,

        r_l = change_l + Delta_l k_l

    is measured from the base weights: old and new MKVs can be solved in one joint batch, so old
    edits are kept, and the order in which they arrived does not matter.

    Args:
        model: the model, unedited; the ledger's Deltas are in it while this runs.
        kinds: where n keys are met in contexts of each kind, and what is wanted there.
        solver: the joint solve.
        ledger: the m pairs edited before.

    Returns:
        keys (n, n_layers, kinds, d_ff) and shifts (n, n_layers, kinds, d_model), float64.
    """
    layers, device = solver.layers, solver.device
    deltas = solver.deltas(ledger)
    keys, shifts = [], []
    with model.edited(deltas) as write:
        seen = [SubjectStates(model, places, layers[0], layers[-1]) for places, _ in kinds]
        for i, layer in enumerate(layers):
            found = [wanted(i, at) for (_, wanted), at in zip(kinds, seen, strict=True)]
            key, change = (
                torch.stack([part.to(device, torch.float64) for part in parts], 1)
                for parts in zip(*found, strict=True)
            )
            shift = change + key @ deltas[layer].T
            more = key.flatten(0, 1), shift.flatten(0, 1)
            deltas[layer] = solver.delta(layer, ledger.layer(i).with_more(*more))
            write(layer, deltas[layer])
            keys.append(key)
            shifts.append(shift)
    return torch.stack(keys, 1), torch.stack(shifts, 1)
