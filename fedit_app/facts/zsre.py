"""zsRE question answering (Levy et al. 2017) in the format that MEND published."""

from __future__ import annotations

from typing import Any

from fedit_app.facts.reading import Source, member, read_records, text_at
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.facts.texts import clean, places_of
from fedit_app.support.errors import FedEditError


def read_zsre(
    source: Source, limit: int | None = None, skip_bad: bool = False
) -> list[EditRequest]:
    """Read the questions of zsRE records as edit requests.

    As in ROME, MEMIT (arXiv 2210.07229, appendix C) and their successors, the target is the first
    of the true `answers`: the edit teaches the model what it does not know, so there is no other
    target to compare with, and correct tokens are counted. `alt`, the wrong answer that MEND
    (arXiv 2110.11309) trains towards, is ignored, as are `pred` and `cond`. The neighborhood
    prompt is the unrelated question `loc` with a question mark, and its answer `loc_ans`.

    Args:
        source: `zsre_mend_eval.json` or `zsre_mend_train.json` (one JSON array), JSON lines with
            one record a line, or a hub data set of such records. `subject`, `src` (which contains
            the subject, and not only inside another word) and `answers` are required; `rephrase`,
            and `loc` with `loc_ans`, are optional.
        limit: read the first records only; None for all.
        skip_bad: leave out invalid records, and name them in the log.

    Returns:
        One request a record, in the order of the file; its id is its number from 0.

    Raises:
        FedEditError: the source cannot be read or holds no record; or some are invalid: names the
            first five by number. No text of a record is quoted, because the message may travel to
            the server.
    """
    return read_records(source, _request, "record of zsRE", limit=limit, skip_bad=skip_bad)


def _request(record: Any, index: int) -> EditRequest:
    subject = clean(text_at(record, "subject")).strip()
    question = clean(text_at(record, "src")).rstrip()
    at = place_of(subject, question, "src")
    has_neighbor = "loc" in record or "loc_ans" in record
    return EditRequest(
        id=str(index),
        subject=subject,
        prompt=question[:at] + SLOT + question[at + len(subject) :],
        target_new=_answer(record),
        paraphrase_prompts=(text_at(record, "rephrase"),) if "rephrase" in record else (),
        neighborhood_prompts=(f"{text_at(record, 'loc')}?",) if has_neighbor else (),
        neighborhood_targets=(text_at(record, "loc_ans"),) if has_neighbor else (),
    )


def place_of(subject: str, question: str, field: str) -> int:
    """Where the subject begins in a question, first as words of its own.

    Args:
        subject: the subject.
        question: the question.
        field: its name, for errors.

    Raises:
        FedEditError: nowhere.
    """
    if subject not in question:
        raise FedEditError(f"{field} does not contain the subject")
    found = places_of(subject, question)
    if not found:
        raise FedEditError(f"{field} contains the subject inside another word only")
    return found[0]


def _answer(record: dict[str, Any]) -> str:
    answers = member(record, "answers")
    if not isinstance(answers, list) or not answers:
        raise FedEditError("answers must be a non-empty list")
    return text_at({"answers[0]": answers[0]}, "answers[0]")
