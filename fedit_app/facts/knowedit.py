"""KnowEdit (Zhang et al., arXiv 2401.01286) in the format of its files on the Hugging Face hub.

Its parts are zsRE, WikiRecent, WikiCounterfact (both from RippleEdits, arXiv 2307.12976) and
WikiBio. Their records name some fields differently, and nest answers in lists of aliases.
"""

from __future__ import annotations

from typing import Any

from fedit_app.facts.reading import Source, is_text, read_records, text_at
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.facts.texts import clean
from fedit_app.facts.zsre import place_of
from fedit_app.support.errors import FedEditError

_ALIASES = "Subject_Aliasing"
_KEPT = "Relation_Specificity"
_IMPLIED = ("Reasoning", "Logical_Generalization")
_NAMES = {"subject": "concept", "prompt": "text", "target_new": "labels"}
"""Fields, and what WikiBio calls them."""


def read_knowedit(
    source: Source, limit: int | None = None, skip_bad: bool = False
) -> list[EditRequest]:
    """Read the edits of KnowEdit records, and what its authors ask about them as far as it fits.

    `locality.Relation_Specificity` has prompts about the subject (another relation) and, in zsRE,
    about others: the former become `subject_prompts`, the latter `neighborhood_prompts` with their
    answers. Of `portability`, prompts with an alias of the subject that ask for the new target
    (`Subject_Aliasing`) become paraphrases, those of `Reasoning` and `Logical_Generalization`
    `portability_prompts`. `locality.Forgetfulness` has no metric here and is left out.

    Args:
        source: a file such as `test_cf.json` or `recent_test.json` (one JSON array), JSON lines
            with one record a line, or a hub data set of such records. `subject`, `prompt` (which
            contains the subject) and `target_new` are required, or WikiBio's `concept`, `text` and
            `labels`; `ground_truth`, `rephrase`, `portability` and `locality` are optional.
        limit: read the first records only; None for all.
        skip_bad: leave out invalid records, and name them in the log.

    Returns:
        One request a record, in the order of the file; its id is its number from 0.

    Raises:
        FedEditError: see `read_zsre`.
    """
    return read_records(source, _request, "record of KnowEdit", limit=limit, skip_bad=skip_bad)


def _request(record: Any, index: int) -> EditRequest:
    subject = clean(_text(record, "subject")).strip()
    prompt = clean(_text(record, "prompt")).rstrip()
    target = _text(record, "target_new")
    at = place_of(subject, prompt, "prompt")
    true = _first(record.get("ground_truth"))
    kept = _asked(record, "locality", _KEPT)
    around = [(asked, answer) for asked, answer in kept if subject not in asked]
    aliases = _asked(record, "portability", _ALIASES)
    implied = [pair for axis in _IMPLIED for pair in _asked(record, "portability", axis)]
    rephrased = _first(record.get("rephrase"))
    paraphrases = [asked for asked, answer in aliases if answer.strip() == target.strip()]
    return EditRequest(
        id=str(index),
        subject=subject,
        prompt=prompt[:at] + SLOT + prompt[at + len(subject) :],
        target_new=target,
        target_true=true if true and true.strip() != target.strip() else None,
        paraphrase_prompts=tuple([rephrased, *paraphrases] if rephrased else paraphrases),
        neighborhood_prompts=tuple(asked for asked, _ in around),
        neighborhood_targets=tuple(answer for _, answer in around),
        subject_prompts=tuple(asked for asked, _ in kept if subject in asked),
        portability_prompts=tuple(asked for asked, _ in implied),
        portability_targets=tuple(answer for _, answer in implied),
    )


def _text(record: Any, name: str) -> str:
    """A required text, by either of its names."""
    other = _NAMES[name]
    known = isinstance(record, dict) and name not in record and other in record
    return text_at(record, other if known else name)


def _first(value: Any) -> str | None:
    """The first text of a text, or of nested lists of texts; None if there is none."""
    while isinstance(value, list):
        value = value[0] if value else None
    return value if is_text(value) else None


def _asked(record: dict[str, Any], part: str, axis: str) -> list[tuple[str, str]]:
    """Prompts and their first answers; those without one are left out.

    Raises:
        FedEditError: the part is no object, or its axis no list of objects.
    """
    found = record.get(part) or {}
    if not isinstance(found, dict):
        raise FedEditError(f"{part} must be a JSON object, found {type(found).__name__}")
    tests = found.get(axis) or []
    if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
        raise FedEditError(f"{part}.{axis} must be a list of JSON objects")
    pairs = [(_first(test.get("prompt")), _first(test.get("ground_truth"))) for test in tests]
    return [(prompt, answer) for prompt, answer in pairs if prompt and answer]
