"""RippleEdits (Cohen et al., TACL 2024, arXiv 2307.12976) in its published format.

An edit is a whole statement there ("The mother tongue of X is Y."), and its subject a number of
Wikidata. The name of the subject is read from the record's other questions about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedit_app.facts.reading import Source, is_text, member, read_records, text_at
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.facts.texts import clean
from fedit_app.facts.zsre import place_of
from fedit_app.support.errors import FedEditError

_KEPT = ("Relation_Specificity", "Relation_Specifity")  # the files have the latter
_IMPLIED = ("Logical_Generalization", "Compositionality_I", "Compositionality_II")
_ALIASES = "Subject_Aliasing"
_VERBS = {"FOLLOWS": " follows ", "FOLLOWED_BY": " is followed by "}
_LINKS = ("of", "which")
"""Words of a question before its subject."""

Query = dict[str, Any]


def read_rippleedits(
    source: Source, limit: int | None = None, skip_bad: bool = False
) -> list[EditRequest]:
    """Read the edits of RippleEdits records, and what its authors ask about them as far as it fits.

    Of `Relation_Specificity`, questions about the subject become `subject_prompts`; those of
    `Logical_Generalization` and `Compositionality_I` and `_II` `portability_prompts`, with the
    first of the answers; those of `Subject_Aliasing` that ask for the new target paraphrases.
    `Forgetfulness` and the conditions of tests are left out.

    The name of the subject is the longest end of a question about it, without its verb, that stands
    in the edit's statement.

    Args:
        source: `popular.json`, `random.json` or `recent.json` (one JSON array), JSON lines with one
            record a line, or a hub data set of such records. `edit` with `prompt`, `subject_id` and
            `relation`, and a question about the subject are required.
        limit: read the first records only; None for all.
        skip_bad: leave out invalid records, and name them in the log.

    Returns:
        One request a record, in the order of the file; its id is its number from 0.

    Raises:
        FedEditError: see `read_zsre`.
    """
    return read_records(source, _request, "record of RippleEdits", limit=limit, skip_bad=skip_bad)


def _request(record: Any, index: int) -> EditRequest:
    edit = member(record, "edit")
    asked, target = _split(text_at(edit, "prompt"), text_at(edit, "relation"))
    own = text_at(edit, "subject_id")
    kept, implied, aliases = (_queries(record, names) for names in (_KEPT, _IMPLIED, (_ALIASES,)))
    about = [text for query in (*kept, *implied) if (text := _about(query, own))]
    subject = _subject(asked, about)
    at = place_of(subject, asked, "edit.prompt")
    before = edit.get("original_fact")
    true = _split(text_at(before, "prompt"), edit["relation"])[1] if before else None
    pairs = [pair for pair in map(_answered, implied) if pair]
    renamed = [pair[0] for pair in map(_answered, aliases) if pair and pair[1] == target]
    return EditRequest(
        id=str(index),
        subject=subject,
        prompt=asked[:at] + SLOT + asked[at + len(subject) :],
        target_new=target,
        target_true=true if true != target else None,
        paraphrase_prompts=tuple(renamed),
        subject_prompts=tuple(text for query in kept if (text := _about(query, own))),
        portability_prompts=tuple(prompt for prompt, _ in pairs),
        portability_targets=tuple(answer for _, answer in pairs),
    )


def _split(statement: str, relation: str) -> tuple[str, str]:
    """A statement as what is asked, and the answer behind its last verb.

    Raises:
        FedEditError: it has no verb where one is expected.
    """
    text = clean(statement).strip().removesuffix(".")
    for verb in (_VERBS[relation],) if relation in _VERBS else (" is ", " are "):
        asked, found, answer = text.rpartition(verb)
        if found and asked and answer:
            return asked + verb.rstrip(), answer
    raise FedEditError("edit.prompt must be a statement such as 'The capital of X is Y.'")


def _subject(asked: str, about: Sequence[str]) -> str:
    """The name that the edit's question and the others about its subject have in common."""
    inside = f" {asked} "
    found = ""
    for question in about:
        words = question.split()[:-1]  # without the verb
        ends = (words[start:] for start in range(len(words)))
        end = next((end for end in ends if f" {' '.join(end)} " in inside), [])
        while end and end[0] in _LINKS:
            end = end[1:]
        found = max(found, " ".join(end), key=len)
    if not found:
        raise FedEditError("no question of the record tells the name of the edit's subject")
    return found


def _queries(record: dict[str, Any], names: Sequence[str]) -> list[Query]:
    """The first query of every test of some criteria.

    Raises:
        FedEditError: a criterion is no list of tests with queries.
    """
    found = []
    for name in names:
        tests = record.get(name) or []
        if not isinstance(tests, list):
            raise FedEditError(f"{name} must be a list of tests")
        for test in tests:
            queries = test.get("test_queries") if isinstance(test, dict) else None
            if not isinstance(queries, list) or not all(isinstance(q, dict) for q in queries):
                raise FedEditError(f"{name} must be a list of tests with test_queries")
            found += queries[:1]
    return found


def _about(query: Query, subject_id: str) -> str | None:
    """A query's prompt, if it asks for one fact about the edit's subject."""
    prompt = query.get("prompt")
    plain = query.get("query_type", "regular") == "regular" and query.get("phrase") is None
    same = query.get("subject_id") == subject_id
    if not isinstance(prompt, str) or not is_text(prompt):
        return None
    return clean(prompt) if plain and same else None


def _answered(query: Query) -> tuple[str, str] | None:
    """A query's prompt and its first answer; None if one is missing."""
    prompt, answers = query.get("prompt"), query.get("answers")
    first = answers[0] if isinstance(answers, list) and answers else None
    value = first.get("value") if isinstance(first, dict) else None
    if not isinstance(prompt, str) or not isinstance(value, str):
        return None
    return (prompt, value.strip()) if is_text(prompt) and is_text(value) else None
