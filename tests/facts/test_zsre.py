"""zsRE records as MEND published them."""

import json
from pathlib import Path

import pytest

from fedit_app.facts.zsre import read_zsre
from fedit_app.support.errors import FedEditError

PUBLISHED = Path(__file__).parents[3] / "shared" / "data"
RECORD = {
    "subject": "Zanzibarium",
    "src": "What city is the seat of Zanzibarium?",
    "pred": "Bellhaven",
    "rephrase": "Where does Zanzibarium have its seat?",
    "alt": "Oldenmoor",
    "answers": [" Qualverin", "Qualverin-on-Sea"],
    "loc": "nq question: who discovered Cormorant",
    "loc_ans": "Captain Thornwick",
    "cond": "Bellhaven >> Oldenmoor || What city is the seat of Zanzibarium?",
}
SECRETS = ("Zanzibarium", "seat", "Qualverin", "Oldenmoor", "Cormorant", "Thornwick", "Bellhaven")


def changed(*without: str, **fields) -> dict:
    return {key: value for key, value in (RECORD | fields).items() if key not in without}


@pytest.fixture
def write(tmp_path):
    def write(*records, lines: bool = False):
        file = tmp_path / "zsre.json"
        text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records, indent=1)
        file.write_text(text, encoding="utf-8")
        return file

    return write


@pytest.mark.parametrize("lines", [False, True])
def test_a_record_becomes_a_request(write, lines):
    first, second = read_zsre(write(RECORD, RECORD, lines=lines))

    assert (first.id, second.id) == ("0", "1")
    assert first.subject == "Zanzibarium"
    assert first.prompt == "What city is the seat of {}?"
    assert first.target_new == "Qualverin"  # the first answer, not `alt`
    assert (first.target_true, first.slot, first.relation) == (None, None, None)
    assert first.paraphrase_prompts == (RECORD["rephrase"],)
    assert first.neighborhood_prompts == ("nq question: who discovered Cormorant?",)
    assert first.neighborhood_targets == ("Captain Thornwick",)


def test_the_subject_is_replaced_once(write):
    (request,) = read_zsre(write(changed(src="Is Zanzibarium of Zanzibarium?")))
    assert request.prompt == "Is {} of Zanzibarium?"
    assert request.text == "Is Zanzibarium of Zanzibarium?"


def test_a_record_may_be_without_evaluation_prompts(write):
    (request,) = read_zsre(write(changed("rephrase", "loc", "loc_ans", "alt", "pred", "cond")))
    assert request.paraphrase_prompts == request.neighborhood_prompts == ()
    assert request.neighborhood_targets == ()


def test_the_limit_takes_the_first_records(write):
    file = write(RECORD, RECORD, {"faulty": True})
    assert len(read_zsre(file, 2)) == 2
    with pytest.raises(FedEditError, match="record 3"):
        read_zsre(file)


FAULTS = {
    "no object": ("Zanzibarium", "the record must be a JSON object, found str"),
    "no subject": (changed("subject"), "subject is missing"),
    "no question": (changed("src"), "src is missing"),
    "another subject": (changed(subject="Cormorant"), "src does not contain the subject"),
    "braces": (changed(src="What {} is Zanzibarium?"), "prompt has 2 placeholders"),
    "no answers": (changed("answers"), "answers is missing"),
    "empty answers": (changed(answers=[]), "answers must be a non-empty list"),
    "bare answer": (changed(answers="Qualverin"), "answers must be a non-empty list"),
    "empty answer": (changed(answers=[" "]), "answers[0] must be a non-empty string"),
    "rephrase": (changed(rephrase=7), "rephrase must be a non-empty string, found int"),
    "half a neighbour": (changed("loc_ans"), "loc_ans is missing"),
    "other half": (changed("loc"), "loc is missing"),
}


@pytest.mark.parametrize(("record", "told"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_record_is_named_and_not_quoted(write, record, told):
    with pytest.raises(FedEditError) as caught:
        read_zsre(write(RECORD, record))
    message = str(caught.value)
    assert f"data file zsre.json: record 2: {told}" in message
    assert not [secret for secret in SECRETS if secret in message]


def test_a_file_without_a_record(write):
    with pytest.raises(FedEditError, match="holds no record of zsRE"):
        read_zsre(write())


@pytest.mark.parametrize(("name", "count"), [("eval_600", 600), ("train_1000", 1000)])
def test_the_published_records_load(name, count):
    file = PUBLISHED / f"zsre_mend_{name}.json"
    if not file.exists():
        pytest.skip(f"{file.name} is not in a folder shared/data beside the project")
    requests = read_zsre(file)
    assert len(requests) == count
    assert {len(request.neighborhood_targets) for request in requests} == {1}
    assert all(request.text.endswith("?") for request in requests)
