"""In-context editing: the fact is put before the prompt, and no weight changes.

As in RippleEdits (Cohen et al., TACL 2024, arXiv 2307.12976) the text begins with "Imagine that".
Which fact is put there, nobody says: the one whose words are nearest to the prompt's (TF-IDF), also
where it has nothing to do with it. It is the honest competitor of whoever has few facts and may
keep their texts beside the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fedit_app.evaluation.scores import Before
from fedit_app.experiments.baselines.training import Lesson
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel

_WORDS = r"(?u)\b\w+\b"


@contextmanager
def in_context(model: EditableModel, lesson: Lesson) -> Iterator[Before]:
    """Before each prompt the fact that is nearest to it."""
    yield nearest_fact(lesson.facts)


def nearest_fact(facts: Sequence[EditRequest]) -> Before:
    """What is put before a prompt: the fact with the largest cosine of word weights."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second

    statements = ["".join(fact.asked_new) for fact in facts]
    words = TfidfVectorizer(token_pattern=_WORDS)
    known = words.fit_transform(statements)

    def before(prompt: str) -> str:
        nearest = int((known @ words.transform([prompt]).T).toarray()[:, 0].argmax())
        return f"Imagine that {statements[nearest]}. "

    return before
