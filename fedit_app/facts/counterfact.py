"""The published format of CounterFact (Meng et al., arXiv 2202.05262)."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fedit_app.facts.implied import with_implied
from fedit_app.facts.reading import Source, member, read_records, text_at, texts_of
from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError


def read_counterfact(
    source: Source, limit: int | None = None, skip_bad: bool = False
) -> list[EditRequest]:
    """Read the edits and the evaluation prompts of CounterFact records.

    Args:
        source: `counterfact.json` or `multi_counterfact.json` (one JSON array), JSON lines with
            one record a line, or a hub data set of such records. `case_id`, `requested_rewrite`
            with `prompt`, `subject`, `target_new.str` and `target_true.str` are required;
            `relation_id` (in `requested_rewrite`, too), `paraphrase_prompts`,
            `neighborhood_prompts` and `generation_prompts` (repeated ones are kept once) are
            optional. Other fields are ignored.

            The other records about a subject make its `subject_prompts`, where their relation is
            another one and theirs alone: of a subject with several twin towns, none is asked for.
            What follows from an edit is made of them, too, see `implied`.
        limit: read the first records only; None for all.
        skip_bad: leave out invalid records, and name them in the log.

    Returns:
        One request a record, in the order of the file; its id is the `case_id`.

    Raises:
        FedEditError: the source cannot be read or holds no record; or some are invalid: names the
            first five by number. No text of a record is quoted, because the message may travel to
            the server.
    """
    kind = "record of CounterFact"
    requests = read_records(source, _request, kind, "case_id", limit, skip_bad)
    return with_implied(_with_subject_prompts(requests))


def _with_subject_prompts(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The requests with the prompts of the others about their subject and another relation."""
    about: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for request in requests:
        if request.relation is not None:
            about[request.subject][request.relation].append(request.text)

    def others(request: EditRequest) -> tuple[str, ...]:
        if request.relation is None:
            return ()
        relations = about[request.subject].items()
        return tuple(
            texts[0] for name, texts in relations if name != request.relation and len(texts) == 1
        )

    return [dataclasses.replace(request, subject_prompts=others(request)) for request in requests]


def _request(record: Any, _index: int) -> EditRequest:
    identity = member(record, "case_id")
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise FedEditError(
            f"case_id must be a whole number or a string, found {type(identity).__name__}"
        )
    return EditRequest(
        id=str(identity),
        subject=text_at(record, "requested_rewrite.subject"),
        prompt=text_at(record, "requested_rewrite.prompt"),
        target_new=text_at(record, "requested_rewrite.target_new.str"),
        target_true=text_at(record, "requested_rewrite.target_true.str"),
        paraphrase_prompts=_prompts(record, "paraphrase_prompts"),
        neighborhood_prompts=_prompts(record, "neighborhood_prompts"),
        generation_prompts=tuple(dict.fromkeys(_prompts(record, "generation_prompts"))),
        relation=_relation(record),
    )


def _relation(record: dict[str, Any]) -> str | None:
    if record["requested_rewrite"].get("relation_id") is None:
        return None
    return text_at(record, "requested_rewrite.relation_id")


def _prompts(record: dict[str, Any], name: str) -> tuple[str, ...]:
    return texts_of(name, record.get(name, []))
