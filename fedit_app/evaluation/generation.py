"""Free generation: whether the model generates the target, and whether its text is fluent.

With teacher forcing, the model sees the beginning of the target, and how long it is; here it sees
the prompt only. Editors keep 38.5 % of what they show with teacher forcing (WILD, arXiv
2502.11177).
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fedit_app.evaluation.metrics import mean
from fedit_app.evaluation.scores import Before, nothing
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.models.chat import ChatForm, chat_form, ends, what_is_said
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import continuation_row, pad, token_ids
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

_ROWS_PER_PASS = 64
FREE_TOKENS = 100
ANSWER_TOKENS = 32
_LIKELIEST = 5
_MOST_TEXTS = 16
_SEED = 0
_WORD = re.compile(r"\w+|[^\w\s]")
# Where an answer stops by itself: the end of its sentence or line, behind a quote or bracket.
_STOP = re.compile(r"""["'”’»)\]]*\s*(\n|[.!?…。！？](?![^\W_]))""")


@dataclass(frozen=True)
class Text:
    """What a model has written.

    Attributes:
        text: without special tokens.
        ended: whether the model ended it by itself.
    """

    text: str
    ended: bool


@dataclass(frozen=True)
class Said:
    """How a model says a fact itself.

    Attributes:
        exact, wild: see `Match`.
        question, paraphrase: see `ChatMatch`.
    """

    exact: bool
    wild: bool
    question: float | None
    paraphrase: float | None


def say(
    model: EditableModel, requests: Sequence[EditRequest], before: Before = nothing
) -> list[Said]:
    """Let the model say each fact, and answer for it in a chat.

    Args:
        model: the model, edited or not.
        requests: the facts.
        before: what the model reads before each prompt or question.
    """
    parts = (matches(model, requests, before), chat_matches(model, requests, before))
    return [Said(**vars(match), **vars(chat)) for match, chat in zip(*parts, strict=True)]


Ask = Callable[[EditableModel, Sequence[EditRequest], Before], Sequence[Said]]
"""`say`, or what remembers what it has returned, see `memory.AnswerMemory`."""


def written_metrics(
    model: EditableModel,
    scopes: Mapping[str, Sequence[EditRequest]],
    before: Before = nothing,
    ask: Ask = say,
) -> dict[str, dict[str, float | None]]:
    """Metrics of the text that the model generates about several groups of requests.

    Args:
        model: the model, edited or not.
        scopes: name -> requests; a request of several groups is processed once.
        before: what the model reads before each prompt or question.
        ask: how it is let say the facts.

    Returns:
        name -> the figures of `answer_metrics`, and generation_entropy, the mean `n_gram_entropy`
        in bits of the text after the first generation prompt of at most 16 requests, evenly spaced
        in the group; None without prompts.
    """
    answered = answer_metrics(model, scopes, before, ask)
    prompts = {name: _spread(_free_prompts(group)) for name, group in scopes.items()}
    asked = sorted(set(itertools.chain.from_iterable(prompts.values())))
    texts = free_texts(model, [before(prompt) + prompt for prompt in asked])
    entropies = dict(zip(asked, map(n_gram_entropy, texts), strict=True))
    return {
        name: figures | {"generation_entropy": mean([entropies[text] for text in prompts[name]])}
        for name, figures in answered.items()
    }


def answer_metrics(
    model: EditableModel,
    scopes: Mapping[str, Sequence[EditRequest]],
    before: Before = nothing,
    ask: Ask = say,
) -> dict[str, dict[str, float | None]]:
    """Whether the model generates the targets of several groups of requests.

    Args:
        model: the model, edited or not.
        scopes: name -> requests; a request of several groups is processed once.
        before: what the model reads before each prompt or question.
        ask: how it is let say the facts.

    Returns:
        name -> exact_match, the share of requests whose target the model generates, and
        wild_match, the share of those where it ends there (see `matches`); chat_match and
        paraphrase_chat_match, the share of questions that a chat model answers with the target
        (see `chat_matches`). None without requests or a chat template.
    """
    requests = list(dict.fromkeys(itertools.chain.from_iterable(scopes.values())))
    said = dict(zip(requests, ask(model, requests, before), strict=True))
    return {
        name: {
            "exact_match": mean([said[request].exact for request in group]),
            "wild_match": mean([said[request].wild for request in group]),
            "chat_match": _known_mean(said[request].question for request in group),
            "paraphrase_chat_match": _known_mean(said[request].paraphrase for request in group),
        }
        for name, group in scopes.items()
    }


WRITTEN = {"answers": answer_metrics, "full": written_metrics}
"""Run config's `metrics` -> what is measured of the text that a model writes itself."""


@dataclass(frozen=True)
class Match:
    """Whether a model generates a target.

    Attributes:
        exact: whether its text begins with the target, as complete words.
        wild: whether, in addition, its sentence or text ends there: the target is the answer.
    """

    exact: bool
    wild: bool


def matches(
    model: EditableModel, requests: Sequence[EditRequest], before: Before = nothing
) -> list[Match]:
    """Whether the model generates the new target of each request.

    Greedy decoding of one token more than the target has: "Parisian" is not a match of "Paris",
    and "Paris, and" is one that goes on.
    """
    wanted = [request.asked_new for request in requests]
    rows = [continuation_row(model, prompt, text) for prompt, text in wanted]
    lengths = [len(row.ids) - row.target + 1 for row in rows]
    asked = [token_ids(model, before(prompt) + prompt) for prompt, _ in wanted]
    texts = texts_after(model, asked, lengths, do_sample=False)
    return [_match(text, said) for text, (_, said) in zip(texts, wanted, strict=True)]


def _match(written: Text, target: str) -> Match:
    text, target = written.text.lstrip(), target.lstrip()
    exact = text.startswith(target) and not _joined(target, text[len(target) :])
    rest = text[len(target) :]
    return Match(exact, exact and bool(_STOP.match(rest) or (written.ended and not rest.strip())))


def _joined(word: str, following: str) -> bool:
    """Whether a word goes on in the text behind it."""
    # Letters without case (Chinese, Arabic) do not show where a word ends.
    char = following[:1]
    return word[-1].isalnum() and (char.isdigit() or char.lower() != char.upper())


@dataclass(frozen=True)
class ChatMatch:
    """How a chat model answers for a fact; None where nothing was asked.

    Attributes:
        question: whether the answer to the question is a match, see `chat_matches`.
        paraphrase: share of the questions in other words whose answer is one.
    """

    question: float | None = None
    paraphrase: float | None = None


def chat_matches(
    model: EditableModel, requests: Sequence[EditRequest], before: Before = nothing
) -> list[ChatMatch]:
    """Whether a chat model answers with the new target of each request.

    The user asks the question, or without one for the prompt to be completed. The greedy answer of
    at most 32 tokens is a match if it ends by itself, and names the target as complete words, and
    not the true one; where the subject holds one of them, that does not count.

    Returns:
        One per request; without answers if the tokenizer has no chat template, or one that fails.
    """
    try:
        form = chat_form(model)
    except FedEditError as error:
        logger.warning("%s; nothing is asked in chats", error)
        form = None
    if form is None:
        return [ChatMatch() for _ in requests]
    asked = [
        [what_is_said(request).replace(SLOT, request.subject), *request.paraphrase_questions]
        for request in requests
    ]
    unique = list(dict.fromkeys(itertools.chain.from_iterable(asked)))
    said = chat_answers(model, form, [before(text) + text for text in unique])
    answers = dict(zip(unique, said, strict=True))
    found = []
    for request, questions in zip(requests, asked, strict=True):
        first, *others = (float(_answers(answers[text], request)) for text in questions)
        found.append(ChatMatch(first, mean(others)))
    return found


def chat_answers(model: EditableModel, form: ChatForm, questions: Sequence[str]) -> list[Text]:
    """The greedy answers of a chat model, each of at most 32 tokens.

    Args:
        model: the model, edited or not.
        form: a turn of a chat with it.
        questions: what the user says, one chat each.
    """
    rows = [token_ids(model, form.asked(text), in_chat=True) for text in questions]
    lengths = [ANSWER_TOKENS] * len(rows)
    return texts_after(model, rows, lengths, ends(model, form), do_sample=False)


def _answers(written: Text, request: EditRequest) -> bool:
    """Whether an answer is a match, see `chat_matches`."""
    text = written.text.replace(request.subject, "")
    if not (written.ended and _names(text, request.target_new)):
        return False
    truth = request.target_true
    return truth is None or not _names(text.replace(request.target_new, ""), truth)


def _names(text: str, target: str) -> bool:
    """Whether a text holds a target that is not a part of a longer word."""
    found = (match.start() for match in re.finditer(re.escape(target), text))
    return any(
        not _joined(target, text[at + len(target) :]) and not _joined(target[::-1], text[:at][::-1])
        for at in found
    )


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


def continuations(
    model: EditableModel, prompts: Sequence[str], lengths: Sequence[int], **how: bool | float
) -> list[str]:
    """The texts with which a model continues prompts; see `texts_after`."""
    rows = [token_ids(model, prompt) for prompt in prompts]
    return [written.text for written in texts_after(model, rows, lengths, (), **how)]


@torch.no_grad()
def texts_after(
    model: EditableModel,
    rows: Sequence[Sequence[int]],
    lengths: Sequence[int],
    stops: Sequence[int] = (),
    **how: bool | float,
) -> list[Text]:
    """Continue token rows in batches with a key/value cache.

    Args:
        model: the model, edited or not.
        rows: n rows.
        lengths: largest number of new tokens for each row.
        stops: tokens that end a text; empty: the model's own.
        how: arguments of `generate` of transformers; at least `do_sample`.
    """
    stops = list(stops) or ends(model)
    order = sorted(range(len(rows)), key=lambda i: (lengths[i], len(rows[i]), list(rows[i])))
    texts: dict[int, Text] = {}
    for begin in range(0, len(order), _ROWS_PER_PASS):
        chosen = order[begin : begin + _ROWS_PER_PASS]
        ids, mask = pad([rows[i] for i in chosen], model.pad_token_id, side="left")
        written = model.model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max(lengths[i] for i in chosen),
            pad_token_id=model.pad_token_id,
            eos_token_id=stops or None,
            # Overrides the checkpoint's generation_config.json, which is meant for chat.
            num_beams=1,
            repetition_penalty=1.0,
            **how,
        )
        for i, row in zip(chosen, written[:, ids.shape[1] :].tolist(), strict=True):
            new = row[: lengths[i]]
            text = str(model.tokenizer.decode(new, skip_special_tokens=True))
            texts[i] = Text(text, not set(stops).isdisjoint(new))
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


def _known_mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; None without any."""
    return mean([value for value in values if value is not None])


def _free_prompts(requests: Iterable[EditRequest]) -> list[str]:
    return [request.generation_prompts[0] for request in requests if request.generation_prompts]


def _spread(prompts: Sequence[str]) -> list[str]:
    """At most 16 of the prompts, evenly spaced."""
    count = min(len(prompts), _MOST_TEXTS)
    return [prompts[number * len(prompts) // count] for number in range(count)]
