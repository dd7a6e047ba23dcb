"""The file format in which organisations write down their corrections."""

import json

import pytest

from fedit_app.facts.jsonl import read_requests
from fedit_app.support.errors import FedEditError

GOOD = {
    "id": "fact-1",
    "subject": "Zanzibarium",
    "prompt": "The seat of {} is in",
    "target_new": "Qualverin",
}
SECRETS = ("Zanzibarium", "The seat of", "is in", "Qualverin")


@pytest.fixture
def write(tmp_path):
    def write(*lines: dict | str, end: str = "\n"):
        file = tmp_path / "node.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        file.write_bytes(end.join([*texts, ""]).encode())
        return file

    return write


def refusal(file) -> str:
    with pytest.raises(FedEditError) as caught:
        read_requests(file)
    message = str(caught.value)
    assert file.name in message and str(file.parent) not in message
    assert "\n" not in message
    return message


def test_all_fields_are_read(write):
    full = GOOD | {
        "target_true": "Oldenmoor",
        "paraphrase_prompts": ["Where?"],
        "neighborhood_prompts": ["A", "B"],
        "neighborhood_targets": ["one", "two"],
        "subject_prompts": ["Zanzibarium is"],
        "portability_prompts": ["The town of its seat speaks"],
        "portability_targets": ["Latin "],
        "reversed_prompt": "{} has the seat of",
        "generation_prompts": ["Once,", "Then"],
        "slot": 2,
        "relation": "P159",
        "question": "Where is the seat of {}?",
        "paraphrase_questions": ["Where does Zanzibarium have its seat?"],
    }
    first, second = read_requests(write(full, "", GOOD | {"id": "fact-2"}))

    assert first.id == "fact-1"
    assert first.text == "The seat of Zanzibarium is in"
    assert (first.target_new, first.target_true) == ("Qualverin", "Oldenmoor")
    assert (first.paraphrase_prompts, first.neighborhood_prompts) == (("Where?",), ("A", "B"))
    assert first.neighborhood_targets == ("one", "two")
    assert first.subject_prompts == ("Zanzibarium is",)
    assert first.portability_prompts == ("The town of its seat speaks",)
    assert first.portability_targets == ("Latin",)
    assert first.turned("Ulm") == "Ulm has the seat of" and second.reversed_prompt is None
    assert first.generation_prompts == ("Once,", "Then")
    assert (first.relation, second.relation) == ("P159", None)
    assert (first.question, second.question) == ("Where is the seat of {}?", None)
    assert first.paraphrase_questions == ("Where does Zanzibarium have its seat?",)
    assert (first.slot, second.slot) == (2, None)
    assert second.target_true is None
    assert second.paraphrase_prompts == ()


def test_null_means_absent_for_optional_fields(write):
    (request,) = read_requests(write(GOOD | {"target_true": None, "slot": None, "relation": None}))

    assert (request.target_true, request.slot, request.relation) == (None, None, None)


def test_files_of_other_systems_are_read(write, tmp_path):
    windows = write(GOOD, GOOD | {"id": "fact-2"}, end="\r\n")
    assert len(read_requests(windows)) == 2

    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert read_requests(marked)[0].id == "fact-1"


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\u2029"])
def test_a_line_ends_at_a_newline_only(write, separator):
    record = GOOD | {"neighborhood_prompts": [f"one{separator}text"]}
    (request,) = read_requests(write(json.dumps(record, ensure_ascii=False)))

    assert request.neighborhood_prompts == ("one\ntext",)


def test_a_file_that_cannot_be_read(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "absent.jsonl")
    assert "cannot be read" in refusal(tmp_path)

    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"id": "é"}'.encode("latin-1"))
    assert "UTF-8" in refusal(latin)


@pytest.mark.parametrize("lines", [(), ("", "  ")])
def test_a_file_without_a_request(write, lines):
    assert "no edit request" in refusal(write(*lines))


FAULTS = {
    "not JSON": ('{"id": "fact-1", "subject": "Zanzibarium"', "not JSON"),
    "two objects": (json.dumps(GOOD) + json.dumps(GOOD), "not JSON"),
    "list": ('["Zanzibarium", "Qualverin"]', "object is needed, found list"),
    "string": ('"Zanzibarium"', "object is needed, found str"),
    "missing": ({k: v for k, v in GOOD.items() if k != "prompt"}, "prompt is missing"),
    "no subject": ({k: v for k, v in GOOD.items() if k != "subject"}, "subject is empty"),
    "two missing": ({"id": "fact-1", "subject": "Zanzibarium"}, "prompt, target_new is missing"),
    "misspelt": (GOOD | {"target_ture": "Qualverin"}, "did you mean target_true"),
    "unknown": (GOOD | {"weight": 3}, f"field {len(GOOD) + 1} of the object has no known name"),
    "text as a name": ({"Zanzibarium is in": "Qualverin"} | GOOD, "field 1 of the object has no"),
    "twice": (json.dumps(GOOD)[:-1] + ', "prompt": "Qualverin {} is"}', "the name of one before"),
    "twice within": ('{"id": "1", "prompt": [{"Qualverin": 1, "Qualverin": 2}]}', "field 2 of an"),
    "number": (GOOD | {"target_new": 1889}, "target_new must be a string, found int"),
    "null": (GOOD | {"prompt": None}, "prompt must be a string, found NoneType"),
    "id number": (GOOD | {"id": 7}, "id must be a string, found int"),
    "id empty": (GOOD | {"id": " "}, "id is empty"),
    "no placeholder": (GOOD | {"prompt": "The seat of Qualverin is in"}, "0 placeholders"),
    "two placeholders": (GOOD | {"prompt": "The seat of {} is in {}"}, "2 placeholders"),
    "empty subject": (GOOD | {"subject": ""}, "subject is empty"),
    "empty target": (GOOD | {"target_new": ""}, "target_new is empty"),
    "blank target": (GOOD | {"target_new": "  "}, "target_new is empty"),
    "empty true": (GOOD | {"target_true": ""}, "target_true is empty"),
    "prompts text": (GOOD | {"paraphrase_prompts": "Qualverin"}, "paraphrase_prompts must be"),
    "prompts empty": (GOOD | {"neighborhood_prompts": [""]}, "neighborhood_prompts must be"),
    "prompts mixed": (GOOD | {"paraphrase_prompts": ["Qualverin", 1]}, "paraphrase_prompts must"),
    "targets": (
        GOOD | {"neighborhood_prompts": ["A", "B"], "neighborhood_targets": ["Qualverin"]},
        "neighborhood_targets has 1 entries for 2 neighborhood_prompts",
    ),
    "implied": (
        GOOD | {"portability_prompts": ["A", "B"], "portability_targets": ["Qualverin"]},
        "portability_targets has 1 entries for 2 portability_prompts",
    ),
    "reversed": (GOOD | {"reversed_prompt": "Qualverin is"}, "reversed_prompt has 0 placeholders"),
    "relation": (GOOD | {"relation": "is in/Qualverin"}, "relation must be a name of letters"),
    "relation path": (GOOD | {"relation": ".."}, "relation must be a name of letters"),
    "relation number": (GOOD | {"relation": 159}, "relation must be a string, found int"),
    "slot 0": (GOOD | {"slot": 0}, "slot 0 must be at least 1"),
    "slot float": (GOOD | {"slot": 1.5}, "slot must be a whole number from 1, found 1.5"),
    "slot bool": (GOOD | {"slot": True}, "slot must be a whole number"),
    "slot text": (GOOD | {"slot": "Qualverin"}, "slot must be a whole number from 1, found str"),
}


@pytest.mark.parametrize(("line", "told"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_line_is_named_and_not_quoted(write, line, told):
    message = refusal(write(GOOD | {"id": "before"}, line))

    assert "line 2: " in message
    assert told in message
    assert not [secret for secret in SECRETS if secret in message]


def test_a_duplicate_id_names_both_lines_and_keeps_the_id(write):
    message = refusal(write(GOOD, "", GOOD | {"id": "fact-2"}, GOOD))

    assert "line 4" in message
    assert "line 1" in message
    assert "fact-1" not in message


def test_several_faulty_lines_are_listed_and_the_rest_counted(write):
    bad = [GOOD | {"id": f"fact-{number}", "prompt": "x"} for number in range(8)]
    message = refusal(write(GOOD | {"id": "first"}, *bad))

    assert all(f"line {number}: " in message for number in range(2, 7))
    assert "line 7: " not in message
    assert "3 more lines, see the log" in message
