"""MQuAKE's records, and AKEW's, as their authors published them; the facts are made up."""

import json

import pytest

from fedit_app.facts.mquake import read_mquake
from fedit_app.facts.sources import load_requests
from fedit_app.support.errors import FedEditError


def rewrite(subject, prompt, new, true, **more):
    return {
        "prompt": prompt,
        "relation_id": "P159",
        "target_new": {"str": new, "id": "Q1"},
        "target_true": {"str": true, "id": "Q2"},
        "subject": subject,
        "question": f"Where does {subject} have its seat?",
        **more,
    }


RECORD = {
    "case_id": 7,
    "requested_rewrite": [
        rewrite("Zanzibarium", "The seat of {} is in", "Qualverin", "Oldenmoor"),
        rewrite("Qualverin", "The mayor of {} is", "Ada", "Thornwick", relation_id=None),
    ],
    "questions": ["Who is mayor where Zanzibarium sits?", "Zanzibarium's seat has which mayor?"],
    "answer": "Thornwick",
    "answer_alias": [],
    "new_answer": "Ada",
    "new_answer_alias": ["Ada I"],
    "single_hops": [],
    "new_single_hops": [],
    "orig": {},
}


@pytest.fixture
def write(tmp_path):
    def write(*records):
        file = tmp_path / "MQuAKE-CF-3k.json"
        file.write_text(json.dumps(records), encoding="utf-8")
        return file

    return write


def test_each_edit_of_a_record_is_a_request_and_the_last_one_is_asked_what_follows(write):
    alone = {"case_id": 8, "requested_rewrite": RECORD["requested_rewrite"][:1]}
    first, second, third = load_requests(write(RECORD, RECORD | alone), "mquake")
    assert [request.id for request in (first, second, third)] == ["7-1", "7-2", "8-1"]
    assert first.text == "The seat of Zanzibarium is in" and first.relation == "P159"
    assert (first.target_new, first.target_true) == ("Qualverin", "Oldenmoor")
    assert first.paraphrase_prompts == ("Where does Zanzibarium have its seat?",)
    assert first.portability_prompts == () and second.relation is None
    for last in (second, third):
        assert last.portability_prompts == tuple(RECORD["questions"])
        assert last.portability_targets == ("Ada", "Ada")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"requested_rewrite": {}}, "requested_rewrite must be a non-empty list"),
        ({"requested_rewrite": ["x"]}, "must be a list of JSON objects"),
        ({"questions": "Oldenmoor"}, "questions must be a list"),
        ({"new_answer": ["Oldenmoor"]}, "new_answer must be a non-empty string"),
        ({"case_id": True}, "case_id must be a whole number"),
    ],
)
def test_a_fault_is_named_without_its_text(write, changes, why):
    with pytest.raises(FedEditError, match=why) as raised:
        read_mquake(write(RECORD | changes))
    assert "record 1" in str(raised.value) and "Oldenmoor" not in str(raised.value)


def test_a_case_that_is_there_twice_is_refused(write):
    with pytest.raises(FedEditError, match="record 2: its case_id was used in record 1"):
        read_mquake(write(RECORD, RECORD))


def test_akews_files_are_read_by_the_readers_of_their_forms(tmp_path):
    """The text that AKEW would edit from is left out."""
    unstructured = {
        "fact_new_uns": "Zanzibarium moved.",
        "unsfact_triplets_GPT": [{"subject": "Zanzibarium", "prompt": "{} is in", "target": "Q"}],
    }
    one, other = RECORD["requested_rewrite"]
    several = RECORD | {"requested_rewrite": [one | unstructured, other | unstructured]}
    update = {"case_id": 3, "requested_rewrite": one | {"time_new": "2023"} | unstructured}
    for dataset, record, count in (("mquake", several, 2), ("counterfact", update, 1)):
        file = tmp_path / f"{dataset}.json"
        file.write_text(json.dumps([record]))
        requests = load_requests(file, dataset)
        assert len(requests) == count and requests[0].target_new == "Qualverin"
