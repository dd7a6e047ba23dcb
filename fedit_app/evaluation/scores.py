"""Per-request scores: how likely the new and the true target are after each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedit_app.editing.requests import EditRequest
from fedit_app.editing.tokens import continuation_row, pad
from fedit_app.models.editable import EditableModel

_TOKENS_PER_PASS = 1024


@dataclass(frozen=True)
class TargetScore:
    """A target after a prompt.

    Attributes:
        nll: mean negative log-likelihood of the target's tokens, in nats.
        decoded: whether every target token is the argmax.
    """

    nll: float
    decoded: bool


@dataclass(frozen=True)
class RequestScore:
    """What CounterFact's metrics (Meng et al. 2022) say of one request; shares in 0 .. 1.

    Attributes:
        efficacy: 1 if the new target is likelier than the true one after the prompt.
        paraphrase: share of paraphrase prompts of which the same holds; None without any.
        neighborhood: share of neighborhood prompts after which the true target is likelier; None
            without any, or without a true target.
        accuracy: 1 if every token of the new target is the argmax after the prompt.

    A request without a true target has nothing to compare with: there, efficacy and paraphrase
    ask that the new target is decoded.
    """

    efficacy: float
    paraphrase: float | None
    neighborhood: float | None
    accuracy: float


def score_requests(model: EditableModel, requests: Sequence[EditRequest]) -> list[RequestScore]:
    """Score requests on the model as it is now, edited or not.

    Args:
        model: the model.
        requests: n requests.
    """
    pairs: list[tuple[str, str]] = []
    for request in requests:
        for prompt in (request.text, *request.paraphrase_prompts, *request.neighborhood_prompts):
            pairs += [(prompt, target) for target in _targets(request)]
    unique = list(dict.fromkeys(pairs))
    scores = dict(zip(unique, score_targets(model, unique), strict=True))
    return [_score(request, scores) for request in requests]


def _targets(request: EditRequest) -> tuple[str, ...]:
    if request.target_true is None:
        return (request.target_new,)
    return (request.target_new, request.target_true)


def _score(request: EditRequest, scores: dict[tuple[str, str], TargetScore]) -> RequestScore:
    def succeeds(prompt: str) -> bool:
        new = scores[prompt, request.target_new]
        if request.target_true is None:
            return new.decoded
        return new.nll < scores[prompt, request.target_true].nll

    def kept(prompt: str) -> bool:
        return not succeeds(prompt)

    comparable = request.target_true is not None
    return RequestScore(
        efficacy=float(succeeds(request.text)),
        paraphrase=_share(succeeds, request.paraphrase_prompts),
        neighborhood=_share(kept, request.neighborhood_prompts) if comparable else None,
        accuracy=float(scores[request.text, request.target_new].decoded),
    )


def _share(holds, prompts: Sequence[str]) -> float | None:
    return sum(map(holds, prompts)) / len(prompts) if prompts else None


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
                sum(value for value, _ in tokens) / len(tokens), all(hit for _, hit in tokens)
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
