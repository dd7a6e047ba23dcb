"""Question sets in their published formats: WikiBigEdit and QAEdit.

As with zsRE, the target is the true answer, so that there is no other one to compare with, and
correct tokens are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedit_app.facts.reading import Source, member, read_records, text_at
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.facts.texts import clean
from fedit_app.facts.zsre import place_of
from fedit_app.support.errors import FedEditError


def read_wikibigedit(
    source: Source, limit: int | None = None, skip_bad: bool = False
) -> list[EditRequest]:
    """Read records of WikiBigEdit (Thede et al., ICML 2025, arXiv 2503.05683).

    Args:
        source: `wiki_big_edit_*.json` (one JSON array), JSON lines with one record a line, or a hub
            data set of such records. `subject`, `update` (the question, which contains the subject)
            and `ans` are required. `rephrase` and `personas` become paraphrases, `loc` with
            `loc_ans` the neighborhood, `mhop` with `mhop_ans` the portability; each may be absent
            or null. Other fields are ignored.
        limit: read the first records only; None for all.
        skip_bad: leave out invalid records, and name them in the log.

    Returns:
        One request a record, in the order of the file; its id is its number from 0.

    Raises:
        FedEditError: see `read_zsre`.
    """
    kind = "record of WikiBigEdit"
    return read_records(source, _wikibigedit, kind, limit=limit, skip_bad=skip_bad)


def read_qaedit(
    source: Source, limit: int | None = None, skip_bad: bool = False
) -> list[EditRequest]:
    """Read records of QAEdit (Yang et al., ACL 2025, arXiv 2502.11177).

    Args:
        source: `QAEdit.json` (one JSON array), JSON lines with one record a line, or a hub data set
            of such records. `prompt` (the question), `subject` (which it contains) and `target` are
            required. `rephrase` becomes a paraphrase, and the pairs of `loc` and `loc_ans` in
            `locality` the neighborhood. Other fields are ignored.
        limit: read the first records only; None for all.
        skip_bad: leave out invalid records, and name them in the log.

    Returns:
        One request a record, in the order of the file; its id is its number from 0.

    Raises:
        FedEditError: see `read_zsre`.
    """
    kind = "record of QAEdit"
    return read_records(source, _qaedit, kind, limit=limit, skip_bad=skip_bad)


def _wikibigedit(record: Any, index: int) -> EditRequest:
    member(record, "update")
    around = _pairs([record], "loc", "loc_ans")
    implied = _pairs([record], "mhop", "mhop_ans")
    return _request(
        record,
        index,
        "update",
        "ans",
        [text for name in ("rephrase", "personas") for text in _optional(record, name)],
        around,
        implied,
    )


def _qaedit(record: Any, index: int) -> EditRequest:
    member(record, "prompt")
    beside = record.get("locality") or []
    if not isinstance(beside, list) or not all(isinstance(pair, dict) for pair in beside):
        raise FedEditError("locality must be a list of JSON objects")
    rephrased = _optional(record, "rephrase")
    around = _pairs(beside, "loc", "loc_ans")
    return _request(record, index, "prompt", "target", rephrased, around, [])


def _request(
    record: Any,
    index: int,
    asked: str,
    answer: str,
    paraphrases: Sequence[str],
    around: Sequence[tuple[str, str]],
    implied: Sequence[tuple[str, str]],
) -> EditRequest:
    """The request of a record with the question and its answer in the fields that are named."""
    subject = clean(text_at(record, "subject")).strip()
    question = clean(text_at(record, asked)).rstrip()
    at = place_of(subject, question, asked)
    return EditRequest(
        id=str(index),
        subject=subject,
        prompt=question[:at] + SLOT + question[at + len(subject) :],
        target_new=text_at(record, answer),
        paraphrase_prompts=tuple(paraphrases),
        neighborhood_prompts=tuple(text for text, _ in around),
        neighborhood_targets=tuple(text for _, text in around),
        portability_prompts=tuple(text for text, _ in implied),
        portability_targets=tuple(text for _, text in implied),
    )


def _optional(record: Any, name: str) -> list[str]:
    """The text of a field that may be absent or null, as a list of at most one."""
    return [] if record.get(name) is None else [text_at(record, name)]


def _pairs(records: Sequence[Any], asked: str, answer: str) -> list[tuple[str, str]]:
    """Questions with their answers, from the records that have one.

    Raises:
        FedEditError: one of the two is missing or no text.
    """
    return [
        (text_at(record, asked), text_at(record, answer))
        for record in records
        if record.get(asked) is not None or record.get(answer) is not None
    ]
