"""What follows from a CounterFact edit, made by rule from the file's own facts.

Two kinds of forms, after RippleEdits (Cohen et al., TACL 2024, arXiv 2307.12976) and MQuAKE (Zhong
et al., EMNLP 2023, arXiv 2305.14795):

- *Reversed*: the relation the other way round. "The mother tongue of X is" becomes "Y is the mother
  tongue of", which X follows.
- *One hop on*: where the file has a fact about the new target Y, its prompt with a description of Y
  by X in the place of Y. Of "X died in" and "Y is located in the country of": "The place where X
  died is located in the country of", which the present target of the fact about Y follows.

The words of a relation are in two tables, by Wikidata's number.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from fedit_app.facts.request import SLOT, EditRequest, capitalised

REVERSED = {
    "P17": "{} is the country in which one finds",
    "P19": "{} is the birthplace of",
    "P20": "{} is the place of death of",
    "P27": "{} is the home country of",
    "P30": "{} is the continent to which belongs",
    "P36": "{} is the capital of",
    "P37": "{} is an official language of",
    "P39": "{} is a position held by",
    "P101": "{} is the field of",
    "P103": "{} is the mother tongue of",
    "P106": "{} is the profession of",
    "P108": "{} is the employer of",
    "P127": "{} is the owner of",
    "P131": "{} is the place in which one finds",
    "P136": "{} is the genre of",
    "P138": "{} is the namesake of",
    "P140": "{} is the religion of",
    "P159": "{} is where one finds the headquarters of",
    "P176": "{} is the maker of",
    "P178": "{} is the developer of",
    "P190": "{} is the twin city of",
    "P264": "{} is the music label of",
    "P276": "{} is the location of",
    "P364": "{} is the original language of",
    "P407": "{} is the language of",
    "P413": "{} is the playing position of",
    "P449": "{} is the network that first aired",
    "P463": "{} counts among its members",
    "P495": "{} is the country of origin of",
    "P641": "{} is the sport of",
    "P740": "{} is the place of origin of",
    "P937": "{} is the place of work of",
    "P1303": "{} is the instrument played by",
    "P1412": "{} is a language spoken by",
}
"""Relation -> prompt with the place of the target, which the subject follows."""

DESCRIBED = {
    "P17": "the country in which one finds {}",
    "P19": "the place where {} was born",
    "P20": "the place where {} died",
    "P27": "the home country of {}",
    "P36": "the capital of {}",
    "P108": "the employer of {}",
    "P127": "the owner of {}",
    "P131": "the place in which one finds {}",
    "P138": "the namesake of {}",
    "P140": "the religion of {}",
    "P159": "the place where {} has its headquarters",
    "P176": "the maker of {}",
    "P178": "the developer of {}",
    "P276": "the location of {}",
    "P495": "the country of origin of {}",
    "P740": "the place of origin of {}",
    "P937": "the place where {} worked",
}
"""Relation -> description of its target by the subject."""

_HOPS = ("P17", "P30", "P36", "P37", "P131", "P138", "P140", "P159", "P740")
"""Relations of the second fact: those of which a subject has one target, or one that is named."""


def with_implied(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The requests with their reversed prompts and with what is one hop on.

    Args:
        requests: those of a whole file, with their relations and present targets.
    """
    about: dict[str, dict[str, list[EditRequest]]] = defaultdict(lambda: defaultdict(list))
    for request in requests:
        if request.relation in _HOPS and request.target_true is not None:
            about[request.subject][request.relation].append(request)

    def hops(request: EditRequest) -> list[tuple[str, str]]:
        described = DESCRIBED.get(request.relation or "")
        known = about.get(request.target_new)
        if described is None or known is None:
            return []
        y = described.replace(SLOT, request.subject)
        alone = [facts[0] for facts in known.values() if len(facts) == 1]
        return [
            (capitalised(fact.prompt.replace(SLOT, y)), fact.target_true or "") for fact in alone
        ]

    def with_those(request: EditRequest) -> EditRequest:
        pairs = hops(request)
        return dataclasses.replace(
            request,
            reversed_prompt=REVERSED.get(request.relation or ""),
            portability_prompts=tuple(prompt for prompt, _ in pairs),
            portability_targets=tuple(target for _, target in pairs),
        )

    return [with_those(request) for request in requests]
