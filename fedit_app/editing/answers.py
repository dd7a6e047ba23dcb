"""How well rows say their targets, and the rows of chats.

In a chat the user asks for the fact, and the target is the whole answer: its end is learned, too,
so that a model stops after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit_app.editing.goals import Goals
from fedit_app.editing.prefixes import trace_from_lookup
from fedit_app.editing.sites import Site
from fedit_app.models.editable import EditableModel
from fedit_app.models.partial import Trace
from fedit_app.models.tokens import TokenRow


def said_of(
    model: EditableModel, final: Tensor, goals: Goals, owner: Tensor, share: Tensor, n: int
) -> tuple[Tensor, Tensor]:
    """How well n keys say the targets of their rows.

    Args:
        model: the model.
        final: (rows, tokens, d_model) output of the last layer from the subject's last token on.
        goals: the target tokens of the first rows.
        owner: (rows with a target,) number of the key that a row belongs to.
        share: (rows with a target,) weight of a row in the sum.
        n: number of keys.

    Returns:
        (n,) negative log-likelihood per target token, in nats, summed over rows by their weights;
        (n,) the smallest lead of a target token's log-probability over that of the likeliest other
        token.
    """
    log_p = model.log_probabilities(final[goals.row, goals.position])
    of_target = log_p.gather(1, goals.token[:, None])[:, 0]
    owner = owner.to(log_p.device)
    per_row = torch.zeros(len(owner), device=log_p.device, dtype=log_p.dtype)
    nll = per_row.index_add(0, goals.row, -of_target * goals.share.to(of_target))
    per_key = torch.zeros(n, device=nll.device, dtype=nll.dtype)
    nll = per_key.index_add(0, owner, nll * share.to(nll))
    lead = torch.full_like(per_key, torch.inf)
    return nll, lead.scatter_reduce(0, owner[goals.row], _leads(log_p, goals.token), "amin")


@torch.no_grad()
def _leads(log_p: Tensor, tokens: Tensor) -> Tensor:
    """(m,) by how much tokens (m,) are likelier than the likeliest other one, log_p (m, V)."""
    best = log_p.topk(2)
    first = best.indices[:, 0] == tokens
    other = torch.where(first, best.values[:, 1], best.values[:, 0])
    return log_p.gather(1, tokens[:, None])[:, 0] - other


@dataclass(frozen=True)
class Answers:
    """The chats of n keys, prepared so that a pass costs little.

    Attributes:
        model: the model, unedited.
        site: where delta is added.
        trace: the layers from the site on; token 0 is the subject's last one.
        owner: (rows,) number of the key that a row belongs to, rising.
        share: (rows,) weight of a row in the loss.
        goals: the tokens of the answers, and those at which they end.
    """

    model: EditableModel
    site: Site
    trace: Trace
    owner: Tensor
    share: Tensor
    goals: Goals

    @staticmethod
    @torch.no_grad()
    def of(
        model: EditableModel,
        chats: Sequence[Sequence[Sequence[TokenRow]]],
        share: Tensor,
        site: Site,
    ) -> Answers:
        """Run what no delta changes.

        Args:
            model: the model, unedited.
            chats: per key and fact the rows, as many of each fact.
            share: (n,) weight of a row of each key.
            site: where delta is added.
        """
        rows = [row for key in chats for fact in key for row in fact]
        forms = [form for key in chats for fact in key for form in range(len(fact))]
        trace = trace_from_lookup(model, rows, forms, site.first)
        device = trace.hidden.device
        counts = torch.tensor([sum(map(len, key)) for key in chats], device=device)
        owner = torch.arange(len(chats), device=device).repeat_interleave(counts)
        goals = Goals.of(rows, device)
        return Answers(model, site, trace, owner, share.to(device)[owner], goals)

    def said(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """`said_of` at delta (n, parts, d_model), from one forward pass."""
        final = self.site.run(self.trace, delta[self.owner])
        return said_of(self.model, final, self.goals, self.owner, self.share, len(delta))

    def select(self, kept: Tensor) -> Answers:
        """The same for some of the keys.

        Args:
            kept: (m,) numbers of keys, rising.
        """
        kept = kept.to(self.owner.device)
        rows = torch.nonzero(torch.isin(self.owner, kept))[:, 0]
        return Answers(
            model=self.model,
            site=self.site,
            trace=self.trace.select(rows),
            owner=torch.searchsorted(kept, self.owner[rows]),
            share=self.share[rows],
            goals=self.goals.select(rows, len(self.owner)),
        )
