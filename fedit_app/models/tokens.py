"""From requests to token rows: where the subject ends and where the target stands.

Positions are found by character offsets in the text as the model sees it, so it makes no
difference whether the tokenizer adds a BOS token or merges a space into a word.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit_app.facts.joint import Continuation
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.models.chat import ChatForm, what_is_said
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

Encoded = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and the characters of each token: where they begin, and where they end."""

_ANCHOR = "\n"


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


def token_ids(model: EditableModel, text: str, in_chat: bool = False) -> list[int]:
    """The tokens of a text that is to be continued.

    Without what a tokenizer appends, such as an end of sequence: the model would not continue the
    text after it.

    Args:
        model: the model whose tokenizer is used.
        text: the text.
        in_chat: whether it is what a chat template has made, which holds all special tokens.
    """
    return _encode(model, text, in_chat)[0]


def subject_row(
    model: EditableModel, request: EditRequest, template: str, target: str | None = None
) -> TokenRow:
    """Tokenise one request in a context.

    Args:
        model: the model whose tokenizer is used.
        request: the edit request.
        template: context template with `{}` for the whole prompt; of the prompt itself only one
            `{}` is the subject's.
        target: text that follows the prompt, joined as `EditRequest.after` does; or None.

    Raises:
        FedEditError: the tokenizer makes no token of the subject or of the target, or one of both.
    """
    before, after = template.split(SLOT, 1)
    prompt_before, prompt_after = request.prompt.split(SLOT, 1)
    start = len(before) + len(prompt_before)
    prompt = before + prompt_before + request.subject + prompt_after + after
    behind = None if target is None else request.after(prompt, target)
    return _row(model, request, prompt, start, behind)


def chat_row(
    model: EditableModel,
    request: EditRequest,
    form: ChatForm,
    target: str | None = None,
    asking: bool = False,
) -> TokenRow:
    """Tokenise one request as what the user of a chat model says.

    Args:
        model: the model whose tokenizer is used.
        request: the edit request.
        form: a turn of a chat with the model.
        target: the whole answer, after which it ends; or None.
        asking: whether the user asks the request's question, see `what_is_said`.

    Raises:
        FedEditError: see `subject_row`.
    """
    before, after = what_is_said(request, asking).split(SLOT, 1)
    prompt = form.asked(before + request.subject + after)
    behind = None if target is None else form.answer(target)
    return _row(model, request, prompt, len(form.before) + len(before), behind, in_chat=True)


def _row(
    model: EditableModel,
    request: EditRequest,
    prompt: str,
    start: int,
    target: Continuation | None,
    in_chat: bool = False,
) -> TokenRow:
    """The tokens of a prompt, in which the subject begins at a character, and of what follows it.

    Raises:
        FedEditError: see `subject_row`.
    """
    subject_end = start + len(request.subject)
    if target is None:
        ids, spans = _encode(model, prompt, in_chat)
    else:
        ids, spans = _encode_joined(model, prompt, target, in_chat)
    lookup = [i for i, (begin, end) in enumerate(spans) if begin < subject_end and end > begin]
    if not lookup or spans[lookup[-1]][1] <= start:
        raise _no_token("subject", request)
    goal = [i for i, (_, end) in enumerate(spans) if end > len(prompt)] if target else []
    if target is not None and (not goal or goal[0] <= lookup[-1]):
        raise _no_token("target", request)
    return TokenRow(tuple(ids), lookup[-1], goal[0] if goal else len(spans))


def _no_token(part: str, request: EditRequest) -> FedEditError:
    """The error may travel to the server; which request it is stands in the node's own log."""
    logger.error("request %s: the tokenizer makes no token of its %s", request.id, part)
    return FedEditError(f"the tokenizer makes no token of a request's {part}; see the node's log")


def continuation_row(model: EditableModel, prompt: str, continuation: Continuation) -> TokenRow:
    """Tokenise a complete prompt with a target behind it; `lookup` is the last prompt token.

    Args:
        model: the model whose tokenizer is used.
        prompt: text before the target.
        continuation: the target with what joins it to the prompt, see `EditRequest.after`.

    Raises:
        FedEditError: the tokenizer makes no token of the target.
    """
    ids, spans = _encode_joined(model, prompt, continuation)
    goal = [i for i, (_, end) in enumerate(spans) if end > len(prompt)]
    if not goal:
        raise FedEditError(
            f"the tokenizer makes no token of a target of {len(continuation)} characters"
        )
    return TokenRow(tuple(ids), goal[0] - 1, goal[0])


def _encode(model: EditableModel, text: str, in_chat: bool = False) -> Encoded:
    """The tokens of a text and their characters, without special tokens at the end.

    The text of a chat has its special tokens itself, those at its end included.
    """
    encoded = model.tokenizer(
        text,
        add_special_tokens=not in_chat,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    end = len(encoded["input_ids"])
    while not in_chat and end > 0 and encoded["special_tokens_mask"][end - 1]:
        end -= 1
    if not end and encoded["input_ids"][:1] == [model.tokenizer.bos_token_id]:
        end = 1  # an empty text
    return encoded["input_ids"][:end], encoded["offset_mapping"][:end]


def _encode_joined(
    model: EditableModel, prompt: str, continuation: str, in_chat: bool = False
) -> Encoded:
    """The tokens of both texts in turn, and their characters in the whole.

    Where a token would span both, as may be without a space between them, the prompt has the tokens
    that it has alone: those that the model sees when it is asked.
    """
    ids, spans = _encode(model, prompt + continuation, in_chat)
    if not any(start < len(prompt) < end for start, end in spans):
        return ids, spans
    # A tokenizer may put a mark of its own before the first character, hence not alone.
    behind, places = _encode(model, _ANCHOR + continuation, in_chat)
    first = next((i for i, (start, _) in enumerate(places) if start >= len(_ANCHOR)), len(places))
    if any(start < len(_ANCHOR) < end for start, end in places):
        return ids, spans
    ids, spans = _encode(model, prompt, in_chat)
    shift = len(prompt) - len(_ANCHOR)
    moved = [(start + shift, end + shift) for start, end in places[first:]]
    return ids + behind[first:], spans + moved


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


def alike(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Rows of similar length together, in groups of limited size.

    Args:
        lengths: of the rows, in tokens.
        tokens: how many a group has at most once it is padded, unless one row has more.

    Yields:
        The numbers of the rows of a group, the shortest rows first.
    """
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and lengths[row] * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
