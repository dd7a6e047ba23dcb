"""What a model says to a prompt, alone and before and after its edits."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedit_app.facts.texts import clean
from fedit_app.models.chat import chat_text
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import pad, token_ids
from fedit_app.support.errors import FedEditError

_NEW_TOKENS = 12
_REPLY_TOKENS = 64
_TOP = 5
_WIDTH = 38


@dataclass(frozen=True)
class Answer:
    """What a model says to a prompt. `print` shows it.

    Attributes:
        text: the greedy continuation.
        top: the likeliest next tokens with their probabilities.
    """

    text: str
    top: list[tuple[str, float]]

    def lines(self) -> list[str]:
        """The text in one line, then the likeliest tokens, a line each."""
        return [_one_line(self.text), "", *self._top_lines()]

    def _top_lines(self) -> list[str]:
        return [f"{probability:6.1%} {token!r}" for token, probability in self.top]

    def __str__(self) -> str:
        return "\n".join(self.lines())


@dataclass(frozen=True)
class Comparison:
    """What a model says to a prompt before and after its edits. `print` shows both side by side.

    Attributes:
        prompt: the prompt.
        before: the answer of the unedited model.
        after: the answer of the edited model.
    """

    prompt: str
    before: Answer
    after: Answer

    def __str__(self) -> str:
        tops = zip(*(answer._top_lines() for answer in (self.before, self.after)), strict=True)
        lines = [f"{self.prompt} ...", *self.texts(), ""]
        return "\n".join(lines + [f"  {first:{_WIDTH}}  {second}" for first, second in tops])

    def texts(self) -> list[str]:
        """Both texts side by side, under what they are."""
        answers = (self.before, self.after)
        left, right = (textwrap.wrap(_one_line(answer.text), _WIDTH) for answer in answers)
        lines = [f"  {'before':{_WIDTH}}  after"]
        for first, second in itertools.zip_longest(left, right, fillvalue=""):
            lines.append(f"  {first:{_WIDTH}}  {second}".rstrip())
        return lines


def answer(model: EditableModel, prompt: str, chat: bool = False) -> Answer:
    """Continue a prompt greedily.

    Args:
        model: the model, edited or not.
        prompt: the text; made plain as the texts of requests are, see `clean`.
        chat: whether it is what the user of a chat model says, see `reply`.

    Raises:
        FedEditError: the tokenizer makes no token of the prompt, or it holds a character that means
            nothing in a text; see also `reply`.
    """
    if chat:
        return reply(model, [prompt])
    found = token_ids(model, _plain(prompt))
    if not found:
        raise FedEditError(f"prompt {prompt!r}: holds no token; write a text to be continued")
    return _greedy(model, found, _NEW_TOKENS)


def reply(model: EditableModel, turns: Sequence[str]) -> Answer:
    """What a chat model answers, greedily, until it ends by itself or after 64 tokens.

    Args:
        model: the model, edited or not.
        turns: what was said, the user and the model in turn; the user first and last.

    Raises:
        FedEditError: the tokenizer has no chat template; see also `answer`.
    """
    if not model.tokenizer.chat_template:
        raise FedEditError(
            f"model {model.name}: its tokenizer has no chat template, so it is no chat model; "
            "give it a text to continue"
        )
    said = [text if number % 2 else _plain(text) for number, text in enumerate(turns)]
    found = token_ids(model, chat_text(model, said), in_chat=True)
    return _greedy(model, found, _REPLY_TOKENS)


def _plain(prompt: str) -> str:
    """A prompt as the texts of requests are.

    Raises:
        FedEditError: it holds a character that means nothing in a text.
    """
    try:
        return clean(prompt).rstrip(" \t")
    except FedEditError as error:
        raise FedEditError(f"prompt {error}") from None


@torch.no_grad()
def _greedy(model: EditableModel, found: Sequence[int], length: int) -> Answer:
    """The greedy continuation of tokens, and the likeliest first ones."""
    ids, mask = (part.to(model.device) for part in pad([found], model.pad_token_id))
    written = model.model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=model.pad_token_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = written.logits[0][0].float().softmax(-1).topk(_TOP)
    top = [
        (str(model.tokenizer.decode([token])), float(probability))
        for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    new = written.sequences[0, ids.shape[1] :]
    return Answer(str(model.tokenizer.decode(new, skip_special_tokens=True)), top)


def _one_line(text: str) -> str:
    return " ".join(text.split())
