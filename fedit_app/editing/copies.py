"""Keeping the subject's name: what a model says where a text copies it.

A model copies a name from its state at the name's last token, which an edit changes: it would write
"Marie Tussum" for Marie Tussaud. The term

    mean over the tokens of the second NAME in "The name is NAME. Again: NAME" of KL(p_delta || p_0)

with delta added at the last token of the first NAME holds that back. The text needs nothing but the
name. A second text, "NAME, also written NAME", was measured to keep no more names. The texts are
run apart from the facts' contexts, so that neither are padded to the others' length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedit_app.editing.goals import Goals
from fedit_app.editing.prefixes import trace_from_lookup
from fedit_app.editing.sites import Site
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.models.partial import Trace
from fedit_app.models.tokens import TokenRow, subject_row

_COPYING = f"The name is {SLOT}. Again:"


def copy_row(model: EditableModel, request: EditRequest) -> TokenRow:
    """The text that copies a request's subject; the copy is its target.

    Raises:
        FedEditError: the tokenizer makes no token of the subject.
    """
    name = request.subject
    return subject_row(model, EditRequest(request.id, name, _COPYING, name), SLOT, name)


@dataclass(frozen=True)
class Copies:
    """The texts that copy the subjects of n keys, prepared so that a pass costs little.

    Attributes:
        model: the model, unedited.
        site: where delta is added.
        trace: the layers from the site on, a row a key; its token 0 is the first NAME's last one.
        goals: the tokens of the copies.
        before: (tokens of the copies, vocabulary) log p_0.
    """

    model: EditableModel
    site: Site
    trace: Trace
    goals: Goals
    before: Tensor

    @staticmethod
    @torch.no_grad()
    def of(model: EditableModel, rows: Sequence[TokenRow], site: Site) -> Copies:
        """Run what no delta changes.

        Args:
            model: the model, unedited.
            rows: the texts of n keys, see `copy_row`.
            site: where delta is added.
        """
        trace = trace_from_lookup(model, rows, [0] * len(rows), site.first)
        final = site.run(trace, torch.zeros_like(site.outputs(trace)))
        goals = Goals.of(rows, final.device)
        before = model.log_probabilities(final[goals.row, goals.position])
        return Copies(model, site, trace, goals, before)

    def kl(self, delta: Tensor) -> Tensor:
        """(n,) the term at delta (n, parts, d_model), from one forward pass."""
        goals = self.goals
        final = self.site.run(self.trace, delta)
        now = self.model.log_probabilities(final[goals.row, goals.position])
        kl = functional.kl_div(self.before, now, log_target=True, reduction="none").sum(-1)
        per_key = torch.zeros(len(delta), device=kl.device, dtype=kl.dtype)
        return per_key.index_add(0, goals.row, kl * goals.share.to(kl))

    def select(self, kept: Tensor) -> Copies:
        """The same for some of the keys.

        Args:
            kept: (m,) numbers of keys, rising.
        """
        still = torch.isin(self.goals.row, kept.to(self.goals.row.device))
        return Copies(
            model=self.model,
            site=self.site,
            trace=self.trace.select(kept),
            goals=self.goals.select(kept, len(self.trace.hidden)),
            before=self.before[still.to(self.before.device)],
        )
