"""The objective of a value v*: which state at the subject makes the model say the target.

    v* = h0 + delta,   delta = argmin  mean over contexts of NLL(target) / |target|
                                       + kl_weight KL(p_delta || p_0)
                                       + weight_decay |delta| / |h0|^2

(MEMIT, arXiv 2210.07229, equation 16; the last two terms, and the direction of the divergence, are
those of its code, as of ROME's, PMET's and AlphaEdit's.) h0 is the state of the unedited model at
the subject's last token, p_delta its next-token distribution after "SUBJECT is a" with delta added
at the subject. The tokens before the subject's last one and the layers below delta do not depend on
delta: they are computed once, and many requests share each pass.
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
from fedit_app.models.partial import Trace
from fedit_app.models.tokens import TokenRow, subject_row


@dataclass(frozen=True)
class Values:
    """Optimised values of n requests.

    Attributes:
        v_star: (n, parts, d_model) wanted outputs at the subject's last token.
        h0: (n, parts, d_model) these outputs in the unedited model, in the clean prompt.
        loss: (n,) last loss.
        steps: (n,) forward passes that were needed.
    """

    v_star: Tensor
    h0: Tensor
    loss: Tensor
    steps: Tensor


@dataclass(frozen=True)
class Outcome:
    """One forward pass with a delta per request.

    Attributes:
        nll: (n,) mean over contexts and target tokens of the negative log-likelihood, in nats.
        kl: (n,) KL(p_delta || p_0) after "SUBJECT is a".
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
        essence: "SUBJECT is a", cut after the subject: all that the KL term looks at.
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


@dataclass(frozen=True)
class ValueProblem:
    """The objective for a batch of n requests, prepared so that a pass costs little.

    The rows of a pass are the requests' contexts in turn, then one row "SUBJECT is a" per request.
    Each row starts at the subject's last token: what stands before it is a fixed key/value cache.

    Attributes:
        model: the model, unedited.
        site: where delta is added.
        states: (n, contexts, parts, d_model) what stands at the site without a delta.
        trace: the layers from the site on.
        row_owner: (rows,) number of the request that a row belongs to.
        goals: the target tokens of the context rows.
        essence0: (n, vocabulary) log p_0.
    """

    model: EditableModel
    site: Site
    states: Tensor
    trace: Trace
    row_owner: Tensor
    goals: Goals
    essence0: Tensor

    @staticmethod
    def of(model: EditableModel, requests: Sequence[RequestRows], site: Site) -> ValueProblem:
        """Run what no delta changes.

        Args:
            model: the model, unedited.
            requests: n requests as tokens, each in the same number of contexts.
            site: where delta is added.
        """
        n, n_contexts = len(requests), len(requests[0].contexts)
        in_contexts = n * n_contexts
        rows = [row for request in requests for row in request.contexts]
        rows += [request.essence for request in requests]
        templates = [*range(n_contexts)] * n + [n_contexts] * n
        trace = trace_from_lookup(model, rows, templates, site.first)
        with torch.no_grad():
            states = at_least_float32(site.outputs(trace))
            essence = trace.select(torch.arange(in_contexts, len(rows)))
            final = site.run(essence, torch.zeros_like(states[in_contexts:]))
            essence0 = model.log_probabilities(final[:, 0])
        owners = [torch.arange(n).repeat_interleave(n_contexts), torch.arange(n)]
        return ValueProblem(
            model=model,
            site=site,
            states=states[:in_contexts].unflatten(0, (n, n_contexts)),
            trace=trace,
            row_owner=torch.cat(owners).to(states.device),
            goals=Goals.of(rows[:in_contexts], final.device),
            essence0=essence0,
        )

    @property
    def h0(self) -> Tensor:
        """(n, parts, d_model) what stands at the site in the clean prompt of the unedited model."""
        return self.states[:, 0]

    def evaluate(self, delta: Tensor) -> Outcome:
        """The terms of the objective at delta (n, parts, d_model), from one forward pass."""
        n, n_contexts = self.states.shape[:2]
        in_contexts = n * n_contexts
        goals = self.goals
        final = self.site.run(self.trace, delta[self.row_owner])
        log_p = self.model.log_probabilities(final[goals.row, goals.position])
        of_target = log_p.gather(1, goals.token[:, None])[:, 0]
        per_row = torch.zeros(in_contexts, device=log_p.device, dtype=log_p.dtype)
        nll = per_row.index_add(0, goals.row, -of_target * goals.share.to(of_target))
        missed = per_row.index_add(0, goals.row, (log_p.argmax(-1) != goals.token).to(of_target))
        essence = self.model.log_probabilities(final[in_contexts:, 0])
        kl = functional.kl_div(self.essence0, essence, log_target=True, reduction="none").sum(-1)
        return Outcome(
            nll=nll.view(n, n_contexts).mean(1).to(delta.device),
            kl=kl.to(delta.device),
            decoded=(missed.view(n, n_contexts) == 0).all(1).to(delta.device),
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
        n, n_contexts = self.states.shape[:2]
        kept = kept.to(self.row_owner.device)
        contexts = torch.arange(n_contexts, device=kept.device)
        in_contexts = (kept[:, None] * n_contexts + contexts).flatten()
        rows = torch.cat([in_contexts, n * n_contexts + kept])
        return ValueProblem(
            model=self.model,
            site=self.site,
            states=self.states[kept],
            trace=self.trace.select(rows),
            row_owner=torch.searchsorted(kept, self.row_owner[rows]),
            goals=self.goals.select(in_contexts, n * n_contexts),
            essence0=self.essence0[kept.to(self.essence0.device)],
        )


@dataclass(frozen=True)
class Goals:
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
    def of(rows: Sequence[TokenRow], device: torch.device) -> Goals:
        """The target tokens of token rows."""
        found = [
            (number, index - 1 - row.lookup, row.ids[index], 1 / (len(row.ids) - row.target))
            for number, row in enumerate(rows)
            for index in range(row.target, len(row.ids))
        ]
        row, position, token, share = zip(*found, strict=True)
        return Goals(
            row=torch.tensor(row, device=device),
            position=torch.tensor(position, device=device),
            token=torch.tensor(token, device=device),
            share=torch.tensor(share, dtype=torch.float64, device=device),
        )

    def select(self, rows: Tensor, n_rows: int) -> Goals:
        """Those of some of `n_rows` rows, which are numbered anew."""
        rows = rows.to(self.row.device)
        place = torch.full((n_rows,), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        kept = place[self.row] >= 0
        return Goals(place[self.row[kept]], self.position[kept], self.token[kept], self.share[kept])
