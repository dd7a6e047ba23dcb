"""Chat models: what their template makes of what a user says, and where the answer stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from fedit_app.facts.joint import Continuation
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError

COMPLETE = "Complete the sentence with a name or word: "
"""What the user of a chat model says before a prompt that is no question."""

# Characters for private use, which no request has.
_SAID, _ANSWER = "\ue000", "\ue001"
# Templates may say which day it is; what is learned and scored must be the same on every day.
_DAY = "26 Jul 2024"
_SAME_DAY = f"{{%- macro strftime_now(format) -%}}{_DAY}{{%- endmacro -%}}"


@dataclass(frozen=True)
class ChatForm:
    """One turn of a chat as a model reads it: `before`, what the user says, `after`, the answer.

    Attributes:
        before: what stands before the user's words.
        after: what stands between them and the answer.
        gap: what the template puts before an answer, as part of it; mostly nothing.
        end: the token that ends an answer, as text.
    """

    before: str
    after: str
    gap: str
    end: str

    def asked(self, said: str) -> str:
        """What the model reads when the user says something."""
        return self.before + said + self.after

    def answer(self, target: str) -> Continuation:
        """A target as the whole answer."""
        return Continuation(self.gap + target + self.end)


def what_is_said(request: EditRequest, asking: bool = True) -> str:
    """What the user says for a fact, with `{}` for the subject.

    Args:
        request: the request.
        asking: whether it is the request's question, if it has one; else it is the prompt, to be
            completed.
    """
    return request.question if asking and request.question else COMPLETE + request.prompt


def chat_text(model: EditableModel, turns: Sequence[str], **how: Any) -> str:
    """What a chat model reads once something was said to it.

    Args:
        model: the model; its tokenizer has a chat template.
        turns: what was said, the user and the model in turn.
        how: what the template is given beside `add_generation_prompt`.

    Raises:
        FedEditError: the template refuses it.
    """
    roles = ("user", "assistant")
    said = [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]
    try:
        return str(
            model.tokenizer.apply_chat_template(
                said, tokenize=False, add_generation_prompt=len(turns) % 2 == 1, **how
            )
        )
    except (TemplateError, ValueError) as error:
        raise FedEditError(
            f"model {model.name}: its chat template fails: {error}; see chat-contexts"
        ) from None


def chat_form(model: EditableModel) -> ChatForm | None:
    """One turn of a chat with a model; None if its tokenizer has no chat template.

    Where a template asks which day it is, it is always told the same one, and where it lets a model
    think before its answer, it is told not to.

    Raises:
        FedEditError: the template fails, or does not hold what is said as it is.
    """
    if not model.tokenizer.chat_template:
        return None
    how = {
        "chat_template": _SAME_DAY + model.tokenizer.get_chat_template(),
        "date_string": _DAY,
        "enable_thinking": False,
    }
    asked = chat_text(model, [_SAID], **how)
    answered = chat_text(model, [_SAID, _ANSWER], **how)
    if asked.count(_SAID) != 1 or answered.count(_ANSWER) != 1:
        raise FedEditError(
            f"model {model.name}: its chat template does not hold once and as it is what is said; "
            "set chat-contexts = 0"
        )
    before, after = asked.split(_SAID)
    upto, behind = answered.split(_ANSWER)
    gap = upto.removeprefix(asked) if upto.startswith(asked) else ""
    return ChatForm(before, after, gap, _end(model, behind))


def _end(model: EditableModel, behind: str) -> str:
    """The first special token behind an answer; the tokenizer's end of text if there is none."""
    tokenizer = model.tokenizer
    special = set(tokenizer.all_special_ids)
    found = tokenizer(behind, add_special_tokens=False)["input_ids"]
    end = next((token for token in found if token in special), tokenizer.eos_token_id)
    return "" if end is None else str(tokenizer.convert_ids_to_tokens(end))


def ends(model: EditableModel, form: ChatForm | None = None) -> list[int]:
    """The tokens at which a model ends a text by itself, an answer in a chat included."""
    known = model.model.generation_config.eos_token_id
    listed = known if isinstance(known, list) else [known]
    end = "" if form is None else form.end
    own = model.tokenizer(end, add_special_tokens=False)["input_ids"][:1]
    return sorted({token for token in (*listed, *own) if token is not None})
