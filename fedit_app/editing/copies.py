"""Keeping the subject's name: what a model says where a text copies it.

A model copies a name from its state at the name's last token, which an edit changes: it would write
"Marie Tussum" for Marie Tussaud. The term

    mean over the tokens of the second NAME in "The name is NAME. Again: NAME" of KL(p_delta || p_0)

with delta added at the last token of the first NAME holds that back. Where a turn of a chat is one
of the contexts, so does the mean with the same over the NAME that begins an answer to "Tell me
about NAME." The texts need nothing but the name. A further one, "NAME, also written NAME", was
measured to keep no more names. The texts are run apart from the facts' contexts, so that neither
are padded to the others' length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedit_app.editing.goals import Goals
from fedit_app.editing.prefixes import trace_from_lookup
from fedit_app.editing.sites import Site
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.models.chat import ChatForm
from fedit_app.models.editable import EditableModel
from fedit_app.models.partial import Trace
from fedit_app.models.tokens import TokenRow, chat_row, subject_row

_COPYING = f"The name is {SLOT}. Again:"
_IN_CHAT = f"Tell me about {SLOT}."


def copy_rows(
    model: EditableModel, request: EditRequest, form: ChatForm | None
) -> tuple[TokenRow, ...]:
    """The texts that copy a request's subject; the copy is their target.

    Args:
        model: the model.
        request: the request.
        form: a turn of a chat with the model, if it is one of the contexts.

    Raises:
        FedEditError: the tokenizer makes no token of the subject.
    """
    name = request.subject
    plain = EditRequest(request.id, name, _COPYING, name)
    rows = [subject_row(model, plain, SLOT, name)]
    if form is not None:
        beginning = dataclasses.replace(form, end="")
        asked = EditRequest(request.id, name, SLOT, name, question=_IN_CHAT)
        rows.append(chat_row(model, asked, beginning, name, asking=True))
    return tuple(rows)


@dataclass(frozen=True)
class Copies:
    """The texts that copy the subjects of n keys, prepared so that a pass costs little.

    Attributes:
        model: the model, unedited.
        site: where delta is added.
        trace: the layers from the site on, a row a text; its token 0 is the first NAME's last one.
        owner: (rows,) number of the key that a row belongs to, rising.
        goals: the tokens of the copies.
        before: (tokens of the copies, vocabulary) log p_0.
    """

    model: EditableModel
    site: Site
    trace: Trace
    owner: Tensor
    goals: Goals
    before: Tensor

    @staticmethod
    @torch.no_grad()
    def of(model: EditableModel, texts: Sequence[Sequence[TokenRow]], site: Site) -> Copies:
        """Run what no delta changes.

        Args:
            model: the model, unedited.
            texts: those of n keys, the same number of each, see `copy_rows`.
            site: where delta is added.
        """
        rows = [row for of_key in texts for row in of_key]
        each = len(texts[0])
        trace = trace_from_lookup(model, rows, [*range(each)] * len(texts), site.first)
        final = site.run(trace, torch.zeros_like(site.outputs(trace)))
        goals = Goals.of(rows, final.device)
        before = model.log_probabilities(final[goals.row, goals.position])
        owner = torch.arange(len(texts), device=trace.hidden.device).repeat_interleave(each)
        return Copies(model, site, trace, owner, goals, before)

    def kl(self, delta: Tensor) -> Tensor:
        """(n,) the term at delta (n, parts, d_model), from one forward pass."""
        goals = self.goals
        final = self.site.run(self.trace, delta[self.owner])
        now = self.model.log_probabilities(final[goals.row, goals.position])
        kl = functional.kl_div(self.before, now, log_target=True, reduction="none").sum(-1)
        per_key = torch.zeros(len(delta), device=kl.device, dtype=kl.dtype)
        owner, each = self.owner.to(kl.device), len(self.owner) // len(delta)
        return per_key.index_add(0, owner[goals.row], kl * goals.share.to(kl) / each)

    def select(self, kept: Tensor) -> Copies:
        """The same for some of the keys.

        Args:
            kept: (m,) numbers of keys, rising.
        """
        kept = kept.to(self.owner.device)
        rows = torch.nonzero(torch.isin(self.owner, kept))[:, 0]
        still = torch.isin(self.goals.row, rows.to(self.goals.row.device))
        return Copies(
            model=self.model,
            site=self.site,
            trace=self.trace.select(rows),
            owner=torch.searchsorted(kept, self.owner[rows]),
            goals=self.goals.select(rows, len(self.trace.hidden)),
            before=self.before[still.to(self.before.device)],
        )
