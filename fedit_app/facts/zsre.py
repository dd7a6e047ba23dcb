"""zsRE question answering (Levy et al. 2017) in the format that MEND published."""

from __future__ import annotations

import itertools
from typing import Any

from fedit_app.facts.reading import Source, member, read_records, text_at
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.support.errors import FedEditError


def read_zsre(source: Source, limit: int | None = None) -> list[EditRequest]:
    """Read the questions of zsRE records as edit requests.

    As in ROME, MEMIT (arXiv 2210.07229, appendix C) and their successors, the target is the first
    of the true `answers`: the edit teaches the model what it does not know, so there is no other
    target to compare with, and correct tokens are counted. `alt`, the wrong answer that MEND
    (arXiv 2110.11309) trains towards, is ignored, as are `pred` and `cond`. The neighborhood
    prompt is the unrelated question `loc` with a question mark, and its answer `loc_ans`.

    Args:
        source: `zsre_mend_eval.json` or `zsre_mend_train.json` (one JSON array), JSON lines with
            one record a line, or a hub data set of such records. `subject`, `src` (which contains
            the subject) and `answers` are required; `rephrase`, and `loc` with `loc_ans`, are
            optional.
        limit: read the first records only; None for all.

    Returns:
        One request a record, in the order of the file; its id is its number from 0.

    Raises:
        FedEditError: the source cannot be read or holds no record; or some are invalid: names the
            first five by number. No text of a record is quoted, because the message may travel to
            the server.
    """
    numbers = itertools.count()
    return read_records(
        source, lambda record: _request(next(numbers), record), "record of zsRE", limit=limit
    )


def _request(number: int, record: Any) -> EditRequest:
    subject = text_at(record, "subject").strip()
    question = text_at(record, "src").rstrip()
    if subject not in question:
        raise FedEditError("src does not contain the subject")
    has_neighbor = "loc" in record or "loc_ans" in record
    return EditRequest(
        id=str(number),
        subject=subject,
        prompt=question.replace(subject, SLOT, 1),
        target_new=_answer(record),
        paraphrase_prompts=(text_at(record, "rephrase"),) if "rephrase" in record else (),
        neighborhood_prompts=(f"{text_at(record, 'loc')}?",) if has_neighbor else (),
        neighborhood_targets=(text_at(record, "loc_ans").strip(),) if has_neighbor else (),
    )


def _answer(record: dict[str, Any]) -> str:
    answers = member(record, "answers")
    if not isinstance(answers, list) or not answers:
        raise FedEditError("answers must be a non-empty list")
    return text_at({"answers[0]": answers[0]}, "answers[0]").strip()
