"""KnowEdit records as its authors published them; the facts are made up."""

import json

import pytest

from fedit_app.facts.knowedit import read_knowedit
from fedit_app.facts.sources import load_requests
from fedit_app.support.errors import FedEditError

RECORD = {
    "subject": "Zanzibarium",
    "prompt": "The name of the seat of Zanzibarium is",
    "target_new": "Qualverin",
    "ground_truth": ["Bellhaven", "Bellhaven-on-Sea"],
    "rephrase": "Where does Zanzibarium have its seat?",
    "portability": {
        "Subject_Aliasing": [
            {
                "prompt": "The name of the seat of Zanz Inc. is",
                "ground_truth": [["Qualverin", "Q"]],
            },
            {"prompt": "The seat of Zanzi is", "ground_truth": [["Oldenmoor"]]},
        ],
        "Reasoning": [{"prompt": "The mayor of its seat is", "ground_truth": [["Thornwick"]]}],
        "Logical_Generalization": [
            {"prompt": "Qualverin is the seat of", "ground_truth": [["Zanzibarium", "Zanzi"]]}
        ],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The name of the founder of Zanzibarium is", "ground_truth": [["Ada"]]},
            {"prompt": "nq question: who discovered Cormorant", "ground_truth": ["Thornwick"]},
            {"prompt": "The motto of Zanzibarium is", "ground_truth": [[]]},
        ],
        "Forgetfulness": [{"prompt": "Seats of Zanzibarium are", "ground_truth": [["Ulm"]]}],
    },
}
BIOGRAPHY = {
    "concept": "Ada Thornwick",
    "text": "This is a biography about Ada Thornwick. Ada Thornwick is",
    "labels": "a painter of Qualverin.",
    "locality": {},
}


@pytest.fixture
def write(tmp_path):
    def write(*records):
        file = tmp_path / "test_cf.json"
        file.write_text(json.dumps(records), encoding="utf-8")
        return file

    return write


def test_what_its_authors_ask_becomes_the_prompts_of_a_request(write):
    (request,) = read_knowedit(write(RECORD))
    assert request.prompt == "The name of the seat of {} is" and request.id == "0"
    assert (request.target_new, request.target_true) == ("Qualverin", "Bellhaven")
    assert request.paraphrase_prompts == (
        "Where does Zanzibarium have its seat?",
        "The name of the seat of Zanz Inc. is",
    )
    assert request.subject_prompts == ("The name of the founder of Zanzibarium is",)
    assert request.neighborhood_prompts == ("nq question: who discovered Cormorant",)
    assert request.neighborhood_targets == ("Thornwick",)
    asked = ("The mayor of its seat is", "Qualverin is the seat of")
    assert request.portability_prompts == asked
    assert request.portability_targets == ("Thornwick", "Zanzibarium")


def test_a_biography_has_other_names_for_its_fields(write):
    (request,) = load_requests(write(BIOGRAPHY), "knowedit")
    assert request.subject == "Ada Thornwick" and request.target_true is None
    assert request.prompt == "This is a biography about {}. Ada Thornwick is"


def test_a_true_target_that_is_the_new_one_is_none(write):
    (request,) = read_knowedit(write(RECORD | {"ground_truth": "Qualverin"}))
    assert request.target_true is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prompt": "The name of the seat is"}, "prompt does not contain the subject"),
        ({"target_new": ""}, "target_new must be a non-empty string"),
        ({"locality": ["x"]}, "locality must be a JSON object"),
        ({"portability": {"Subject_Aliasing": ["Oldenmoor"]}}, "must be a list of JSON objects"),
    ],
)
def test_a_fault_is_named_without_its_text(write, changes, why):
    with pytest.raises(FedEditError, match=why) as raised:
        read_knowedit(write(RECORD | changes))
    for secret in ("Zanz", "Qualverin", "Bellhaven", "Oldenmoor", "seat"):
        assert secret not in str(raised.value)
    assert len(read_knowedit(write(RECORD | changes, RECORD), skip_bad=True)) == 1
