"""WikiBigEdit's and QAEdit's records as their authors published them; the facts are made up."""

import json

import pytest

from fedit_app.facts.sources import load_requests
from fedit_app.support.errors import FedEditError

WIKIBIGEDIT = {
    "tag": "new",
    "subject": "Zanzibarium",
    "relation": "headquarters location",
    "object": "Qualverin",
    "update": "Where is the seat of Zanzibarium?",
    "rephrase": "In which town does Zanzibarium have its seat?",
    "personas": "Oi, where's Zanzibarium's seat then?",
    "ans": "Qualverin",
    "loc": "Where is the seat of Cormorant?",
    "loc_ans": "Bellhaven",
    "mhop": "Who is the mayor of the seat of Zanzibarium?",
    "mhop_ans": "Ada Thornwick",
}
QAEDIT = {
    "id": 1104,
    "source": "NQ",
    "prompt": "where is the seat of Zanzibarium?",
    "target": "Qualverin",
    "subject": "Zanzibarium",
    "rephrase": "In which town does Zanzibarium have its seat?",
    "locality": [
        {"loc": "who founded Cormorant", "loc_ans": "Ada"},
        {"loc": "where is Bellhaven", "loc_ans": "Ulm"},
    ],
}


@pytest.fixture
def read(tmp_path):
    def read(dataset, *records):
        file = tmp_path / f"{dataset}.json"
        file.write_text(json.dumps(records), encoding="utf-8")
        return load_requests(file, dataset)

    return read


def test_wikibigedit_asks_in_other_words_of_others_and_of_what_follows(read):
    (request,) = read("wikibigedit", WIKIBIGEDIT)
    assert request.prompt == "Where is the seat of {}?" and request.id == "0"
    assert (request.target_new, request.target_true) == ("Qualverin", None)
    assert request.paraphrase_prompts == (WIKIBIGEDIT["rephrase"], WIKIBIGEDIT["personas"])
    assert request.neighborhood_prompts == ("Where is the seat of Cormorant?",)
    assert request.neighborhood_targets == ("Bellhaven",)
    assert request.portability_prompts == ("Who is the mayor of the seat of Zanzibarium?",)
    assert request.portability_targets == ("Ada Thornwick",)


def test_a_record_of_wikibigedit_may_have_no_further_question(read):
    bare = {name: WIKIBIGEDIT[name] for name in ("subject", "update", "ans")}
    (request,) = read("wikibigedit", bare | {"mhop": None, "mhop_ans": None})
    assert request.paraphrase_prompts == request.portability_prompts == ()
    assert request.neighborhood_prompts == ()


def test_qaedit_has_questions_about_others_beside_it(read):
    (request,) = read("qaedit", QAEDIT)
    assert request.prompt == "where is the seat of {}?" and request.target_new == "Qualverin"
    assert request.paraphrase_prompts == (QAEDIT["rephrase"],)
    assert request.neighborhood_prompts == ("who founded Cormorant", "where is Bellhaven")
    assert request.neighborhood_targets == ("Ada", "Ulm")


@pytest.mark.parametrize(
    ("dataset", "record", "why"),
    [
        ("wikibigedit", WIKIBIGEDIT | {"update": "Where is it?"}, "update does not contain"),
        ("wikibigedit", WIKIBIGEDIT | {"mhop_ans": None}, "mhop_ans must be a non-empty string"),
        ("wikibigedit", WIKIBIGEDIT | {"rephrase": 3}, "rephrase must be a non-empty string"),
        ("wikibigedit", ["Qualverin"], "the record must be a JSON object, found list"),
        ("qaedit", QAEDIT | {"locality": ["Ulm"]}, "locality must be a list of JSON objects"),
        ("qaedit", {"prompt": "Zanzibarium?", "subject": "Zanzibarium"}, "target is missing"),
    ],
)
def test_a_fault_is_named_without_its_text(read, dataset, record, why):
    with pytest.raises(FedEditError, match=why) as raised:
        read(dataset, record)
    assert not {"Zanz", "Qualverin", "Ulm"} & set(str(raised.value).split())
