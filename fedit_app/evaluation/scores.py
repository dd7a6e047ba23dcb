"""Scores of requests: the likelihood of the targets after each prompt, and what edits spoil."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from fedit_app.evaluation.metrics import RequestScore, mean
from fedit_app.facts.joint import Continuation, joint
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import continuation_row, pad, token_ids
from fedit_app.protocol.metrics import Metric

_TOKENS_PER_PASS = 1024
_REPEATING = (
    f"This page is about {SLOT}. Title of the page:",
    f"What was the name? It was {SLOT}. I repeat:",
    f"Copy the line.\n{SLOT}\n{SLOT}\n",
)


@dataclass(frozen=True)
class TargetScore:
    """The likelihood of a target after a prompt.

    Attributes:
        nll: mean negative log-likelihood of the target's tokens, in nats.
        correct: share of the target's tokens that are the argmax after the prompt and the preceding
            tokens of the target.
    """

    nll: float
    correct: float

    @property
    def probability(self) -> float:
        """exp(-nll): the geometric mean of the probabilities of the target's tokens."""
        return math.exp(-self.nll)

    @property
    def decoded(self) -> bool:
        """Whether every target token is the argmax."""
        return self.correct == 1


Before = Callable[[str], str]
"""What is put before a complete prompt: a text to be read first, or nothing."""


def nothing(_: str) -> str:
    """Nothing before any prompt."""
    return ""


def score_requests(
    model: EditableModel, requests: Sequence[EditRequest], before: Before = nothing
) -> list[RequestScore]:
    """Score requests on the model in its present state, edited or not.

    The subject prompts and those that ask to repeat the subject are asked of the unedited model as
    well, with nothing before them.

    Args:
        model: the model.
        requests: the requests.
        before: what the model in its present state reads before each prompt.
    """
    unique = list(dict.fromkeys(pair for request in requests for pair in _pairs(request)))
    read = [(before(prompt) + prompt, text) for prompt, text in unique]
    scores = dict(zip(unique, score_targets(model, read), strict=True))
    prompts = list(
        dict.fromkeys(itertools.chain.from_iterable(r.subject_prompts for r in requests))
    )
    stays = dict(zip(prompts, unchanged(model, prompts, before), strict=True))
    subjects = list(dict.fromkeys(request.subject for request in requests))
    given = dict(zip(subjects, still_given(model, subjects, before), strict=True))
    return [
        dataclasses.replace(
            _score(request, scores),
            other_relations=mean([stays[prompt] for prompt in request.subject_prompts]),
            subject_fidelity=given[request.subject],
        )
        for request in requests
    ]


def _pairs(request: EditRequest) -> list[tuple[str, Continuation]]:
    """All pairs of a prompt and what follows it that the score of a request needs."""
    targets = [request.target_new]
    if request.target_true is not None:
        targets.append(request.target_true)
    around = request.neighborhood_prompts
    if request.neighborhood_targets:
        beside = list(zip(around, request.neighborhood_targets, strict=True))
    elif request.target_true is not None:
        beside = list(itertools.product(around, targets))
    else:
        beside = []
    implied = zip(request.portability_prompts, request.portability_targets, strict=True)
    wanted = [*itertools.product(request.asked, targets), *beside, *implied]
    if request.reversed_prompt is not None:
        wanted += [(request.turned(target), request.subject) for target in targets]
    return [(prompt, request.after(prompt, target)) for prompt, target in wanted]


def _score(
    request: EditRequest, scores: dict[tuple[str, Continuation], TargetScore]
) -> RequestScore:
    """What the likelihoods of the targets say."""
    compared = request.target_true is not None
    truth = request.target_true or ""
    asked, around = request.paraphrase_prompts, request.neighborhood_prompts

    def of(prompt: str, target: str) -> TargetScore:
        return scores[prompt, request.after(prompt, target)]

    def new(prompt: str) -> TargetScore:
        return of(prompt, request.target_new)

    def said(prompt: str) -> float:
        if not compared:
            return new(prompt).correct
        return float(new(prompt).nll < of(prompt, truth).nll)

    def lead(prompt: str) -> float:
        return new(prompt).probability - of(prompt, truth).probability

    def turned() -> float:
        new_way = of(request.turned(request.target_new), request.subject)
        if not compared:
            return new_way.correct
        return float(new_way.nll < of(request.turned(truth), request.subject).nll)

    metric: Metric = "likelihood" if compared else "tokens"
    implied = zip(request.portability_prompts, request.portability_targets, strict=True)
    kept, right, behind = [], [], []
    if request.neighborhood_targets:
        metric = "mixed" if compared else "tokens"
        right = [of(*pair) for pair in zip(around, request.neighborhood_targets, strict=True)]
        kept = [score.correct for score in right]
    elif compared:
        right = [of(prompt, truth) for prompt in around]
        kept = [1 - said(prompt) for prompt in around]
        behind = [-lead(prompt) for prompt in around]
    return RequestScore(
        efficacy=said(request.text),
        paraphrase=mean([said(prompt) for prompt in asked]),
        neighborhood=mean(kept),
        accuracy=float(new(request.text).decoded),
        metric=metric,
        paraphrase_accuracy=mean([new(prompt).decoded for prompt in asked]),
        neighborhood_accuracy=mean([score.decoded for score in right]),
        magnitude=lead(request.text) if compared else None,
        paraphrase_magnitude=mean([lead(prompt) for prompt in asked]) if compared else None,
        neighborhood_magnitude=mean(behind),
        portability=mean([of(*pair).correct for pair in implied]),
        reversal=None if request.reversed_prompt is None else turned(),
    )


@torch.no_grad()
def score_targets(
    model: EditableModel, pairs: Sequence[tuple[str, Continuation]]
) -> list[TargetScore]:
    """The likelihood of targets after prompts, in batches, with logits at the target tokens only.

    Targets whose rows differ in the last token only, which predicts nothing, share one row: with
    targets of one token, a prompt is run once.

    Args:
        model: the model.
        pairs: a prompt and what follows it, see `EditRequest.after`.
    """
    if not pairs:
        return []
    rows = [continuation_row(model, prompt, text) for prompt, text in pairs]
    users: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        users.setdefault(row.ids[:-1], []).append(number)
    result: dict[int, TargetScore] = {}
    for batch in batches(sorted(users, key=lambda ids: (len(ids), ids)), _TOKENS_PER_PASS):
        ids, mask = (part.to(model.device) for part in pad(batch, model.pad_token_id))
        final = last_states(model, ids, mask)
        wanted = [
            (line, position - 1, rows[number].ids[position], number)
            for line, row_ids in enumerate(batch)
            for number in users[row_ids]
            for position in range(rows[number].target, len(rows[number].ids))
        ]
        lines, positions, tokens, numbers = zip(*wanted, strict=True)
        scores = model.log_probabilities(final[list(lines), list(positions)])
        token_ids = torch.tensor(tokens, device=scores.device)
        nll = -scores.gather(1, token_ids[:, None])[:, 0]
        found: dict[int, list[tuple[float, bool]]] = {}
        for of, value, hit in zip(
            numbers, nll.tolist(), (scores.argmax(-1) == token_ids).tolist(), strict=True
        ):
            found.setdefault(of, []).append((value, hit))
        for of, outcomes in found.items():
            result[of] = TargetScore(
                nll=sum(value for value, _ in outcomes) / len(outcomes),
                correct=sum(hit for _, hit in outcomes) / len(outcomes),
            )
    return [result[number] for number in range(len(rows))]


def unchanged(model: EditableModel, prompts: Sequence[str], before: Before = nothing) -> list[bool]:
    """Whether the most likely next token after each prompt is still that of the unedited model.

    Both models process the same batches, so every prompt is unchanged without an edit.

    Args:
        model: the model, edited or not.
        prompts: complete prompts.
        before: see `score_requests`.
    """
    if not prompts:
        return []
    now = _next_tokens(model, [before(prompt) + prompt for prompt in prompts])
    with model.unedited():
        base = _next_tokens(model, prompts)
    return [one == other for one, other in zip(now, base, strict=True)]


def repetitions(subject: str) -> list[tuple[str, Continuation]]:
    """The prompts that ask to repeat a subject, each with the subject as its answer."""
    prompts = [template.replace(SLOT, subject) for template in _REPEATING]
    return [(prompt, Continuation(joint(prompt, subject) + subject)) for prompt in prompts]


def still_given(
    model: EditableModel, subjects: Sequence[str], before: Before = nothing
) -> list[float | None]:
    """Subject fidelity: how often the model repeats a name where the unedited model does.

    A name is given if each of its tokens is the argmax after the prompt and the ones before, which
    is what greedy decoding would write: one pass without generation finds the same. Both models
    process the same batches, so every subject has 1 without an edit.

    Args:
        model: the model, edited or not.
        subjects: n names.
        before: see `score_requests`.

    Returns:
        Per subject the share of the prompts to which the model gives it, of those to which the
        unedited model does; None if the unedited model gives it to none.
    """
    pairs = [pair for subject in subjects for pair in repetitions(subject)]
    now = score_targets(model, [(before(prompt) + prompt, text) for prompt, text in pairs])
    with model.unedited():
        base = score_targets(model, pairs)
    outcomes = list(zip(now, base, strict=True))
    size = len(_REPEATING)
    return [
        mean([after.decoded for after, plain in outcomes[at : at + size] if plain.decoded])
        for at in range(0, len(outcomes), size)
    ]


@torch.no_grad()
def _next_tokens(model: EditableModel, prompts: Sequence[str]) -> list[int]:
    """The id of the most likely next token after each prompt."""
    rows = [tuple(token_ids(model, prompt)) for prompt in prompts]
    found: dict[tuple[int, ...], int] = {}
    for batch in batches(sorted(set(rows), key=lambda ids: (len(ids), ids)), _TOKENS_PER_PASS):
        ids, mask = (part.to(model.device) for part in pad(batch, model.pad_token_id))
        final = last_states(model, ids, mask)
        ends = final[list(range(len(batch))), [len(row) - 1 for row in batch]]
        found |= zip(batch, model.logits(ends).argmax(-1).tolist(), strict=True)
    return [found[row] for row in rows]


def last_states(model: EditableModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(rows, tokens, d_model) output of the last layer, before the final norm."""
    states: list[torch.Tensor] = []
    handle = model.layers[-1].register_forward_hook(
        lambda _, __, output: states.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        model.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return states[0]


def batches(rows: Sequence[tuple[int, ...]], most_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Split rows into batches of at most `most_tokens` padded tokens, or of one row."""
    batch: list[tuple[int, ...]] = []
    for row in rows:
        longest = max(map(len, (*batch, row)))
        if batch and longest * (len(batch) + 1) > most_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
