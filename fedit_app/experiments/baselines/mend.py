"""MEND (Mitchell et al., ICLR 2022, arXiv 2110.11309): a network learns to edit by gradients.

The edited matrices are those of the MLPs of the last three layers. With u and delta the input and
the gradient of a matrix at a token of a fact, which the network makes u~ and delta~ of
(`gradient_editor`), and a learned step alpha of each matrix,

    W  becomes  W - alpha sum over facts and tokens of delta~ u~^T.

The network is trained on edits of records that nobody edits in the run: an edited model is to say
their targets, to their prompts and to paraphrases, and to go on as before after their neighborhood
prompts. Whoever edits with MEND needs such records, and the time to train.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedit_app.evaluation.fit import misfits
from fedit_app.evaluation.scores import Before, last_states
from fedit_app.experiments.baselines.gradient_editor import GradientEditor
from fedit_app.experiments.baselines.training import (
    Lesson,
    fact_rows,
    no_text,
    target_loss,
)
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.models.modules import find_module, on_device_of, projection_weight
from fedit_app.models.tokens import TokenRow, continuation_row, pad, token_ids
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

LAYERS = 3
"""How many layers, the last ones, are edited."""

RATE, STEP, STEP_RATE, CLIP = 1e-6, 1e-4, 1e-4, 100.0
"""The authors' and EasyEdit's: Adam's step size for the network; alpha at the beginning, and Adam's
step size for it; largest norm of the network's gradient."""

EDIT, LOCALITY = 0.1, 1.0
"""Theirs: weights of the two parts of the loss."""

BATCH = 10
"""Theirs: records a step. Of at most so many at once the training makes one edit."""

STEPS, LEAST = 100, 100
"""Steps of the training, where the authors stop by validation after many thousands; records that it
needs."""

Factors = tuple[Tensor, Tensor]
"""u (n, d_in) and delta (n, d_out) of n tokens of a matrix."""


@contextmanager
def mend(model: EditableModel, lesson: Lesson) -> Iterator[Before]:
    """The model with all facts edited at once by an editor that is trained here.

    Raises:
        FedEditError: too few records to train on, or the training fails.
    """
    facts = lesson.facts
    editor = trained(model, usable(model, lesson.spare()), len(facts), lesson.seed)
    with added(model, editor.edit(fact_rows(model, facts))):
        yield no_text


class Editor(nn.Module):
    """The networks and steps of all edited matrices of a model.

    Args:
        model: the model.
    """

    def __init__(self, model: EditableModel) -> None:
        super().__init__()
        self._model = model
        shapes = {name: projection_weight(m).shape for name, m in matrices(model).items()}
        taken = Counter(shapes.values())
        made = {s: GradientEditor(s[1], s[0], taken[s]) for s in taken}
        self.networks = nn.ModuleList(made.values())
        self._places: dict[str, tuple[GradientEditor, int]] = {}  # a matrix's network, its number
        for name, shape in shapes.items():
            number = sum(made[shape] is network for network, _ in self._places.values())
            self._places[name] = (made[shape], number)
        self.steps = nn.Parameter(torch.full((len(shapes),), STEP))
        self.to(model.device)

    def observe(self, factors: Mapping[str, Factors]) -> None:
        """Take tokens into what they are normalised by."""
        for name, pair in factors.items():
            self._places[name][0].observe(*pair)

    def changes(self, factors: Mapping[str, Factors]) -> dict[str, Tensor]:
        """Matrix -> its change (d_out, d_in)."""
        found = {}
        for step, (name, (network, number)) in zip(self.steps, self._places.items(), strict=True):
            u, delta = network(*factors[name], number)
            found[name] = -step * delta.T @ u
        return found

    @torch.no_grad()
    def edit(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """Matrix -> the sum of its changes (d_out, d_in) for all facts."""
        total: dict[str, Tensor] = {}
        for at in range(0, len(rows), BATCH):
            part = self.changes(gradient_factors(self._model, rows[at : at + BATCH]))
            total = {name: total[name] + part[name] if total else part[name] for name in part}
        return total


def matrices(model: EditableModel) -> dict[str, nn.Module]:
    """The projections beside each W_out of the last layers, and itself, by layer and name."""
    home = model.architecture.mlp_output.rpartition(".")[0]
    return {
        f"{layer}.{name}": module
        for layer in range(max(model.n_layers - LAYERS, 0), model.n_layers)
        for name, module in find_module(model.layers[layer], "mlp_output", home).named_children()
        if isinstance(module, (nn.Linear, Conv1D))
    }


@torch.enable_grad()
def gradient_factors(model: EditableModel, rows: Sequence[TokenRow]) -> dict[str, Factors]:
    """Matrix -> u and delta of the tokens where the loss of the facts has a gradient, float32.

    The loss is the sum over the facts of the mean negative log-likelihood of the target's tokens:
    what is found for a fact does not depend on the others.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module, stack: ExitStack) -> None:
        def keep(_: Any, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs[name] = arguments[0].detach()
            outputs[name] = torch.zeros_like(output, requires_grad=True)
            return output + outputs[name]

        stack.callback(module.register_forward_hook(keep).remove)

    with ExitStack() as stack:
        for name, module in matrices(model).items():
            watch(name, module, stack)
        loss = target_loss(model, rows) * len(rows)
    gradients = torch.autograd.grad(loss, list(outputs.values()))
    found = {}
    for name, gradient in zip(outputs, gradients, strict=True):
        u, delta = (
            part.to(model.device, torch.float32).flatten(0, -2) for part in (inputs[name], gradient)
        )
        counts = delta.any(1)
        found[name] = (u[counts], delta[counts])
    return found


@contextmanager
def added(model: EditableModel, changes: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with changed matrices inside the block.

    The change is applied to a matrix's input and added to its output, so that no weight changes,
    and that a gradient reaches the changes. `EditableModel.unedited` has none of it.

    Args:
        model: the model.
        changes: matrix -> its change (d_out, d_in).
    """

    def change(name: str, module: nn.Module, stack: ExitStack) -> None:
        own = on_device_of(changes[name], module)

        def answer(_: Any, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if model.shows_base:
                return output
            return output + (arguments[0].to(own.dtype) @ own.T).to(output.dtype)

        stack.callback(module.register_forward_hook(answer).remove)

    with ExitStack() as stack:
        for name, module in matrices(model).items():
            change(name, module, stack)
        yield


def usable(model: EditableModel, records: Sequence[EditRequest]) -> list[EditRequest]:
    """The records that the editor can be trained on.

    Raises:
        FedEditError: there are fewer than `LEAST`.
    """
    complete = [r for r in records if r.paraphrase_prompts and r.neighborhood_prompts]
    bad = {misfit.request for misfit in misfits(model, complete)}
    found = [record for record in complete if record not in bad]
    if len(found) < LEAST:
        raise FedEditError(
            f"baseline mend: the data has {len(found)} records to train on, and it needs {LEAST}: "
            "such as no node edits, about other subjects, with paraphrase_prompts and "
            "neighborhood_prompts. Edit fewer (num-slots, requests-per-slot), give more data, or "
            "leave mend out"
        )
    return found


def trained(
    model: EditableModel, records: Sequence[EditRequest], at_once: int, seed: int
) -> Editor:
    """An editor that has been trained on edits of records.

    Args:
        model: the model.
        records: see `usable`.
        at_once: how many facts it will edit at once.
        seed: of the network and of the order of the records.

    Raises:
        FedEditError: the loss is not finite.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    editor = Editor(model)
    size = max(1, min(at_once, BATCH))
    per_step = BATCH // size
    needed = STEPS * per_step * size
    orders = [random.permutation(len(records)) for _ in range(-(-needed // len(records)))]
    order = np.concatenate(orders)[:needed].reshape(STEPS, per_step, size)
    network = list(editor.networks.parameters())
    adam = torch.optim.Adam(
        [{"params": network, "lr": RATE}, {"params": [editor.steps], "lr": STEP_RATE}]
    )
    losses: dict[str, list[float]] = defaultdict(list)
    for number, batches in enumerate(order, start=1):
        adam.zero_grad()
        for batch in batches:
            edit, locality = edit_loss(model, editor, [records[i] for i in batch], random)
            ((EDIT * edit + LOCALITY * locality) / per_step).backward()
            losses["edit"].append(float(edit.detach()))
            losses["locality"].append(float(locality.detach()))
        if not torch.nn.utils.clip_grad_norm_(editor.parameters(), CLIP).isfinite():
            raise FedEditError(
                f"baseline mend: the loss is not finite at step {number} of the training; try "
                "dtype = float32"
            )
        adam.step()
        if number % max(1, STEPS // 10) == 0:
            logger.info(
                "baseline mend: step %d of %d, mean loss of edits %.3f, of locality %.4f",
                *(number, STEPS, *(sum(part) / len(part) for part in losses.values())),
            )
            losses.clear()
    return editor.requires_grad_(False)


@torch.enable_grad()
def edit_loss(
    model: EditableModel,
    editor: Editor,
    records: Sequence[EditRequest],
    random: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """The two parts of the loss of one edit of all given records.

    Args:
        model: the model.
        editor: the editor; what it normalises by takes the records' tokens in.
        records: the records.
        random: chooses a paraphrase and a neighborhood prompt of each.

    Returns:
        Mean negative log-likelihood of the targets after prompts and paraphrases in the edited
        model; mean KL(unedited || edited) of the next token after each token of the neighborhood
        prompts. In nats.
    """
    rows = fact_rows(model, records)
    factors = gradient_factors(model, rows)
    editor.observe(factors)
    paraphrases = [str(random.choice(record.paraphrase_prompts)) for record in records]
    around = [str(random.choice(record.neighborhood_prompts)) for record in records]
    asked = [
        *rows,
        *(
            continuation_row(model, text, record.after(text, record.target_new))
            for text, record in zip(paraphrases, records, strict=True)
        ),
    ]
    with torch.no_grad():
        base = _next_tokens(model, around)
    with added(model, editor.changes(factors)):
        edit = target_loss(model, asked)
        now = _next_tokens(model, around)
    locality = nn.functional.kl_div(now, base, reduction="batchmean", log_target=True)
    return edit, locality


def _next_tokens(model: EditableModel, prompts: Sequence[str]) -> Tensor:
    """(n, vocabulary) log-probabilities after each of the n tokens of all prompts."""
    rows = [token_ids(model, prompt) for prompt in prompts]
    ids, mask = (part.to(model.device) for part in pad(rows, model.pad_token_id))
    final = last_states(model, ids, mask)
    return model.log_probabilities(final[mask.bool().to(final.device)])
