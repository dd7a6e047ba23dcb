"""The objective of the value v*: which state at the subject makes the model say the target.

    min_delta  mean over contexts of NLL(target) / |target|
               + kl_weight KL(p_0 || p_delta) + weight_decay |delta| / |h0|^2,   v* = h0 + delta

(MEMIT, arXiv 2210.07229, equation 16.) The tokens before the subject's last one and the layers
below delta do not depend on it: they are computed once, and many requests share each pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedit_app.editing.prefixes import trace_from_lookup
from fedit_app.editing.sites import Site
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel, at_least_float32
from fedit_app.models.tokens import TokenRow, subject_row


@dataclass(frozen=True)
class Outcome:
    """One forward pass with a delta per request.

    Attributes:
        nll: (n,) mean over contexts and target tokens of the negative log-likelihood, in nats.
        kl: (n,) KL(p_0 || p_delta) behind the subject in "SUBJECT is a".
        decoded: (n,) whether every target token is the argmax in every context.
    """

    nll: Tensor
    kl: Tensor
    decoded: Tensor


@dataclass(frozen=True)
class RequestRows:
    """A request as tokens.

    Attributes:
        contexts: the prompt with its target, in every context; the bare one first.
        essence: "SUBJECT is a", cut behind the subject: all that the KL term looks at.
    """

    contexts: tuple[TokenRow, ...]
    essence: TokenRow

    @property
    def width(self) -> int:
        """Tokens from the subject's last one to the last from which a target is predicted."""
        return max(len(row.ids) - 1 - row.lookup for row in self.contexts)


def request_rows(
    model: EditableModel, request: EditRequest, templates: Sequence[str]
) -> RequestRows:
    """Tokenise a request in every context.

    Raises:
        FedEditError: the tokenizer makes no token of the subject or of the target.
    """
    contexts = tuple(subject_row(model, request, text, request.target_new) for text in templates)
    plain = EditRequest(request.id, request.subject, "{} is a", request.target_new)
    row = subject_row(model, plain, "{}")
    essence = TokenRow(row.ids[: row.lookup + 1], row.lookup, row.lookup + 1)
    return RequestRows(contexts, essence)


class ValueProblem:
    """The objective of v* for a batch of requests, prepared so that a pass costs little.

    Rows are the requests' contexts in turn, then one row "SUBJECT is a" per request. Each row is
    split at the subject's last token: what stands before is a fixed key/value cache, the rest is
    run from the first layer that delta changes.

    Args:
        model: the model, unedited.
        requests: n requests as tokens, each in the same number of contexts.
        site: where delta is added.
    """

    def __init__(self, model: EditableModel, requests: Sequence[RequestRows], site: Site) -> None:
        self.model, self.site = model, site
        self.n, self.n_contexts = len(requests), len(requests[0].contexts)
        rows = [row for request in requests for row in request.contexts]
        rows += [request.essence for request in requests]
        groups = [*range(self.n_contexts)] * self.n + [self.n_contexts] * self.n
        self._upper = trace_from_lookup(model, rows, groups, site.first)
        in_contexts = self.n * self.n_contexts
        with torch.no_grad():
            states = at_least_float32(site.outputs(self._upper))
            essence = self._upper.select(torch.arange(in_contexts, len(rows)))
            final = site.run(essence, torch.zeros_like(states[in_contexts:]))
            self._essence0 = model.log_probabilities(final[:, 0])
        self._goals = _Goals.of(rows[:in_contexts], final.device)
        self.states = states[:in_contexts].unflatten(0, (self.n, self.n_contexts))
        owner = [torch.arange(self.n).repeat_interleave(self.n_contexts), torch.arange(self.n)]
        self._owner = torch.cat(owner).to(states.device)

    @property
    def h0(self) -> Tensor:
        """(n, parts, d_model) what stands at the site in the clean prompt of the unedited model."""
        return self.states[:, 0]

    def evaluate(self, delta: Tensor) -> Outcome:
        """Run the layers from the site on with delta at the subject's last token.

        Args:
            delta: (n, parts, d_model).
        """
        final = self.site.run(self._upper, delta[self._owner])
        goals = self._goals
        scores = self.model.log_probabilities(final[goals.row, goals.position])
        picked = scores.gather(1, goals.token[:, None])[:, 0]
        contexts = self.n * self.n_contexts
        per_row = torch.zeros(contexts, device=picked.device, dtype=picked.dtype)
        nll = per_row.index_add(0, goals.row, -picked * goals.share.to(picked))
        wrong = per_row.index_add(0, goals.row, (scores.argmax(-1) != goals.token).to(picked))
        shape = (self.n, self.n_contexts)
        essence = self.model.log_probabilities(final[contexts:, 0])
        kl = functional.kl_div(essence, self._essence0, log_target=True, reduction="none").sum(-1)
        return Outcome(
            nll=nll.view(shape).mean(1).to(delta.device),
            kl=kl.to(delta.device),
            decoded=(wrong.view(shape) == 0).all(1).to(delta.device),
        )

    @torch.no_grad()
    def patched(self, change: Tensor) -> Outcome:
        """A forward pass with v* patched in.

        Args:
            change: (n, d_model) v* - h0 at the last output of the site: what an MKV carries.
        """
        delta = torch.zeros_like(self.h0)
        delta[:, -1] = change
        return self.evaluate(delta)

    def select(self, kept: Tensor) -> ValueProblem:
        """The same problem for some of its requests.

        Args:
            kept: (m,) numbers of requests, rising.
        """
        part = object.__new__(ValueProblem)
        part.model, part.site = self.model, self.site
        part.n, part.n_contexts = len(kept), self.n_contexts
        kept = kept.to(self._owner.device)
        contexts = torch.arange(self.n_contexts, device=kept.device)
        in_contexts = (kept[:, None] * self.n_contexts + contexts).flatten()
        rows = torch.cat([in_contexts, self.n * self.n_contexts + kept])
        part._upper = self._upper.select(rows)
        part._owner = torch.searchsorted(kept, self._owner[rows])
        part.states = self.states[kept]
        part._essence0 = self._essence0[kept.to(self._essence0.device)]
        part._goals = self._goals.select(in_contexts, self.n * self.n_contexts)
        return part


@dataclass(frozen=True)
class _Goals:
    """Every target token of every context row: where it is predicted and what it is.

    Attributes:
        row, position: (m,) row, and index in the row's part from the subject's last token on.
        token: (m,) wanted id.
        share: (m,) float64, 1 / number of target tokens of the row.
    """

    row: Tensor
    position: Tensor
    token: Tensor
    share: Tensor

    @staticmethod
    def of(rows: Sequence[TokenRow], device: torch.device) -> _Goals:
        found = [
            (number, index - 1 - row.lookup, row.ids[index], 1 / (len(row.ids) - row.target))
            for number, row in enumerate(rows)
            for index in range(row.target, len(row.ids))
        ]
        row, position, token, share = zip(*found, strict=True)
        as_index = [torch.tensor(part, device=device) for part in (row, position, token)]
        return _Goals(*as_index, torch.tensor(share, dtype=torch.float64, device=device))

    def select(self, rows: Tensor, n_rows: int) -> _Goals:
        rows = rows.to(self.row.device)
        place = torch.full((n_rows,), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        kept = place[self.row] >= 0
        return _Goals(
            place[self.row[kept]], self.position[kept], self.token[kept], self.share[kept]
        )
