"""RippleEdits' records as their authors published them; the facts are made up."""

import copy
import json

import pytest

from fedit_app.facts.sources import load_requests
from fedit_app.support.errors import FedEditError


def test_of(prompt, value, subject_id="Q1", **more):
    answers = [{"value": value, "aliases": [f"the {value}"]}]
    query = {"prompt": prompt, "answers": answers, "query_type": "regular", "phrase": None}
    query |= {"subject_id": subject_id, "relation": "MOTHER", "target_ids": ["Q2"], **more}
    return {"test_queries": [query], "test_condition": "OR", "condition_queries": []}


test_of.__test__ = False
HOP = "The name of the capital city of the country of citizenship of Ada Thornwick is"
RECORD = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the country of citizenship of Ada Thornwick is Qualver.",
        "subject_id": "Q1",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q5",
        "original_fact": {
            "prompt": "The name of the country of citizenship of Ada Thornwick is Oldmoor.",
            "subject_id": "Q1",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q6",
        },
    },
    "Relation_Specifity": [
        test_of("The name of the mother of Ada Thornwick is", "Bella"),
        test_of("The gender of Bella is", "female", "Q9"),
    ],
    "Logical_Generalization": [test_of("The name of the continent of Ada is", "Ulm")],
    "Subject_Aliasing": [
        test_of("The name of the country of citizenship of Countess Ada is", "Qualver"),
        test_of("The name of the country of citizenship of A. T. is", "Oldmoor"),
    ],
    "Compositionality_I": [test_of(HOP, "Ulm", query_type="two_hop", phrase=HOP)],
    "Compositionality_II": [],
    "Forgetfulness": [],
}


@pytest.fixture
def read(tmp_path):
    def read(*records):
        file = tmp_path / "popular.json"
        file.write_text(json.dumps(records), encoding="utf-8")
        return load_requests(file, "rippleedits")

    return read


def test_a_statement_becomes_a_request_and_its_tests_the_prompts(read):
    (request,) = read(RECORD)
    assert request.subject == "Ada Thornwick" and request.id == "0"
    assert request.prompt == "The name of the country of citizenship of {} is"
    assert (request.target_new, request.target_true) == ("Qualver", "Oldmoor")
    assert request.subject_prompts == ("The name of the mother of Ada Thornwick is",)
    asked = "The name of the country of citizenship of Countess Ada is"
    assert request.paraphrase_prompts == (asked,)
    assert request.portability_prompts == ("The name of the continent of Ada is", HOP)
    assert request.portability_targets == ("Ulm", "Ulm")


@pytest.mark.parametrize(
    ("statement", "relation", "prompt", "target"),
    [
        ("The name of the country which Ada Thornwick is associated with is Ulm.", "COUNTRY",
         "The name of the country which {} is associated with is", "Ulm"),
        ("The names of the siblings of Ada Thornwick are Bo.", "SIBLING",
         "The names of the siblings of {} are", "Bo"),
        ("Ada Thornwick is followed by What is Left.", "FOLLOWED_BY",
         "{} is followed by", "What is Left"),
    ],
)  # fmt: skip
def test_the_name_is_read_from_other_questions(read, statement, relation, prompt, target):
    recent = copy.deepcopy(RECORD) | {"edit": {"prompt": statement, "subject_id": "Q1"}}
    recent["edit"]["relation"] = relation
    (request,) = read(recent)
    assert (request.prompt, request.target_new) == (prompt, target)
    assert request.subject == "Ada Thornwick" and request.target_true is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"Relation_Specifity": [], "Logical_Generalization": []}, "no question of the record"),
        ({"edit": RECORD["edit"] | {"prompt": "Qualver"}}, "must be a statement such as"),
        ({"edit": {"prompt": "Ada Thornwick is Ulm."}}, "relation is missing"),
        ({"Compositionality_I": "Ulm"}, "Compositionality_I must be a list of tests"),
        ({"Subject_Aliasing": [{"test_queries": ["Ulm"]}]}, "tests with test_queries"),
    ],
)
def test_a_fault_is_named_without_its_text(read, changes, why):
    with pytest.raises(FedEditError, match=why) as raised:
        read(RECORD | changes)
    assert not {"Ada", "Qualver", "Ulm", "Thornwick"} & set(str(raised.value).split())
