"""What a model writes when it is left to itself: does it say the target, is it still fluent?

Teacher forcing shows the model the right beginning of a target; here it sees the prompt only.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch

from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import continuation_row, pad

_ROWS_PER_PASS = 64
_FREE_TOKENS = 100
_LIKELIEST = 5
_MOST_TEXTS = 16
_SEED = 0
_WORD = re.compile(r"\w+|[^\w\s]")


def written_metrics(
    model: EditableModel, scopes: Mapping[str, Sequence[EditRequest]]
) -> dict[str, dict[str, float | None]]:
    """What the model, as it is now, writes about several groups of requests.

    Args:
        model: the model, edited or not.
        scopes: name -> requests; what several have in common is written once.

    Returns:
        name -> exact_match, the share of requests whose target the model says (see
        `exact_matches`), and generation_entropy, the mean `n_gram_entropy` in bits of what it
        writes after the first generation prompt of at most 16 requests, spread evenly over the
        group; None where there is nothing to write about.
    """
    requests = list(dict.fromkeys(itertools.chain.from_iterable(scopes.values())))
    exact = dict(zip(requests, exact_matches(model, requests), strict=True))
    prompts = {name: _spread(_free_prompts(group)) for name, group in scopes.items()}
    asked = sorted(set(itertools.chain.from_iterable(prompts.values())))
    entropies = dict(zip(asked, map(n_gram_entropy, free_texts(model, asked)), strict=True))
    return {
        name: {
            "exact_match": _mean([exact[request] for request in group]),
            "generation_entropy": _mean([entropies[prompt] for prompt in prompts[name]]),
        }
        for name, group in scopes.items()
    }


def exact_matches(model: EditableModel, requests: Sequence[EditRequest]) -> list[bool]:
    """Whether the model says the new target of each request, and the word then ends.

    Greedily it writes as many tokens as the target has, and one more: to say "Parisian" is not to
    say "Paris".

    Args:
        model: the model, edited or not.
        requests: n requests.
    """
    prompts = [request.text for request in requests]
    rows = [continuation_row(model, r.text, r.target_new) for r in requests]
    lengths = [len(row.ids) - row.target + 1 for row in rows]
    texts = continuations(model, prompts, lengths, do_sample=False)
    pairs = zip(texts, requests, strict=True)
    return [_says(text, request.target_new) for text, request in pairs]


def _says(text: str, target: str) -> bool:
    """Whether a text begins with a target, and with no longer word of which it is a part."""
    text = text.lstrip()
    following = text[len(target) : len(target) + 1]
    # Letters without upper and lower case (Chinese, Arabic) do not tell where a word ends.
    goes_on = following.isdigit() or following.lower() != following.upper()
    return text.startswith(target) and not (goes_on and target[-1].isalnum())


def free_texts(model: EditableModel, prompts: Sequence[str]) -> list[str]:
    """What the model writes after prompts: 100 tokens, each drawn from the 5 likeliest, as in ROME.

    Args:
        model: the model, edited or not.
        prompts: n prompts; the same ones on the same device give the same texts.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_SEED)
        return continuations(
            model,
            prompts,
            [_FREE_TOKENS] * len(prompts),
            do_sample=True,
            top_k=_LIKELIEST,
            top_p=1.0,
            temperature=1.0,
            min_new_tokens=_FREE_TOKENS,
        )


@torch.no_grad()
def continuations(
    model: EditableModel, prompts: Sequence[str], lengths: Sequence[int], **how: bool | float
) -> list[str]:
    """Continue prompts in batches with a key/value cache.

    Args:
        model: the model, edited or not.
        prompts: n prompts.
        lengths: how many tokens to write at most after each of them.
        how: what `generate` of transformers takes; `do_sample` at least.
    """
    rows = [tuple(model.tokenizer(prompt)["input_ids"]) for prompt in prompts]
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
            # Not those of the checkpoint's generation_config.json, which are for chatting.
            num_beams=1,
            repetition_penalty=1.0,
            **how,
        )
        for i, row in zip(chosen, written[:, ids.shape[1] :].tolist(), strict=True):
            texts[i] = str(model.tokenizer.decode(row[: lengths[i]], skip_special_tokens=True))
    return [texts[i] for i in range(len(rows))]


def n_gram_entropy(text: str) -> float:
    """How varied a text is (GE of ROME, Meng et al., arXiv 2202.05262; Zhang et al. 2018).

    With f_n the relative frequencies of the runs of n words (punctuation marks are words):

        GE = (2/3 H_2 + 4/3 H_3) / 2,   H_n = - sum f_n log2 f_n

    Args:
        text: the text; one of less than two words has entropy 0.

    Returns:
        Bits; the model that repeats itself has few.
    """
    words = _WORD.findall(text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    """H_n, the entropy in bits of the runs of n words."""
    counts = Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
    return -sum(
        count / counts.total() * math.log2(count / counts.total()) for count in counts.values()
    )


def _free_prompts(requests: Iterable[EditRequest]) -> list[str]:
    return [request.generation_prompts[0] for request in requests if request.generation_prompts]


def _spread(prompts: Sequence[str]) -> list[str]:
    """At most 16 of some prompts, evenly spread over them."""
    count = min(len(prompts), _MOST_TEXTS)
    return [prompts[number * len(prompts) // count] for number in range(count)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
