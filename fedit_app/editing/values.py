"""The objective of a value v*: which state at the subject makes the model say the targets.

    v* = h0 + delta,   delta = argmin  mean over facts and contexts of NLL(target) / |target|
                                       + kl_weight KL(p_delta || p_0) after "SUBJECT is a"
                                       + subject_weight KL(p_delta || p_0) in a copy of SUBJECT
                                       + weight_decay |delta| / |h0|^2

(MEMIT, arXiv 2210.07229, equation 16; the second and the last term, and the direction of the
divergence, are those of its code, as of ROME's, PMET's and AlphaEdit's; the third is in `copies`.)
h0 is the state of the unedited model at the subject's last token, p_delta its next-token
distribution with delta added at the subject. The tokens before the subject's last one and the
layers below delta do not depend on delta: they are computed once, and many values share each pass.

Up to the subject's last token a model has read only the subject and what stands before it. Facts
whose text up to there is the same have one key, and so one value, which has to say all of them
(MEMIT-Merge, arXiv 2502.07322).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedit_app.editing.answers import Answers, said_of
from fedit_app.editing.contexts import Template
from fedit_app.editing.copies import Copies, copy_rows
from fedit_app.editing.goals import Goals
from fedit_app.editing.prefixes import trace_from_lookup
from fedit_app.editing.sites import Site
from fedit_app.facts.request import EditRequest
from fedit_app.models.chat import ChatForm
from fedit_app.models.editable import EditableModel, at_least_float32
from fedit_app.models.partial import Trace
from fedit_app.models.tokens import TokenRow, chat_row, subject_row


@dataclass(frozen=True)
class Values:
    """Optimised values of n keys.

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

    def replaced(self, numbers: Sequence[int], by: Values) -> Values:
        """The values with others in the place of some, whose steps are added."""
        loss, v_star, steps = self.loss.clone(), self.v_star.clone(), self.steps.clone()
        at = torch.tensor(numbers, device=loss.device)
        loss[at], v_star[at] = by.loss.to(loss), by.v_star.to(v_star)
        steps[at] += by.steps.to(steps)
        return Values(v_star, self.h0, loss, steps)


@dataclass(frozen=True)
class Outcome:
    """One forward pass with a delta per key.

    Attributes:
        nll: (n,) mean over facts, contexts and target tokens of the negative log-likelihood, in
            nats.
        kl: (n,) KL(p_delta || p_0) after "SUBJECT is a".
        subject_kl: (n,) the same where a text copies the subject, see `copies`; 0 if none is run.
        lead: (n,) the smallest lead of a target token's log-probability over that of the likeliest
            other token, over all facts and contexts, in nats.
    """

    nll: Tensor
    kl: Tensor
    subject_kl: Tensor
    lead: Tensor

    @property
    def decoded(self) -> Tensor:
        """(n,) whether every target token of every fact is the argmax in every context."""
        return self.lead > 0


@dataclass(frozen=True)
class KeyRows:
    """The facts of a key as tokens.

    Attributes:
        facts: per fact its prompt with its target, in every context; the bare one first.
        essence: "SUBJECT is a", cut after the subject: all that the KL term looks at.
        copies: the texts that copy the subject, see `copies`; empty: they are not run.
        answers: per fact what the user of a chat model asks, with its target as the answer; in
            every form of a chat among the contexts.
    """

    facts: tuple[tuple[TokenRow, ...], ...]
    essence: TokenRow
    copies: tuple[TokenRow, ...] = ()
    answers: tuple[tuple[TokenRow, ...], ...] = ()

    @property
    def contexts(self) -> list[TokenRow]:
        """The rows of all facts, fact by fact."""
        return [row for fact in self.facts for row in fact]

    @property
    def width(self) -> int:
        """Tokens from the subject's last one to the last from which a target is predicted."""
        return max(len(row.ids) - 1 - row.lookup for row in self.contexts)


def key_rows(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[Template],
    with_copy: bool = False,
) -> KeyRows:
    """Tokenise the requests of a key in every context.

    Args:
        model: the model.
        requests: one or more with the same key.
        templates: context templates, the bare one first.
        with_copy: whether texts that copy the subject are run.

    Raises:
        FedEditError: the tokenizer makes no token of a subject or of a target.
    """
    texts = [one for one in templates if isinstance(one, str)]
    forms = [one for one in templates if isinstance(one, ChatForm)]
    facts = tuple(
        tuple(subject_row(model, request, text, request.target_new) for text in texts)
        for request in requests
    )
    answers = tuple(
        tuple(chat_row(model, request, form, request.target_new, asking=True) for form in forms)
        for request in requests
    )
    first = requests[0]
    plain = EditRequest(first.id, first.subject, "{} is a", first.target_new)
    row = subject_row(model, plain, "{}")
    essence = TokenRow(row.ids[: row.lookup + 1], row.lookup, row.lookup + 1)
    copies = copy_rows(model, first, forms[0] if forms else None) if with_copy else ()
    return KeyRows(facts, essence, copies, answers)


@dataclass(frozen=True)
class ValueProblem:
    """The objective for a batch of n keys, prepared so that a pass costs little.

    The rows of a pass are the keys' facts in their contexts, in turn, then one row "SUBJECT is a"
    per key. Each row starts at the subject's last token: what stands before it is a fixed key/value
    cache. Chats and copies of the subject are run apart, because they are longer behind it.

    Attributes:
        model: the model, unedited.
        site: where delta is added.
        states: (n, contexts, parts, d_model) what stands at the site without a delta, in the
            contexts of each key's first fact.
        trace: the layers from the site on.
        row_owner: (rows,) number of the key that a row belongs to.
        row_share: (context rows,) 1 / number of contexts of the row's key, chats included.
        goals: the target tokens of the context rows.
        essence0: (n, vocabulary) log p_0.
        copies: the keys' texts that copy the subject; None if they are not run.
        answers: the keys' facts in chats; None without any.
    """

    model: EditableModel
    site: Site
    states: Tensor
    trace: Trace
    row_owner: Tensor
    row_share: Tensor
    goals: Goals
    essence0: Tensor
    copies: Copies | None
    answers: Answers | None

    @staticmethod
    def of(model: EditableModel, keys: Sequence[KeyRows], site: Site) -> ValueProblem:
        """Run what no delta changes.

        Args:
            model: the model, unedited.
            keys: the facts of n keys as tokens, each in the same number of contexts, and all or
                none with texts that copy the subject.
            site: where delta is added.
        """
        n, n_contexts = len(keys), len(keys[0].facts[0])
        n_facts = torch.tensor([len(key.facts) for key in keys])
        in_contexts = int(n_facts.sum()) * n_contexts
        rows = [row for key in keys for row in key.contexts]
        rows += [key.essence for key in keys]
        templates = [*range(n_contexts)] * int(n_facts.sum()) + [n_contexts] * n
        owner = torch.arange(n).repeat_interleave(n_facts * n_contexts)
        first_rows = (n_facts.cumsum(0) - n_facts)[:, None] * n_contexts + torch.arange(n_contexts)
        trace = trace_from_lookup(model, rows, templates, site.first)
        n_chats = len(keys[0].answers[0]) if keys[0].answers else 0
        share = 1 / (n_facts * (n_contexts + n_chats)).double()
        copies = [key.copies for key in keys if key.copies]
        with torch.no_grad():
            states = at_least_float32(site.outputs(trace))
            essence = trace.select(torch.arange(in_contexts, len(rows)))
            final = site.run(essence, torch.zeros_like(states[in_contexts:]))
            essence0 = model.log_probabilities(final[:, 0])
        return ValueProblem(
            model=model,
            site=site,
            states=states[first_rows.to(states.device)],
            trace=trace,
            row_owner=torch.cat([owner, torch.arange(n)]).to(states.device),
            row_share=share[owner].to(states.device),
            goals=Goals.of(rows[:in_contexts], final.device),
            essence0=essence0,
            copies=Copies.of(model, copies, site) if copies else None,
            answers=Answers.of(model, [k.answers for k in keys], share, site) if n_chats else None,
        )

    @property
    def h0(self) -> Tensor:
        """(n, parts, d_model) what stands at the site in the clean prompt of the unedited model."""
        return self.states[:, 0]

    @property
    def facts(self) -> Tensor:
        """(n,) number of facts of each key."""
        owner = self.row_owner[: len(self.row_share)]
        return owner.bincount(minlength=len(self.states)) // self.states.shape[1]

    def evaluate(self, delta: Tensor) -> Outcome:
        """The terms of the objective at delta (n, parts, d_model), from one forward pass."""
        in_contexts = len(self.row_share)
        final = self.site.run(self.trace, delta[self.row_owner])
        owner = self.row_owner[:in_contexts]
        nll, lead = said_of(self.model, final, self.goals, owner, self.row_share, len(delta))
        essence = self.model.log_probabilities(final[in_contexts:, 0])
        kl = functional.kl_div(self.essence0, essence, log_target=True, reduction="none").sum(-1)
        if self.answers is not None:
            in_chat, lead_in_chat = self.answers.said(delta)
            nll, lead = nll + in_chat, lead.minimum(lead_in_chat)
        kept = torch.zeros_like(kl) if self.copies is None else self.copies.kl(delta)
        return Outcome(*(part.to(delta.device) for part in (nll, kl, kept, lead)))

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
        """The same problem for some of its keys.

        Args:
            kept: (m,) numbers of keys, rising.
        """
        kept = kept.to(self.row_owner.device)
        rows = torch.nonzero(torch.isin(self.row_owner, kept))[:, 0]
        in_contexts = rows[: len(rows) - len(kept)]
        return ValueProblem(
            model=self.model,
            site=self.site,
            states=self.states[kept],
            trace=self.trace.select(rows),
            row_owner=torch.searchsorted(kept, self.row_owner[rows]),
            row_share=self.row_share[in_contexts],
            goals=self.goals.select(in_contexts, len(self.row_share)),
            essence0=self.essence0[kept.to(self.essence0.device)],
            copies=None if self.copies is None else self.copies.select(kept),
            answers=None if self.answers is None else self.answers.select(kept),
        )
