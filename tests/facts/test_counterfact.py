"""CounterFact records as they are published."""

import copy
import json
import re
from pathlib import Path

import pytest

from fedit_app.facts.counterfact import read_counterfact
from fedit_app.facts.implied import DESCRIBED, REVERSED
from fedit_app.support.errors import FedEditError

PUBLISHED = Path(__file__).parents[3] / "shared" / "data"
RECORD = {
    "case_id": 17,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The seat of {} is in",
        "relation_id": "P159",
        "target_new": {"str": "Qualverin", "id": "Q1"},
        "target_true": {"str": "Oldenmoor", "id": "Q2"},
        "subject": "Zanzibarium",
    },
    "paraphrase_prompts": ["Rain fell. Zanzibarium is based in", "Zanzibarium sits in"],
    "neighborhood_prompts": ["Cormorant is based in", "The seat of Bellhaven is in"],
    "attribute_prompts": ["Another is based in"],
    "generation_prompts": ["Zanzibarium is surrounded by", "It is", "Zanzibarium is surrounded by"],
}
SECRETS = ("Zanzibarium", "The seat of", "is in", "Qualverin", "Oldenmoor")
REMOVED = object()


def changed(path: str = "", value=REMOVED, **fields) -> dict:
    """The record with another value at a dotted path, or without it."""
    record = copy.deepcopy(RECORD) | fields
    if path:
        *parents, last = path.split(".")
        place = record
        for name in parents:
            place = place[name]
        if value is REMOVED:
            del place[last]
        else:
            place[last] = value
    return record


@pytest.fixture
def write(tmp_path):
    def write(*records, name: str = "counterfact.json"):
        file = tmp_path / name
        lines = [json.dumps(record) for record in records]
        text = "\n".join([*lines, ""]) if name.endswith(".jsonl") else json.dumps(records, indent=2)
        file.write_text(text, encoding="utf-8")
        return file

    return write


def refusal(file) -> str:
    with pytest.raises(FedEditError) as caught:
        read_counterfact(file)
    message = str(caught.value)
    assert file.name in message and str(file.parent) not in message
    assert not [secret for secret in SECRETS if secret in message]
    return message


@pytest.mark.parametrize("name", ["counterfact.json", "facts.jsonl"])
def test_a_record_becomes_a_request(write, name):
    first, second = read_counterfact(write(RECORD, changed(case_id="eighteen"), name=name))
    assert (first.id, second.id) == ("17", "eighteen")
    assert first.subject == "Zanzibarium"
    assert first.prompt == "The seat of {} is in"
    assert (first.target_new, first.target_true) == ("Qualverin", "Oldenmoor")
    assert first.paraphrase_prompts == tuple(RECORD["paraphrase_prompts"])
    assert first.neighborhood_prompts == tuple(RECORD["neighborhood_prompts"])
    assert first.generation_prompts == ("Zanzibarium is surrounded by", "It is"), "each once"
    assert (first.slot, first.relation) == (None, "P159")


def test_spaces_around_targets_are_dropped(write):
    record = changed("requested_rewrite.target_new.str", " Qualverin")
    record["requested_rewrite"]["target_true"]["str"] = "Oldenmoor "
    (request,) = read_counterfact(write(record))
    assert (request.target_new, request.target_true) == ("Qualverin", "Oldenmoor")


def test_a_record_may_have_no_relation_and_no_evaluation_prompts(write):
    record = changed("paraphrase_prompts")
    del record["neighborhood_prompts"], record["requested_rewrite"]["relation_id"]
    (request,) = read_counterfact(write(record))
    assert (request.paraphrase_prompts, request.neighborhood_prompts) == ((), ())
    assert request.relation is None


def about(case_id: int, relation: str, prompt: str, subject: str = "Zanzibarium") -> dict:
    record = changed("requested_rewrite.relation_id", relation, case_id=case_id)
    record["requested_rewrite"] |= {"prompt": prompt, "subject": subject}
    return record


def test_other_facts_about_a_subject_must_stay(write):
    first, second, *others = read_counterfact(
        write(
            about(1, "P159", "{} is based in"),
            about(2, "P37", "In {}, people speak"),
            about(3, "P37", "In {}, people speak", "Bellhaven"),
            about(4, "P159", "{} is based in", "Cormorant"),
            about(5, "P159", "{} sits in", "Cormorant"),
        )
    )
    assert first.subject_prompts == ("In Zanzibarium, people speak",)
    assert second.subject_prompts == ("Zanzibarium is based in",)
    assert [request.subject_prompts for request in others] == [()] * 3


def test_where_a_subject_has_two_facts_of_a_relation_neither_must_stay(write):
    requests = read_counterfact(
        write(
            about(1, "P159", "{} is based in"),
            about(2, "P190", "{} is a twin of"),
            about(3, "P190", "The twin of {} is"),
        )
    )
    assert [len(request.subject_prompts) for request in requests] == [0, 1, 1]


def test_a_fact_is_asked_the_other_way_round_in_the_words_of_its_relation(write):
    known, unknown = read_counterfact(
        write(about(1, "P159", "{} is based in"), about(2, "P9999", "{} hums"))
    )
    asked = "Qualverin is where one finds the headquarters of"
    assert known.turned(known.target_new) == asked and unknown.reversed_prompt is None


def test_one_hop_on_is_a_fact_about_the_new_target_with_the_subject_in_its_description(write):
    """P37 of Qualverin follows; its two twins and its visitors' fact do not."""
    first, *others = read_counterfact(
        write(
            about(1, "P159", "{} is based in"),
            about(2, "P37", "In {}, people speak", "Qualverin"),
            about(3, "P190", "{} is a twin of", "Qualverin"),
            about(4, "P17", "{} lies in", "Qualverin"),
            about(5, "P17", "{} is found in", "Qualverin"),
            about(6, "P413", "{} plays", "Bellhaven"),
        )
    )
    prompt = "In the place where Zanzibarium has its headquarters, people speak"
    assert first.portability_prompts == (prompt,)
    assert first.portability_targets == ("Oldenmoor",)
    assert others[-1].portability_prompts == (), "a position has no such description"


def test_a_description_at_the_beginning_is_written_as_one(write):
    first, _ = read_counterfact(
        write(about(1, "P20", "{} died in"), about(2, "P30", "{} belongs to", "Qualverin"))
    )
    assert first.portability_prompts == ("The place where Zanzibarium died belongs to",)


def test_every_relation_has_words_with_one_place():
    assert all(text.count("{}") == 1 for text in [*REVERSED.values(), *DESCRIBED.values()])
    assert DESCRIBED.keys() < REVERSED.keys()


@pytest.mark.parametrize("name", ["counterfact.json", "facts.jsonl"])
def test_the_limit_takes_the_first_records(write, name):
    file = write(*(changed(case_id=number) for number in range(5)), {"faulty": True}, name=name)
    assert [request.id for request in read_counterfact(file, 2)] == ["0", "1"]
    assert len(read_counterfact(file, 5)) == 5
    assert re.search("(record|line) 6: case_id is missing", refusal(file))


FAULTS = {
    "no object": ("text", "the record must be a JSON object, found str"),
    "no id": (changed("case_id"), "case_id is missing"),
    "id": (changed(case_id=1.5), "case_id must be a whole number or a string, found float"),
    "bool id": (changed(case_id=True), "case_id must be a whole number or a string, found bool"),
    "blank id": (changed(case_id=" "), "id is empty"),
    "no rewrite": (changed("requested_rewrite"), "requested_rewrite.subject is missing"),
    "rewrite": (
        changed(requested_rewrite=["Qualverin"]),
        "requested_rewrite must be a JSON object, found list",
    ),
    "no target": (
        changed("requested_rewrite.target_new.str"),
        "requested_rewrite.target_new.str is missing",
    ),
    "bare target": (
        changed("requested_rewrite.target_new", "Qualverin"),
        "requested_rewrite.target_new must be a JSON object, found str",
    ),
    "empty target": (
        changed("requested_rewrite.target_true.str", " "),
        "requested_rewrite.target_true.str must be a non-empty string, found an empty one",
    ),
    "number": (
        changed("requested_rewrite.subject", 7),
        "requested_rewrite.subject must be a non-empty string, found int",
    ),
    "no placeholder": (
        changed("requested_rewrite.prompt", "Zanzibarium and Zanzibarium are in"),
        "prompt has 0 placeholders",
    ),
    "relation": (
        changed("requested_rewrite.relation_id", 159),
        "requested_rewrite.relation_id must be a non-empty string, found int",
    ),
    "prompts": (changed(paraphrase_prompts="Zanzibarium"), "paraphrase_prompts must be a list"),
    "empty prompt": (changed(neighborhood_prompts=[""]), "neighborhood_prompts must be a list"),
}


@pytest.mark.parametrize(("record", "told"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_record_is_named_and_not_quoted(write, record, told):
    message = refusal(write(changed(case_id=1), record))
    assert f"record 2: {told}" in message


def test_a_case_id_is_used_once(write):
    message = refusal(write(RECORD, changed(case_id=18), changed(case_id="17")))
    assert "record 3: its case_id was used in record 1" in message


def test_several_faulty_records_are_listed_and_the_rest_counted(write):
    message = refusal(write(RECORD, *(changed(case_id=None) for _ in range(8))))
    assert all(f"record {number}: " in message for number in range(2, 7))
    assert "record 7" not in message
    assert "and 3 more records" in message


def test_a_file_that_cannot_be_read(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "absent.json")
    latin = tmp_path / "latin.json"
    latin.write_bytes('["é"]'.encode("latin-1"))
    assert "not UTF-8" in refusal(latin)


@pytest.mark.parametrize("text", ["[]", "", "\n\n"])
def test_a_file_without_a_record(tmp_path, text):
    file = tmp_path / "empty.json"
    file.write_text(text)
    assert "holds no record" in refusal(file)


@pytest.mark.parametrize(
    ("text", "line"), [('[\n{"case_id": 1},\n{]', 3), ('{"case_id": 1}\n\n{"case_id"}\n', 3)]
)
def test_damaged_json_is_located(tmp_path, text, line):
    file = tmp_path / "damaged.json"
    file.write_text(text)
    message = refusal(file)
    assert f"line {line}: not JSON" in message


def published(name: str) -> Path:
    file = PUBLISHED / name
    if not file.exists():
        pytest.skip(f"{name} is not in a folder shared/data beside the project")
    return file


def test_the_published_records_load():
    requests = read_counterfact(published("counterfact_1500.json"))
    assert len(requests) == 1500
    assert {len(request.paraphrase_prompts) for request in requests} == {2}
    assert {len(request.neighborhood_prompts) for request in requests} == {10}
    assert len({request.relation for request in requests}) == 34
    assert requests[0].text == "The mother tongue of Danielle Darrieux is"
    assert (requests[0].target_new, requests[0].target_true) == ("English", "French")


@pytest.mark.long
def test_the_published_facts_load():
    requests = read_counterfact(published("counterfact_facts_21919.jsonl"))
    assert len(requests) == 21919
    assert sum(bool(request.subject_prompts) for request in requests) == 1691
