"""The value v*: which output of layer L at the subject makes the model say the target.

    min_delta  mean over contexts of NLL(target) / |target|
               + kl_weight KL(p_0 || p_delta) + weight_decay |delta| / |h0|^2,   v* = h0 + delta

(MEMIT, arXiv 2210.07229, equation 16, with the projection |delta| <= clamp |h0| after each step.)
The tokens before the subject's last one and the layers up to L do not depend on delta: they are
computed once, and many requests share each pass.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from fedit_app.editing.requests import EditRequest
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.tokens import TokenRow, pad, subject_row
from fedit_app.models.editable import EditableModel, at_least_float32
from fedit_app.models.partial import Trace, fixed_cache, trace

logger = logging.getLogger(__name__)

_SOLVED = 0.05


@dataclass(frozen=True)
class Values:
    """Optimised values of n requests.

    Attributes:
        v_star: (n, d_model) wanted output of layer L at the subject's last token.
        h0: (n, d_model) that output in the unedited model, in the clean prompt.
        loss: (n,) last loss.
        steps: (n,) forward passes that were needed.
    """

    v_star: Tensor
    h0: Tensor
    loss: Tensor
    steps: Tensor


@dataclass(frozen=True)
class _Outcome:
    """One forward pass: per request the NLL, the KL term, and whether the target is decoded."""

    nll: Tensor
    kl: Tensor
    decoded: Tensor


class ValueProblem:
    """The objective of v* for a batch of requests, prepared so that a pass costs little.

    Rows are the requests' contexts in turn, then one row "SUBJECT is a" per request. Each row is
    split at the subject's last token: what stands before is a fixed key/value cache, the rest is
    run from layer L + 1 upwards.

    Args:
        model: the model, unedited.
        requests: n requests.
        templates: context templates, the bare one first.
        layer: L, at whose output delta is added.
    """

    def __init__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        templates: Sequence[str],
        layer: int,
    ) -> None:
        self.model, self.layer = model, layer
        self.n, self.n_contexts = len(requests), len(templates)
        rows = [
            subject_row(model, request, template, request.target_new)
            for request in requests
            for template in templates
        ]
        rows += [_essence_row(model, request) for request in requests]
        device = model.device
        with torch.no_grad():
            self._upper = _split_trace(model, rows, layer)
        self.owner = torch.cat(
            [
                torch.arange(self.n).repeat_interleave(self.n_contexts),
                torch.arange(self.n),
            ]
        ).to(device)
        self.h0 = at_least_float32(self._upper.hidden[:: self.n_contexts, 0][: self.n])
        self._goals = _Goals.of(rows[: self.n * self.n_contexts], device)
        with torch.no_grad():
            self._essence0 = self._essence(self._final(self._upper.hidden))

    def _final(self, hidden: Tensor) -> Tensor:
        return self._upper.run(hidden, self.layer + 1, self.model.n_layers - 1)

    def _essence(self, final: Tensor) -> Tensor:
        """(n, vocabulary) log-probabilities after the subject in "SUBJECT is a"."""
        return self.model.log_probabilities(final[self.n * self.n_contexts :, 0])

    def evaluate(self, delta: Tensor) -> _Outcome:
        """Run the upper layers with h + delta at the subject's last token.

        Args:
            delta: (n, d_model).
        """
        hidden = self._upper.hidden
        subject = hidden[:, :1] + delta[self.owner].to(hidden)[:, None]
        final = self._final(torch.cat([subject, hidden[:, 1:]], dim=1))
        goals = self._goals
        scores = self.model.log_probabilities(final[goals.row, goals.position])
        picked = scores.gather(1, goals.token[:, None])[:, 0]
        per_row = torch.zeros(len(hidden), device=picked.device, dtype=picked.dtype)
        nll = per_row.index_add(0, goals.row, -picked * goals.share.to(picked))
        wrong = per_row.index_add(0, goals.row, (scores.argmax(-1) != goals.token).to(picked))
        shape = (self.n, self.n_contexts)
        contexts = self.n * self.n_contexts
        essence = self._essence(final)
        kl = functional.kl_div(essence, self._essence0, log_target=True, reduction="none").sum(-1)
        return _Outcome(
            nll=nll[:contexts].view(shape).mean(1),
            kl=kl,
            decoded=(wrong[:contexts].view(shape) == 0).all(1),
        )

    @torch.no_grad()
    def decodes(self, v_star: Tensor) -> Tensor:
        """Whether the model says the targets, in every context, once v* is patched in.

        Args:
            v_star: (n, d_model) candidates.

        Returns:
            (n,) bool.
        """
        return self.evaluate(v_star.to(self.h0) - self.h0).decoded

    def select(self, kept: Tensor) -> ValueProblem:
        """The same problem for some of its requests.

        Args:
            kept: (m,) numbers of requests, rising.
        """
        part = object.__new__(ValueProblem)
        part.model, part.layer = self.model, self.layer
        part.n, part.n_contexts = len(kept), self.n_contexts
        contexts = torch.arange(self.n_contexts, device=kept.device)
        rows = torch.cat(
            [
                (kept[:, None] * self.n_contexts + contexts).flatten(),
                self.n * self.n_contexts + kept,
            ]
        )
        part._upper = self._upper.select(rows)
        part.owner = torch.searchsorted(kept, self.owner[rows])
        part.h0, part._essence0 = self.h0[kept], self._essence0[kept]
        part._goals = self._goals.select(rows)
        return part


@dataclass(frozen=True)
class _Goals:
    """Every target token of every context row: where it is predicted and what it is.

    Attributes:
        row, position: (m,) row, and index in the row's part behind the subject.
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

    def select(self, rows: Tensor) -> _Goals:
        place = torch.full((int(max(rows.max(), self.row.max())) + 1,), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        kept = place[self.row] >= 0
        return _Goals(
            place[self.row[kept]], self.position[kept], self.token[kept], self.share[kept]
        )


def _essence_row(model: EditableModel, request: EditRequest) -> TokenRow:
    """ "SUBJECT is a", cut behind the subject: all that the KL term looks at."""
    plain = EditRequest(request.id, request.subject, "{} is a", request.target_new)
    row = subject_row(model, plain, "{}")
    return TokenRow(row.ids[: row.lookup + 1], row.lookup, row.lookup + 1)


def _split_trace(model: EditableModel, rows: Sequence[TokenRow], layer: int) -> Trace:
    """Cache the tokens before each row's lookup token, and trace the upper layers on the rest.

    The last target token is left out: nothing is predicted from it.
    """
    pad_id, device = model.pad_token_id, model.device
    before, before_mask = pad([row.ids[: row.lookup] for row in rows], pad_id, side="left")
    rest = [row.ids[row.lookup : len(row.ids) - (row.target < len(row.ids))] for row in rows]
    after, after_mask = pad(rest, pad_id)
    past = None
    if before.shape[1]:
        past = DynamicCache()
        model.model(
            input_ids=before.to(device),
            attention_mask=before_mask.to(device),
            position_ids=(before_mask.cumsum(1) - 1).clamp(min=0).to(device),
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past = fixed_cache(past)
    start = before_mask.sum(1, keepdim=True)
    return trace(
        model,
        layer + 1,
        model.n_layers - 1,
        input_ids=after.to(device),
        attention_mask=torch.cat([before_mask, after_mask], dim=1).to(device),
        position_ids=(start + torch.arange(after.shape[1])).to(device),
        past_key_values=past,
        use_cache=past is not None,
    )


def optimise_values(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    settings: EditSettings,
) -> Values:
    """Optimise v* for requests, `settings.batch` at a time.

    Args:
        model: the model, unedited.
        requests: n requests.
        templates: context templates, the bare one first.
        settings: hyperparameters.
    """
    parts: dict[int, tuple[Tensor, ...]] = {}
    by_length = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), i))
    for start in range(0, len(requests), settings.batch):
        chosen = by_length[start : start + settings.batch]
        problem = ValueProblem(
            model, [requests[i] for i in chosen], templates, settings.value_layer
        )
        solved = _optimise(problem, settings)
        parts.update({i: tuple(part[row] for part in solved) for row, i in enumerate(chosen)})
        logger.info("v*: %d of %d requests optimised", len(parts), len(requests))
    columns = zip(*(parts[i] for i in range(len(requests))), strict=True)
    return Values(*(torch.stack(column) for column in columns))


def _optimise(problem: ValueProblem, settings: EditSettings) -> tuple[Tensor, ...]:
    """Adam on delta with a stop per request; finished requests leave the batch."""
    h0 = problem.h0
    reach = h0.norm(dim=1, keepdim=True)
    delta = torch.zeros_like(h0, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.learning_rate)
    result, last_loss = torch.zeros_like(h0), torch.zeros_like(h0[:, 0])
    passes = torch.zeros(len(h0), dtype=torch.long, device=h0.device)
    held = torch.zeros(len(h0), dtype=torch.long, device=h0.device)
    active = torch.arange(len(h0), device=h0.device)
    for step in range(1, settings.steps + 1):
        outcome = problem.evaluate(delta[active])
        norms = delta[active].norm(dim=1)
        decay = settings.weight_decay * norms / reach[active, 0] ** 2
        loss = outcome.nll + settings.kl_weight * outcome.kl + decay
        held[active] = torch.where(outcome.decoded, held[active] + 1, 0)
        done = loss.detach() < _SOLVED
        if settings.stop_after:
            done |= held[active] > settings.stop_after
        if step == settings.steps:
            done = torch.ones_like(done)
        finished = active[done]
        result[finished] = delta.detach()[finished]
        last_loss[finished] = loss.detach()[done]
        passes[finished] = step
        if bool(done.all()):
            break
        adam.zero_grad()
        loss[~done].sum().backward()
        adam.step()
        with torch.no_grad():
            delta *= (settings.clamp * reach / delta.norm(dim=1, keepdim=True)).clamp(max=1)
        if bool(done.any()):
            kept = torch.nonzero(~done)[:, 0]
            problem, active = problem.select(kept), active[kept]
    return h0 + result, h0, last_loss, passes
