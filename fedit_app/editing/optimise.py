"""Adam on delta for many keys at once, each stopped by itself.

After each step delta is projected: |delta| <= clamp |h0| (MEMIT's code). A key ends when its loss
is below 0.05, or when its targets were the argmax in every context for `stop_after` passes beyond
the first, per fact (ENCORE, EMNLP Findings 2025; a value that several facts share has less to spare
for each); it then leaves the batch.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import fields

import psutil
import torch
from torch import Tensor

from fedit_app.editing.contexts import Template
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.sites import Site
from fedit_app.editing.value_progress import ValueProgress
from fedit_app.editing.value_store import ValueStore, batch_key
from fedit_app.editing.values import KeyRows, Outcome, ValueProblem, Values, key_rows
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

SOLVED = 0.05
"""A value whose loss is below it is done (MEMIT's code)."""

_LARGEST_BATCH = {"cpu": 32, "cuda": 256}

Objective = Callable[[Outcome, Tensor, EditSettings], tuple[Tensor, Tensor]]
"""(outcome, weight decay (n,), settings) -> loss (n,), and whether a key is solved (n,)."""


def memit_objective(
    outcome: Outcome, decay: Tensor, settings: EditSettings
) -> tuple[Tensor, Tensor]:
    """MEMIT's loss, see `values`; solved below 0.05."""
    kept = settings.kl_weight * outcome.kl + settings.subject_weight * outcome.subject_kl
    loss = outcome.nll + kept + decay
    return loss, loss.detach() < SOLVED


def minimise(
    problem: ValueProblem,
    settings: EditSettings,
    objective: Objective,
    starts: Sequence[Tensor | None],
    on_step: Callable[[int, int], None],
) -> Values:
    """v* of a batch of n keys.

    Args:
        problem: the batch.
        settings: hyperparameters.
        objective: what is minimised.
        starts: for each key where its delta at the site's last output begins, (d_model,), or
            None for zero.
        on_step: called after every pass with its number and how many keys are done.
    """
    h0, reach = problem.h0, reach_of(problem, settings)
    h0_squared = h0.norm(dim=-1) ** 2
    delta = torch.zeros_like(h0)
    for row, start in enumerate(starts):
        if start is not None:
            delta[row, -1] = start
    delta = within(delta, reach).requires_grad_()
    adam = torch.optim.Adam([delta], lr=settings.learning_rate)
    best, last_loss = torch.zeros_like(h0), torch.zeros_like(h0[:, 0, 0])
    passes = torch.zeros(len(h0), dtype=torch.long, device=h0.device)
    held = torch.zeros_like(passes)  # passes in which the targets were the argmax
    active = torch.arange(len(h0), device=h0.device)  # the keys that `problem` still holds
    for step in range(1, settings.steps + 1):
        outcome = problem.evaluate(delta[active])
        decay = settings.weight_decay * (delta[active].norm(dim=-1) / h0_squared[active]).sum(1)
        loss, done = objective(outcome, decay, settings)
        held[active] = torch.where(outcome.decoded, held[active] + 1, 0)
        if settings.stop_after:
            done = done | (held[active] > settings.stop_after * problem.facts)
        if step == settings.steps:
            done = torch.ones_like(done)
        finished = active[done]
        best[finished] = delta.detach()[finished]
        last_loss[finished] = loss.detach()[done]
        passes[finished] = step
        on_step(step, len(h0) - len(active) + len(finished))
        if bool(done.all()):
            break
        adam.zero_grad()
        loss[~done].sum().backward()
        adam.step()
        with torch.no_grad():
            delta.copy_(within(delta, reach))
        if bool(done.any()):
            kept = torch.nonzero(~done)[:, 0]
            problem, active = problem.select(kept), active[kept]
    return Values(h0 + best, h0, last_loss, passes)


def reach_of(problem: ValueProblem, settings: EditSettings) -> Tensor:
    """(n, parts, 1) largest |delta|: clamp |h0|, where |h0| counts at most as `norm_guard` times
    its median norm over the contexts.

    A subject at the very start of a text can have a state several times as long as elsewhere; its
    share would be too much in every other context.
    """
    norms = problem.states.norm(dim=-1)
    reach = norms[:, 0]
    if settings.norm_guard:
        limit = settings.norm_guard * norms.median(dim=1).values
        outliers = int((reach > limit).any(1).sum())
        if outliers:
            logger.info(
                "v*: the subject's state of %d of %d values is more than %g times as long as in "
                "other contexts (the start of a text); they are kept shorter",
                outliers,
                len(reach),
                settings.norm_guard,
            )
        reach = reach.minimum(limit)
    largest: Tensor = settings.clamp * reach[..., None]
    return largest


def within(delta: Tensor, reach: Tensor) -> Tensor:
    """(n, parts, d_model) delta, shortened to the reach where it is longer."""
    norms = delta.norm(dim=-1, keepdim=True)
    return delta * torch.where(norms > reach, reach / norms, 1)


def optimise_values(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[Template],
    site: Site,
    settings: EditSettings,
    objective: Objective = memit_objective,
    starts: Sequence[Tensor | None] | None = None,
    store: ValueStore | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> Values:
    """Optimise the values of requests, as many at a time as fit in memory.

    Keys with equally many tokens after the subject share a batch, so that little is padded.
    A batch that does not fit in a CUDA device's memory is tried again with half as many.

    Args:
        model: the model, unedited.
        requests: the requests.
        templates: context templates, the bare one first.
        site: where delta is added.
        settings: hyperparameters.
        objective: what is minimised.
        starts: see `minimise`; absent: None for all.
        store: where batches are looked up before they are computed, and kept afterwards.
        groups: the requests of each of n keys, by number; None: every request has its own.

    Returns:
        The values of the n keys.

    Raises:
        FedEditError: one value alone does not fit in memory, or has no token to edit.
    """
    groups = [[i] for i in range(len(requests))] if groups is None else groups
    with_copy = settings.subject_weight > 0
    rows = [key_rows(model, [requests[i] for i in group], templates, with_copy) for group in groups]
    waiting = sorted(range(len(rows)), key=lambda i: (rows[i].width, rows[i].facts[0][0].ids))
    size = settings.batch or batch_that_fits(model, rows, site.first)
    order: list[int] = []
    solved: list[Values] = []
    with closing(ValueProgress(len(rows), settings.steps)) as progress:
        while waiting:
            chosen = _within_size(waiting, rows, size)
            batch = [rows[i] for i in chosen]
            begin = [starts[i] for i in chosen] if starts else [None] * len(chosen)
            progress.begin(len(chosen))
            key = batch_key(model, batch, site, settings, objective, begin) if store else ""
            values = store.load(key, model.device) if store else None
            if values is None:
                values = _minimise_in_memory(
                    model, batch, site, settings, objective, begin, progress.at_step
                )
                if values is None:
                    size = _halved(chosen, rows)
                    continue
                if store:
                    store.save(key, values)
            solved.append(values)
            order += chosen
            waiting = waiting[len(chosen) :]
            progress.end()
    place = torch.tensor(order).argsort()
    columns = (
        torch.cat([getattr(values, field.name) for values in solved]) for field in fields(Values)
    )
    return Values(*(column[place.to(column.device)] for column in columns))


def _within_size(waiting: Sequence[int], rows: Sequence[KeyRows], size: int) -> list[int]:
    """The first keys with at most `size` facts together; one key at least."""
    facts = itertools.accumulate(len(rows[i].facts) for i in waiting)
    return [i for i, total in zip(waiting, facts, strict=True) if total <= size] or [waiting[0]]


def batch_that_fits(model: EditableModel, rows: Sequence[KeyRows], first: int) -> int:
    """How many facts to optimise together, by what a backward pass keeps of each.

    Per token and layer about 16 states and 6 keys are kept, per target token three rows of the
    vocabulary in float32; half of the free memory may be used.

    Args:
        model: the model.
        rows: the keys.
        first: first layer that runs again.
    """
    device = model.device
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
    else:
        free = psutil.virtual_memory().available
    per_fact = bytes_per_fact(model, rows, first)
    return int(min(max(free / 2 // per_fact, 1), _LARGEST_BATCH.get(device.type, 32)))


def bytes_per_fact(model: EditableModel, rows: Sequence[KeyRows], first: int) -> int:
    """How much memory a backward pass takes for each fact, see `batch_that_fits`."""
    bytes_each: int = model.model.dtype.itemsize
    widest = max(row.width for row in rows)
    contexts = len(rows[0].facts[0])
    longest = max(row.lookup for key in rows for row in key.contexts)
    bare = [fact[0] for key in rows for fact in key.facts]
    targets = contexts * max(len(row.ids) - row.target for row in bare) + 1
    # Run apart: the copies of a key's subject, and the chats of a fact.
    apart = [[*key.copies, *chats] for key in rows for chats in key.answers or [()]]
    targets += max(sum(len(row.ids) - row.target for row in texts) for texts in apart)
    tokens = (contexts + 1) * widest
    tokens += max(sum(len(row.ids) - 1 - row.lookup for row in texts) for texts in apart)
    before = (contexts + 1) * longest
    before += max(sum(row.lookup for row in texts) for texts in apart)
    kept = tokens * (model.n_layers - first) * (16 * model.d_model + 6 * model.d_ff)
    kept += before * model.n_layers * 2 * model.d_model
    vocabulary: int = model.model.config.get_text_config().vocab_size
    logits = 3 * 4 * targets * vocabulary
    return kept * bytes_each + logits


def _minimise_in_memory(
    model: EditableModel,
    rows: Sequence[KeyRows],
    site: Site,
    settings: EditSettings,
    objective: Objective,
    starts: Sequence[Tensor | None],
    on_step: Callable[[int, int], None],
) -> Values | None:
    """`minimise` for a batch; None if the device's memory is too small for it.

    The error ends here, so that what its traceback holds is free before the next try.
    """
    try:
        return minimise(ValueProblem.of(model, rows, site), settings, objective, starts, on_step)
    except torch.OutOfMemoryError:
        return None


def _halved(chosen: Sequence[int], rows: Sequence[KeyRows]) -> int:
    if len(chosen) == 1:
        raise FedEditError(
            "out of memory while optimising a single value; use a device with more memory, fewer "
            "contexts, or dtype = bfloat16"
        )
    torch.cuda.empty_cache()
    size = sum(len(rows[i].facts) for i in chosen)
    logger.warning("v*: %d facts at once do not fit in memory, trying %d", size, size // 2)
    return size // 2
