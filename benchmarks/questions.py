"""Questions for CounterFact's relations, as the user of a chat model asks them."""

from __future__ import annotations

import dataclasses

from fedit_app.facts.request import EditRequest
from fedit_app.models.chat import COMPLETE

_QUESTIONS = {
    "P17": "In which country is {}?",
    "P19": "Where was {} born?",
    "P20": "Where did {} die?",
    "P27": "Of which country is {} a citizen?",
    "P30": "On which continent is {}?",
    "P36": "What is the capital of {}?",
    "P37": "What is the official language of {}?",
    "P39": "Which position does {} hold?",
    "P101": "In which field does {} work?",
    "P103": "What is the mother tongue of {}?",
    "P106": "What is the profession of {}?",
    "P108": "Who employs {}?",
    "P127": "Who owns {}?",
    "P131": "Where is {}?",
    "P136": "Which genre is {} known for?",
    "P138": "After what is {} named?",
    "P140": "What is the religion of {}?",
    "P159": "Where is the head office of {}?",
    "P176": "Who makes {}?",
    "P178": "Who developed {}?",
    "P190": "What is the twin city of {}?",
    "P264": "Which label releases the music of {}?",
    "P276": "Where is {}?",
    "P364": "What is the original language of {}?",
    "P407": "In which language is {}?",
    "P413": "In which position does {} play?",
    "P449": "On which network was {} first shown?",
    "P463": "Of what is {} a member?",
    "P495": "From which country does {} come?",
    "P641": "Which sport does {} play?",
    "P740": "Where was {} founded?",
    "P937": "In which city did {} work?",
    "P1303": "Which instrument does {} play?",
    "P1412": "Which language does {} speak?",
}


def with_questions(request: EditRequest) -> EditRequest:
    """A CounterFact record with the question of its relation.

    The questions in other words are its paraphrase prompts, to be completed.
    """
    return dataclasses.replace(
        request,
        question=_QUESTIONS.get(request.relation or ""),
        paraphrase_questions=tuple(COMPLETE + prompt for prompt in request.paraphrase_prompts),
    )
