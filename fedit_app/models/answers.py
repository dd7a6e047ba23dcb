"""What a model says to a prompt, alone and before and after its edits."""

from __future__ import annotations

import itertools
import textwrap
from dataclasses import dataclass

import torch

from fedit_app.facts.texts import clean
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import pad, token_ids
from fedit_app.support.errors import FedEditError

_NEW_TOKENS = 12
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
        answers = (self.before, self.after)
        left, right = (textwrap.wrap(_one_line(answer.text), _WIDTH) for answer in answers)
        lines = [f"{self.prompt} ...", f"  {'before':{_WIDTH}}  after"]
        for first, second in itertools.zip_longest(left, right, fillvalue=""):
            lines.append(f"  {first:{_WIDTH}}  {second}".rstrip())
        lines.append("")
        tops = zip(*(answer._top_lines() for answer in answers), strict=True)
        lines += [f"  {first:{_WIDTH}}  {second}" for first, second in tops]
        return "\n".join(lines)


@torch.no_grad()
def answer(model: EditableModel, prompt: str) -> Answer:
    """Continue a prompt greedily.

    Args:
        model: the model, edited or not.
        prompt: the text; made plain as the texts of requests are, see `clean`.

    Raises:
        FedEditError: the tokenizer makes no token of the prompt, or it holds a character that means
            nothing in a text.
    """
    try:
        prompt = clean(prompt).rstrip(" \t")
    except FedEditError as error:
        raise FedEditError(f"prompt {error}") from None
    ids, mask = (
        part.to(model.device) for part in pad([token_ids(model, prompt)], model.pad_token_id)
    )
    if not ids.shape[1]:
        raise FedEditError(f"prompt {prompt!r}: holds no token; write a text to be continued")
    written = model.model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=_NEW_TOKENS,
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
