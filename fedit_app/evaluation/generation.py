"""Free generation: whether the model generates the target, and whether its text is fluent.

With teacher forcing, the model sees the beginning of the target; here it sees the prompt only.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch

from fedit_app.evaluation.metrics import mean
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import continuation_row, pad, token_ids

_ROWS_PER_PASS = 64
FREE_TOKENS = 100
_LIKELIEST = 5
_MOST_TEXTS = 16
_SEED = 0
_WORD = re.compile(r"\w+|[^\w\s]")


def written_metrics(
    model: EditableModel, scopes: Mapping[str, Sequence[EditRequest]]
) -> dict[str, dict[str, float | None]]:
    """Metrics of the text that the model generates about several groups of requests.

    Args:
        model: the model, edited or not.
        scopes: name -> requests; a request of several groups is processed once.

    Returns:
        name -> exact_match, the share of requests whose target the model generates (see
        `exact_matches`), and generation_entropy, the mean `n_gram_entropy` in bits of the text
        after the first generation prompt of at most 16 requests, evenly spaced in the group; None
        without requests or prompts.
    """
    requests = list(dict.fromkeys(itertools.chain.from_iterable(scopes.values())))
    exact = dict(zip(requests, exact_matches(model, requests), strict=True))
    prompts = {name: _spread(_free_prompts(group)) for name, group in scopes.items()}
    asked = sorted(set(itertools.chain.from_iterable(prompts.values())))
    entropies = dict(zip(asked, map(n_gram_entropy, free_texts(model, asked)), strict=True))
    return {
        name: {
            "exact_match": mean([exact[request] for request in group]),
            "generation_entropy": mean([entropies[prompt] for prompt in prompts[name]]),
        }
        for name, group in scopes.items()
    }


def exact_matches(model: EditableModel, requests: Sequence[EditRequest]) -> list[bool]:
    """Whether the model generates the new target of each request, as complete words.

    Greedy decoding of one token more than the target has: "Parisian" is not a match of "Paris".
    """
    wanted = [request.asked_new for request in requests]
    rows = [continuation_row(model, prompt, text) for prompt, text in wanted]
    lengths = [len(row.ids) - row.target + 1 for row in rows]
    prompts = [prompt for prompt, _ in wanted]
    texts = continuations(model, prompts, lengths, do_sample=False)
    return [_says(text, said) for text, (_, said) in zip(texts, wanted, strict=True)]


def _says(text: str, target: str) -> bool:
    """Whether a text begins with a target, which is not a part of a longer word."""
    text, target = text.lstrip(), target.lstrip()
    following = text[len(target) : len(target) + 1]
    # Letters without case (Chinese, Arabic) do not show where a word ends.
    goes_on = following.isdigit() or following.lower() != following.upper()
    return text.startswith(target) and not (goes_on and target[-1].isalnum())


def free_texts(model: EditableModel, prompts: Sequence[str]) -> list[str]:
    """Text after prompts: 100 tokens, each sampled from the 5 most likely, as in ROME.

    Args:
        model: the model, edited or not.
        prompts: n prompts; the same prompts on the same device give the same texts.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_SEED)
        return continuations(
            model,
            prompts,
            [FREE_TOKENS] * len(prompts),
            do_sample=True,
            top_k=_LIKELIEST,
            top_p=1.0,
            temperature=1.0,
            min_new_tokens=FREE_TOKENS,
        )


@torch.no_grad()
def continuations(
    model: EditableModel, prompts: Sequence[str], lengths: Sequence[int], **how: bool | float
) -> list[str]:
    """Continue prompts in batches with a key/value cache.

    Args:
        model: the model, edited or not.
        prompts: n prompts.
        lengths: largest number of new tokens for each prompt.
        how: arguments of `generate` of transformers; at least `do_sample`.
    """
    rows = [tuple(token_ids(model, prompt)) for prompt in prompts]
    order = sorted(range(len(rows)), key=lambda i: (lengths[i], len(rows[i]), rows[i]))
    texts: dict[int, str] = {}
    for begin in range(0, len(order), _ROWS_PER_PASS):
        chosen = order[begin : begin + _ROWS_PER_PASS]
        ids, mask = pad([rows[i] for i in chosen], model.pad_token_id, side="left")
        written = model.model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max(lengths[i] for i in chosen),
            pad_token_id=model.pad_token_id,
            # Overrides the checkpoint's generation_config.json, which is meant for chat.
            num_beams=1,
            repetition_penalty=1.0,
            **how,
        )
        for i, row in zip(chosen, written[:, ids.shape[1] :].tolist(), strict=True):
            texts[i] = str(model.tokenizer.decode(row[: lengths[i]], skip_special_tokens=True))
    return [texts[i] for i in range(len(rows))]


def n_gram_entropy(text: str) -> float:
    """The diversity of a text (GE of ROME, Meng et al., arXiv 2202.05262; Zhang et al. 2018).

    With f_n the relative frequencies of the n-grams of words (punctuation marks are words):

        GE = (2/3 H_2 + 4/3 H_3) / 2,   H_n = - sum f_n log2 f_n

    Args:
        text: the text; a text of fewer than two words has entropy 0.

    Returns:
        Bits; a repetitive text has a low entropy.
    """
    words = _WORD.findall(text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    """H_n, the entropy in bits of the n-grams."""
    counts = Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
    return -sum(
        count / counts.total() * math.log2(count / counts.total()) for count in counts.values()
    )


def _free_prompts(requests: Iterable[EditRequest]) -> list[str]:
    return [request.generation_prompts[0] for request in requests if request.generation_prompts]


def _spread(prompts: Sequence[str]) -> list[str]:
    """At most 16 of the prompts, evenly spaced."""
    count = min(len(prompts), _MOST_TEXTS)
    return [prompts[number * len(prompts) // count] for number in range(count)]
