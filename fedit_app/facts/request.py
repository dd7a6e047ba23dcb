"""One fact to be corrected."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedit_app.support.errors import FedEditError

SLOT = "{}"

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class EditRequest:
    """Make the model continue a prompt about a subject with a new target.

    Attributes:
        id: name of the request, unique at its node; never leaves it.
        subject: what the fact is about; no space at its ends.
        prompt: template with exactly one `{}` where the subject goes.
        target_new: what the model is to say; no space at its ends.
        target_true: what is said today, for evaluation; no space at its ends.
        paraphrase_prompts: complete prompts that ask the same in other words.
        neighborhood_prompts: complete prompts about other subjects, to be left as they are:
            `target_true` is right there, unless they have targets of their own.
        neighborhood_targets: what the neighborhood prompts should answer, one each, no space at
            their ends; none: `target_true`.
        generation_prompts: complete prompts after which the model writes freely, to see whether it
            still writes fluently.
        slot: time slot (from 1) in which it is edited; None: by order.
        relation: name of what the prompt says about its subject, such as Wikidata's "P103", of
            letters, digits, "-", "_" and "."; None: not known.

    Raises:
        FedEditError: a field that cannot be edited with. Its text is not quoted: the message may
            travel to the server.
    """

    id: str
    subject: str
    prompt: str
    target_new: str
    target_true: str | None = None
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    neighborhood_targets: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    slot: int | None = None
    relation: str | None = None

    def __post_init__(self) -> None:
        if not self.id.strip():
            raise FedEditError("id is empty; give every request a name of its own")
        if not self.subject.strip():
            raise FedEditError("subject is empty; write what the fact is about")
        if self.prompt.count(SLOT) != 1:
            raise FedEditError(
                f"prompt has {self.prompt.count(SLOT)} placeholders; it needs exactly one {{}} "
                "where the subject goes"
            )
        if not self.target_new.strip():
            raise FedEditError("target_new is empty; write what the model is to say")
        for name in ("subject", "target_new", "target_true"):
            text = getattr(self, name)
            if text is not None and text != text.strip():
                raise FedEditError(f"{name} begins or ends with a space; write it without")
        prompts, targets = len(self.neighborhood_prompts), len(self.neighborhood_targets)
        if targets not in (0, prompts):
            raise FedEditError(
                f"neighborhood_targets has {targets} entries for {prompts} neighborhood_prompts; "
                "write one each, or none"
            )
        if any(text != text.strip() for text in self.neighborhood_targets):
            raise FedEditError(
                "an entry of neighborhood_targets begins or ends with a space; write it without"
            )
        if self.slot is not None and self.slot < 1:
            raise FedEditError(f"slot {self.slot} must be at least 1")
        if self.relation is not None and not _NAME.fullmatch(self.relation):
            raise FedEditError(
                "relation must be a name of letters, digits, '-', '_' and '.', such as P103"
            )

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.replace(SLOT, self.subject)
