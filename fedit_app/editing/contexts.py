"""Contexts: what a prompt is put into, so that an edit holds in more than one place.

A template is a text with `{}` for the prompt, or a turn of a chat, in which the user asks for the
fact and the model answers with the target alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from fedit_app.facts.request import SLOT
from fedit_app.models.chat import ChatForm
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import pad, token_ids

Template = str | ChatForm
"""A context: a text with `{}` for the prompt, or a turn of a chat."""

_START_WORDS = ("The", "Therefore", "Because", "I", "You")
_PREFIX_TOKENS = 10
_TOP_K = 5


@torch.no_grad()
def sample_contexts(model: EditableModel, count: int, seed: int) -> tuple[str, ...]:
    """The bare template and `count` sampled ones, as in MEMIT: about ten tokens, then the prompt.

    Drawn with a generator on the CPU from probabilities in float64, so that nodes with different
    devices draw the same.

    Args:
        model: the unedited model, which writes the prefixes.
        count: how many prefixes; the start words repeat after five.
        seed: seed of the draw.

    Returns:
        "{}" first, then "PREFIX. {}".
    """
    if count == 0:
        return (SLOT,)
    generator = torch.Generator().manual_seed(seed)
    words = [_START_WORDS[number % len(_START_WORDS)] for number in range(count)]
    rows = [token_ids(model, word) for word in words]
    for _ in range(_PREFIX_TOKENS):
        ids, mask = (part.to(model.device) for part in pad(rows, model.pad_token_id, side="left"))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model.model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
        best = output.logits[:, -1].double().cpu().topk(_TOP_K)
        drawn = torch.multinomial(best.values.softmax(1), 1, generator=generator)
        rows = [
            [*row, int(token)]
            for row, token in zip(rows, best.indices.gather(1, drawn), strict=True)
        ]
    texts = model.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return (SLOT, *(f"{_plain(text)}. {SLOT}" for text in texts))


def _plain(text: str) -> str:
    """One line without braces, which would be taken for placeholders."""
    return " ".join(text.replace("{", " ").replace("}", " ").split())


def context_weights(texts: Sequence[str]) -> Tensor:
    """Weights of the templates that are texts in a key: half for "{}", half for the prefixes.

    MEMIT averages within each kind of context first and over the kinds then.

    Args:
        texts: the bare one first.

    Returns:
        (texts,) float64, sums to 1.
    """
    kinds = [min(n, 1) for n, _ in enumerate(texts)]
    of_kind = torch.tensor(kinds).bincount(minlength=2)[kinds]
    return 1 / (of_kind.double() * len(set(kinds)))


def contexts_digest(templates: Sequence[Template]) -> str:
    """Hash of the templates, part of an MKV's fingerprint; of chats, that they have own pairs."""
    plain = [
        one if isinstance(one, str) else ("pair", *dataclasses.astuple(one)) for one in templates
    ]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]
