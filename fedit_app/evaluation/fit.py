"""Whether a model can take requests: what is known once the tokenizer is, before any dear work."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedit_app.evaluation.generation import ANSWER_TOKENS, FREE_TOKENS
from fedit_app.evaluation.scores import repetitions
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.models.chat import COMPLETE, ChatForm
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import subject_row, token_ids
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import listing, plural

logger = logging.getLogger(__name__)

LONG_TARGET = 12
LONGEST_TARGET = 32
"""Tokens of a target. Of sentences of 6, 12, 20 and 32 tokens SmolLM2-135M learned two of two, one,
none and none whole; of the 32 tokens it had about half."""


_MOST_NAMED = 5


@dataclass(frozen=True)
class Misfit:
    """A request that a model cannot take.

    Attributes:
        request: the request.
        reason: field, what was found and what is right; quotes no text.
    """

    request: EditRequest
    reason: str


def misfits(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[str | ChatForm] = (SLOT,),
) -> list[Misfit]:
    """The requests that a model cannot take, each with the first reason.

    The tokenizer makes no token of the subject or the target; the target is longer than
    `LONGEST_TARGET`; or a text is longer than the model reads.

    Args:
        model: the model.
        requests: the requests.
        templates: contexts in which values are learned.
    """
    if not requests:
        return []
    context = max(_added(model, template) for template in templates)
    found = ((request, _reason(model, request, context)) for request in requests)
    return [Misfit(request, reason) for request, reason in found if reason]


def that_fit(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[str | ChatForm] = (SLOT,),
    skip_bad: bool = False,
) -> list[EditRequest]:
    """The requests that a model can take; the log names the others.

    Args:
        model: the model.
        requests: the requests.
        templates: contexts in which values are learned.
        skip_bad: whether others are left out.

    Raises:
        FedEditError: there are others and they are not left out, or nothing else is there. The
            message may travel to the server: it names no request.
    """
    found = misfits(model, requests, templates)
    for misfit in found:
        logger.warning("request %s: %s", misfit.request.id, misfit.reason)
    if found and (len(found) == len(requests) or not skip_bad):
        raise FedEditError(
            f"{plural(len(found), 'request')} cannot be edited with this model, see the log: "
            f"{found[0].reason}"
        )
    bad = {misfit.request.id for misfit in found}
    return [request for request in requests if request.id not in bad]


def warn_of_long_targets(model: EditableModel, requests: Sequence[EditRequest]) -> None:
    """Name the requests in the log whose targets are often not learned whole.

    Args:
        model: the model.
        requests: the requests.
    """
    long = [
        request.id
        for request in requests
        # A token has at least one byte.
        if len(request.target_new.encode()) > LONG_TARGET
        and len(token_ids(model, request.target_new)) > LONG_TARGET
    ]
    if long:
        logger.warning(
            "%s more than %d tokens, which are often not learned whole: %s",
            plural(len(long), "target has", "targets have"),
            LONG_TARGET,
            listing(long[:_MOST_NAMED]) + (", ..." if len(long) > _MOST_NAMED else ""),
        )


def _added(model: EditableModel, template: str | ChatForm) -> int:
    """How many tokens a context adds to a prompt and its target."""
    if isinstance(template, str):
        return len(token_ids(model, template.replace(SLOT, "")))
    return len(token_ids(model, template.asked(COMPLETE) + template.answer(""), in_chat=True))


def _reason(model: EditableModel, request: EditRequest, context: int) -> str:
    """Why a model cannot take a request; empty if it can."""
    try:
        row = subject_row(model, request, SLOT, request.target_new)
    except FedEditError as error:
        return str(error)
    length = len(row.ids) - row.target
    if length > LONGEST_TARGET:
        return (
            f"target_new has {length} tokens of this model, and more than {LONGEST_TARGET} are not "
            "learned whole; shorten it, or make several requests of it"
        )
    positions = _positions(model)
    if positions is None:
        return ""
    if len(row.ids) + context > positions:
        return (
            f"prompt and target_new have {len(row.ids)} tokens, beside {context} of contexts; this "
            f"model reads {positions}"
        )
    for name, text, behind in _texts(request):
        # A token has at least one byte.
        if len(text.encode()) + behind < positions:
            continue
        needed = len(token_ids(model, text)) + behind
        if needed > positions:
            return f"{name} needs {needed} tokens; this model reads {positions}"
    return ""


def _texts(request: EditRequest) -> Iterator[tuple[str, str, int]]:
    """Field, text and number of tokens generated behind it of all that is evaluated."""
    targets = [request.target_new, *filter(None, [request.target_true])]
    for name in ("prompt", "paraphrase_prompts", "neighborhood_prompts"):
        prompts = (request.text,) if name == "prompt" else getattr(request, name)
        behind = targets
        if name == "neighborhood_prompts":
            behind = [*targets, *request.neighborhood_targets]
        for prompt, target in itertools.product(prompts, behind):
            yield name, prompt + request.after(prompt, target), 1
    for prompt in request.subject_prompts:
        yield "subject_prompts", prompt, 1
    pairs = zip(request.portability_prompts, request.portability_targets, strict=True)
    for prompt, target in pairs:
        yield "portability_prompts", prompt + request.after(prompt, target), 1
    if request.reversed_prompt is not None:
        for prompt in map(request.turned, targets):
            yield "reversed_prompt", prompt + request.after(prompt, request.subject), 1
    for prompt, name in repetitions(request.subject):
        yield "subject", prompt + name, 1
    for prompt in request.generation_prompts:
        yield "generation_prompts", prompt, FREE_TOKENS
    if request.question:
        yield "question", request.question + request.subject, ANSWER_TOKENS
    for question in request.paraphrase_questions:
        yield "paraphrase_questions", question, ANSWER_TOKENS


def _positions(model: EditableModel) -> int | None:
    """How many tokens the model reads; None without a limit."""
    found = getattr(model.model.config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None
