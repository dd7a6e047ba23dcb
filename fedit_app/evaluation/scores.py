"""Per-request scores: what the model says after each prompt, and how likely the targets are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedit_app.editing.requests import EditRequest
from fedit_app.editing.tokens import continuation_row, pad
from fedit_app.evaluation.metrics import Metric
from fedit_app.models.editable import EditableModel

_TOKENS_PER_PASS = 1024


@dataclass(frozen=True)
class TargetScore:
    """A target after a prompt.

    Attributes:
        nll: mean negative log-likelihood of the target's tokens, in nats.
        correct: share of the target's tokens that are the argmax after the prompt and the target's
            tokens before them.
    """

    nll: float
    correct: float

    @property
    def decoded(self) -> bool:
        """Whether every target token is the argmax."""
        return self.correct == 1


@dataclass(frozen=True)
class RequestScore:
    """What the metrics say of one request; shares in 0 .. 1.

    With a true target, CounterFact's (Meng et al. 2022), which compare two targets; with no target
    to compare with, zsRE's (Mitchell et al. 2022), which count correct tokens. Neighborhood prompts
    with targets of their own are always scored as zsRE's.

    Attributes:
        efficacy: 1 if the new target is likelier than the true one after the prompt; without a true
            target, the share of its tokens that are correct.
        paraphrase: mean of the same over the paraphrase prompts; None without any.
        neighborhood: share of neighborhood prompts after which the true target is likelier; with
            targets of their own, mean share of their tokens that are correct; None without any, or
            without such a target.
        accuracy: 1 if every token of the new target is the argmax after the prompt.
        metric: "likelihood" (two targets are compared), "tokens" (correct tokens), or "mixed".
    """

    efficacy: float
    paraphrase: float | None
    neighborhood: float | None
    accuracy: float
    metric: Metric


def score_requests(model: EditableModel, requests: Sequence[EditRequest]) -> list[RequestScore]:
    """Score requests on the model as it is now, edited or not.

    Args:
        model: the model.
        requests: n requests.
    """
    unique = list(dict.fromkeys(pair for request in requests for pair in _pairs(request)))
    scores = dict(zip(unique, score_targets(model, unique), strict=True))
    return [_score(request, scores) for request in requests]


def _pairs(request: EditRequest) -> list[tuple[str, str]]:
    """Every (prompt, target) that the score of a request looks at."""
    targets = [request.target_new]
    if request.target_true is not None:
        targets.append(request.target_true)
    asked = [request.text, *request.paraphrase_prompts]
    around = request.neighborhood_prompts
    if request.neighborhood_targets:
        beside = list(zip(around, request.neighborhood_targets, strict=True))
    elif request.target_true is not None:
        beside = list(itertools.product(around, targets))
    else:
        beside = []
    return [*itertools.product(asked, targets), *beside]


def _score(request: EditRequest, scores: dict[tuple[str, str], TargetScore]) -> RequestScore:
    def said(prompt: str) -> float:
        new = scores[prompt, request.target_new]
        if request.target_true is None:
            return new.correct
        return float(new.nll < scores[prompt, request.target_true].nll)

    metric: Metric = "tokens" if request.target_true is None else "likelihood"
    around = request.neighborhood_prompts
    if request.neighborhood_targets:
        metric = "tokens" if metric == "tokens" else "mixed"
        pairs = zip(around, request.neighborhood_targets, strict=True)
        kept = [scores[pair].correct for pair in pairs]
    elif request.target_true is not None:
        kept = [1 - said(prompt) for prompt in around]
    else:
        kept = []
    return RequestScore(
        efficacy=said(request.text),
        paraphrase=_mean([said(prompt) for prompt in request.paraphrase_prompts]),
        neighborhood=_mean(kept),
        accuracy=float(scores[request.text, request.target_new].decoded),
        metric=metric,
    )


def _mean(shares: Sequence[float]) -> float | None:
    return sum(shares) / len(shares) if shares else None


@torch.no_grad()
def score_targets(model: EditableModel, pairs: Sequence[tuple[str, str]]) -> list[TargetScore]:
    """Likelihood of targets after prompts, in batches, with logits at the target tokens only.

    Two targets whose rows differ in nothing but the last token, which predicts nothing, share one
    row: for targets of one token a prompt is run once.

    Args:
        model: the model.
        pairs: (prompt, target).
    """
    if not pairs:
        return []
    rows = [continuation_row(model, prompt, target) for prompt, target in pairs]
    users: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        users.setdefault(row.ids[:-1], []).append(number)
    result: dict[int, TargetScore] = {}
    for batch in _batches(sorted(users, key=lambda ids: (len(ids), ids))):
        ids, mask = (part.to(model.device) for part in pad(batch, model.pad_token_id))
        final = last_states(model, ids, mask)
        wanted = [
            (line, position - 1, rows[number].ids[position], number)
            for line, row_ids in enumerate(batch)
            for number in users[row_ids]
            for position in range(rows[number].target, len(rows[number].ids))
        ]
        line, position, token, number = zip(*wanted, strict=True)
        scores = model.log_probabilities(final[list(line), list(position)])
        token_ids = torch.tensor(token, device=scores.device)
        nll = -scores.gather(1, token_ids[:, None])[:, 0]
        found: dict[int, list[tuple[float, bool]]] = {}
        for of, value, hit in zip(
            number, nll.tolist(), (scores.argmax(-1) == token_ids).tolist(), strict=True
        ):
            found.setdefault(of, []).append((value, hit))
        for of, tokens in found.items():
            result[of] = TargetScore(
                *(sum(values) / len(tokens) for values in zip(*tokens, strict=True))
            )
    return [result[number] for number in range(len(rows))]


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


def _batches(rows: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Cut rows, sorted by length, into batches of a bounded number of padded tokens."""
    batches: list[list[tuple[int, ...]]] = [[]]
    for row in rows:
        if batches[-1] and (len(batches[-1]) + 1) * len(row) > _TOKENS_PER_PASS:
            batches.append([])
        batches[-1].append(row)
    return batches
