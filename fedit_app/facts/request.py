"""A request to edit one fact."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedit_app.facts.joint import Continuation, joint
from fedit_app.facts.texts import clean, places_of
from fedit_app.support.errors import FedEditError

SLOT = "{}"

LISTS = (
    *("paraphrase_prompts", "neighborhood_prompts", "neighborhood_targets"),
    *("subject_prompts", "portability_prompts", "portability_targets"),
    *("generation_prompts", "paraphrase_questions"),
)
"""Fields that hold several texts."""

OPTIONAL = ("target_true", "reversed_prompt", "relation", "slot", "target_separator", "question")
"""Fields that may be None."""

_TRIMMED = (
    *("subject", "target_new", "target_true"),
    *("neighborhood_targets", "portability_targets"),
)
_AS_IT_IS = ("id", "target_separator")

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class EditRequest:
    """Make the model continue a prompt about a subject with a new target.

    The texts are made plain, see `clean`: a no-break space becomes a space, an invisible character
    is left out. Spaces around the subject and the targets and behind prompts are left out, too.

    Attributes:
        id: name of the request, unique at its node; it never leaves the node.
        subject: what the fact is about; empty: the whole prompt, which then has no `{}`, so that
            the fact is learned at the prompt's last token.
        prompt: template with exactly one `{}`, the place of the subject; or a text in which the
            subject stands once, as words of their own, which becomes such a template.
        target_new: the new continuation.
        target_true: the present continuation, for evaluation.
        paraphrase_prompts: complete prompts that ask for the same fact in other words.
        neighborhood_prompts: complete prompts about other subjects, which the edit must not change:
            their correct continuation is `target_true`, or their own target.
        neighborhood_targets: the correct continuation of each neighborhood prompt; empty:
            `target_true`.
        subject_prompts: complete prompts about the same subject and another relation, which the
            edit must not change: the continuation of the unedited model has to stay.
        portability_prompts: complete prompts whose answer follows from the edit, such as a question
            about the new target that names it by the subject.
        portability_targets: the right answer to each of them once the fact is edited.
        reversed_prompt: the fact the other way round: a template with exactly one `{}`, the place
            of the target, which the subject follows.
        generation_prompts: complete prompts for free generation, which measures fluency.
        slot: time slot (from 1) of the edit; None: by order.
        relation: name of the relation that the prompt states, such as Wikidata's "P103"; letters,
            digits, "-", "_" and "."; None: unknown.
        target_separator: what stands between each of the prompts and its target; None: what the
            texts ask for (see `joint`), a space in English.
        question: the fact as a question that `target_new` answers, as the user of a chat model
            asks it, with the place of the subject as in the prompt; None: the prompt is given to be
            completed.
        paraphrase_questions: complete questions for the same fact in other words, for evaluation.

    Raises:
        FedEditError: a field is invalid. Its text is not quoted, because the message may travel to
            the server.
    """

    id: str
    subject: str
    prompt: str
    target_new: str
    target_true: str | None = None
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    neighborhood_targets: tuple[str, ...] = ()
    subject_prompts: tuple[str, ...] = ()
    portability_prompts: tuple[str, ...] = ()
    portability_targets: tuple[str, ...] = ()
    reversed_prompt: str | None = None
    generation_prompts: tuple[str, ...] = ()
    slot: int | None = None
    relation: str | None = None
    target_separator: str | None = None
    question: str | None = None
    paraphrase_questions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        changes: list[str] = []
        for name, value in vars(self).copy().items():
            if name in LISTS:
                object.__setattr__(self, name, _plain_list(name, value, changes))
            elif name != "slot" and not (value is None and name in OPTIONAL):
                object.__setattr__(self, name, _plain(name, value, changes))
        if not self.subject and SLOT not in self.prompt:
            object.__setattr__(self, "subject", self.prompt.strip())
        for name in ("prompt", "question"):
            if getattr(self, name) is not None and self.subject:
                object.__setattr__(self, name, _marked(getattr(self, name), self.subject))
        object.__setattr__(self, "_changes", tuple(changes))
        self._check_texts()
        self._check_lists()
        if self.slot is not None and type(self.slot) is not int:
            raise FedEditError(f"slot must be a whole number, found {type(self.slot).__name__}")
        if self.slot is not None and self.slot < 1:
            raise FedEditError(f"slot {self.slot} must be at least 1")
        if self.relation is not None and not _NAME.fullmatch(self.relation):
            raise FedEditError(
                "relation must be a name of letters, digits, '-', '_' and '.', such as P103"
            )

    def _check_texts(self) -> None:
        if not self.id.strip():
            raise FedEditError("id is empty; give every request a unique name")
        if not self.subject:
            raise FedEditError("subject is empty; name what the fact is about, in place of {}")
        for name, template in (("prompt", self.prompt), ("question", self.question)):
            if template is not None and template.count(SLOT) != 1:
                raise FedEditError(
                    f"{name} has {template.count(SLOT)} placeholders; write exactly one {{}} in "
                    "place of the subject, or the subject itself once"
                )
        if not self.target_new:
            raise FedEditError("target_new is empty; write the new continuation")
        reversed_ = self.reversed_prompt
        if reversed_ is not None and reversed_.count(SLOT) != 1:
            raise FedEditError(
                f"reversed_prompt has {reversed_.count(SLOT)} placeholders; write exactly one {{}} "
                "in place of the target"
            )
        if self.target_true == "":
            raise FedEditError("target_true is empty; leave the field out if it is not known")

    def _check_lists(self) -> None:
        for name in LISTS:
            if not all(text.strip() for text in getattr(self, name)):
                raise FedEditError(f"{name} has an empty entry; write a text, or leave it out")
        prompts, targets = len(self.neighborhood_prompts), len(self.neighborhood_targets)
        if targets not in (0, prompts):
            raise FedEditError(
                f"neighborhood_targets has {targets} entries for {prompts} neighborhood_prompts; "
                "write one for each prompt, or none"
            )
        prompts, targets = len(self.portability_prompts), len(self.portability_targets)
        if targets != prompts:
            raise FedEditError(
                f"portability_targets has {targets} entries for {prompts} portability_prompts; "
                "write one for each prompt"
            )

    @property
    def changes(self) -> tuple[str, ...]:
        """What was made plain in the texts that the request was made with, each by its kind."""
        return tuple(vars(self)["_changes"])

    @property
    def fact(self) -> tuple[str, str, str]:
        """What makes two requests of one node the same: subject, prompt, new target as it is said.

        The target has what joins it to the prompt before it.
        """
        return self.subject, self.prompt, self.after(self.text, self.target_new)

    def after(self, prompt: str, target: str) -> Continuation:
        """A target with what joins it to a prompt.

        Args:
            prompt: one of the request's prompts, complete, or with a context before it.
            target: one of the request's targets.
        """
        separator = self.target_separator
        return Continuation((joint(prompt, target) if separator is None else separator) + target)

    @property
    def asked_new(self) -> tuple[str, Continuation]:
        """The text and what the edited model is to say after it."""
        return self.text, self.after(self.text, self.target_new)

    def turned(self, target: str) -> str:
        """The prompt of the reversed fact with a target in its place, which the subject follows.

        Raises:
            ValueError: there is no reversed prompt.
        """
        if self.reversed_prompt is None:
            raise ValueError("no reversed_prompt")
        return capitalised(self.reversed_prompt.replace(SLOT, target))

    @property
    def text(self) -> str:
        """The prompt with the subject in place of `{}`."""
        return self.prompt.replace(SLOT, self.subject)

    @property
    def beginning(self) -> str:
        """The text up to and including the subject: what the key of the fact depends on."""
        return self.prompt.split(SLOT)[0] + self.subject

    @property
    def asked(self) -> tuple[str, ...]:
        """The complete prompts that ask for the fact: the text, then the paraphrases."""
        return (self.text, *self.paraphrase_prompts)


def capitalised(text: str) -> str:
    """A text as the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def _marked(text: str, subject: str) -> str:
    """A text with `{}` in place of the subject, where it is certain which place that is."""
    places = [] if SLOT in text else places_of(subject, text)
    if len(places) != 1:
        return text
    return text[: places[0]] + SLOT + text[places[0] + len(subject) :]


def _plain_list(name: str, value: object, changes: list[str]) -> tuple[str, ...]:
    """A field of several texts with plain texts.

    Raises:
        FedEditError: it is no list; see also `_plain`.
    """
    if not isinstance(value, list | tuple):
        raise FedEditError(f"{name} must be a list of strings, found {type(value).__name__}")
    return tuple(_plain(name, text, changes) for text in value)


def _plain(name: str, value: object, changes: list[str]) -> str:
    """A field's text, made plain.

    Raises:
        FedEditError: it is no text; see also `clean`. Names the field.
    """
    if not isinstance(value, str):
        raise FedEditError(f"{name} must be a string, found {type(value).__name__}")
    try:
        # An id is compared with those of a ledger, so it stays as it is.
        text = clean(value, None if name == "id" else changes)
    except FedEditError as error:
        raise FedEditError(f"{name} {error}") from None
    if name in _AS_IT_IS:
        return value if name == "id" else text
    trimmed = text.strip() if name in _TRIMMED else text.rstrip(" \t")
    changes += ["space at an end"] * (trimmed != text)
    return trimmed
