"""MQuAKE (Zhong et al., EMNLP 2023, arXiv 2305.14795) in its published format.

AKEW's `MQuAKE-CF.json` (Wu et al., EMNLP 2024, arXiv 2402.18909) has the same fields and more.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fedit_app.facts.reading import Source, member, read_records, text_at, texts_of
from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError


def read_mquake(
    source: Source, limit: int | None = None, skip_bad: bool = False
) -> list[EditRequest]:
    """Read the edits of MQuAKE records, and the questions of several hops that depend on them.

    A record has one edit or more, and questions whose answer follows from all of them: they become
    `portability_prompts` of its last edit, with `new_answer`.

    Args:
        source: `MQuAKE-CF.json`, `MQuAKE-CF-3k.json`, `MQuAKE-T.json` (one JSON array), JSON lines
            with one record a line, or a hub data set of such records. `case_id`, `questions`,
            `new_answer` and a list `requested_rewrite` with `prompt`, `subject`, `target_new.str`
            and `target_true.str` are required; `relation_id` and `question`, which becomes a
            paraphrase, are optional. Other fields are ignored.
        limit: read the first records only; None for all.
        skip_bad: leave out invalid records, and name them in the log.

    Returns:
        The requests in the order of the file; ids are `CASE-1`, `CASE-2`, ...

    Raises:
        FedEditError: the source cannot be read or holds no record; or some are invalid: names the
            first five by number. No text of a record is quoted, because the message may travel to
            the server.
    """
    return read_records(source, _requests, "record of MQuAKE", "case_id", limit, skip_bad)


def _requests(record: Any, _index: int) -> list[EditRequest]:
    case = member(record, "case_id")
    if isinstance(case, bool) or not isinstance(case, int | str):
        raise FedEditError(
            f"case_id must be a whole number or a string, found {type(case).__name__}"
        )
    rewrites = member(record, "requested_rewrite")
    if not isinstance(rewrites, list) or not rewrites:
        raise FedEditError("requested_rewrite must be a non-empty list")
    asked = texts_of("questions", member(record, "questions"))
    answers = (text_at(record, "new_answer"),) * len(asked)
    requests = [_request(f"{case}-{n}", rewrite) for n, rewrite in enumerate(rewrites, start=1)]
    last = dataclasses.replace(requests[-1], portability_prompts=asked, portability_targets=answers)
    return [*requests[:-1], last]


def _request(identity: str, rewrite: Any) -> EditRequest:
    if not isinstance(rewrite, dict):
        raise FedEditError("requested_rewrite must be a list of JSON objects")
    known = rewrite.get("relation_id") is not None
    return EditRequest(
        id=identity,
        subject=text_at(rewrite, "subject"),
        prompt=text_at(rewrite, "prompt"),
        target_new=text_at(rewrite, "target_new.str"),
        target_true=text_at(rewrite, "target_true.str"),
        paraphrase_prompts=(text_at(rewrite, "question"),) if "question" in rewrite else (),
        relation=text_at(rewrite, "relation_id") if known else None,
    )
