"""From requests to token rows: where the subject ends and where the target stands.

Positions are found by character offsets in the text as the model sees it, so it makes no
difference whether the tokenizer adds a BOS token or merges a space into a word.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenRow:
    """One text as tokens.

    Attributes:
        ids: all token ids, special tokens included.
        lookup: index of the subject's last token.
        target: index of the target's first token; len(ids) if the row has no target.
    """

    ids: tuple[int, ...]
    lookup: int
    target: int


def subject_row(
    model: EditableModel, request: EditRequest, template: str, target: str | None = None
) -> TokenRow:
    """Tokenise one request in a context.

    Args:
        model: the model whose tokenizer is used.
        request: the edit request.
        template: context template with `{}` for the whole prompt; of the prompt itself only one
            `{}` is the subject's.
        target: text that follows the prompt after a space, or None.

    Raises:
        FedEditError: the tokenizer makes no token of the subject or of the target.
    """
    before, after = template.split(SLOT, 1)
    prompt_before, prompt_after = request.prompt.split(SLOT, 1)
    subject_end = len(before) + len(prompt_before) + len(request.subject)
    prompt = before + prompt_before + request.subject + prompt_after + after
    text = prompt if target is None else f"{prompt} {target}"
    encoded = model.tokenizer(text, return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    lookup = [i for i, (start, end) in enumerate(spans) if start < subject_end and end > start]
    if not lookup or spans[lookup[-1]][1] <= len(before) + len(prompt_before):
        raise _no_token("subject", request)
    goal = [i for i, (_, end) in enumerate(spans) if end > len(prompt)] if target else []
    if target is not None and not goal:
        raise _no_token("target", request)
    return TokenRow(tuple(encoded["input_ids"]), lookup[-1], goal[0] if goal else len(spans))


def _no_token(part: str, request: EditRequest) -> FedEditError:
    """The error may travel to the server; which request it is stands in the node's own log."""
    logger.error("request %s: the tokenizer makes no token of its %s", request.id, part)
    return FedEditError(f"the tokenizer makes no token of a request's {part}; see the node's log")


def continuation_row(model: EditableModel, prompt: str, target: str) -> TokenRow:
    """Tokenise a complete prompt with a target behind it; `lookup` is the last prompt token.

    Args:
        model: the model whose tokenizer is used.
        prompt: text before the target.
        target: text that follows after a space.

    Raises:
        FedEditError: the tokenizer makes no token of the target.
    """
    encoded = model.tokenizer(f"{prompt} {target}", return_offsets_mapping=True)
    goal = [i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > len(prompt)]
    if not goal:
        raise FedEditError(f"the tokenizer makes no token of a target of {len(target)} characters")
    return TokenRow(tuple(encoded["input_ids"]), goal[0] - 1, goal[0])


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: str = "right") -> tuple[Tensor, Tensor]:
    """Stack token rows of different lengths.

    Args:
        rows: token ids per row; rows may be empty.
        pad_id: fills the gaps.
        side: "left" or "right", where the gaps are.

    Returns:
        ids and attention mask, each (rows, longest) int64.
    """
    width = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        if row:
            part = slice(width - len(row), width) if side == "left" else slice(0, len(row))
            ids[number, part] = torch.tensor(row)
            mask[number, part] = 1
    return ids, mask
