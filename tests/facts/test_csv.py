"""Edit requests in a table, as spreadsheet programs write them."""

import csv

import pytest

from fedit_app.facts.jsonl import read_requests
from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError

HEADER = ["id", "subject", "prompt", "target_new"]
ROW = ["fact-1", "Zanzibarium", "The seat of {} is in", "Qualverin"]
SECRETS = ("Zanzibarium", "The seat of", "Qualverin")


@pytest.fixture
def write(tmp_path):
    def write(*rows: list[str], delimiter: str = ",", encoding: str = "utf-8", name="node.csv"):
        file = tmp_path / name
        with file.open("w", encoding=encoding, newline="") as stream:
            csv.writer(stream, delimiter=delimiter).writerows(rows)
        return file

    return write


def refusal(file) -> str:
    with pytest.raises(FedEditError) as caught:
        read_requests(file)
    message = str(caught.value)
    assert message.startswith(f"data file {file.name}: ")
    assert not [secret for secret in SECRETS if secret in message]
    return message


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_row_is_a_request(write, delimiter, encoding):
    (request,) = read_requests(write(HEADER, ROW, delimiter=delimiter, encoding=encoding))
    assert request == EditRequest(*ROW)


def test_every_field_has_its_column_and_lists_have_several(write):
    header = ["slot", *HEADER, "target_true", "relation", "paraphrase_prompts"]
    header += ["neighborhood_prompts", "neighborhood_targets"] * 2 + ["paraphrase_prompts"]
    header += ["generation_prompts", "subject_prompts", "question"]
    header += ["paraphrase_questions"] * 2
    full = [
        "2",
        *ROW,
        "Oldenmoor",
        "P159",
        "Where, then?",
        "A",
        "one",
        "B",
        "two",
        "And\nhere?",
        "It is",
        "It is of",
        "Where is {}?",
        "Where does it lie?",
        "Where can I find it?",
    ]
    bare = ["", "fact-2", *ROW[1:], "", "", "", "", "", "", "", "Where?"]
    first, second = read_requests(write(header, full, [], bare, [""] * 5))

    assert first == EditRequest(
        *ROW,
        target_true="Oldenmoor",
        paraphrase_prompts=("Where, then?", "And\nhere?"),
        neighborhood_prompts=("A", "B"),
        neighborhood_targets=("one", "two"),
        subject_prompts=("It is of",),
        generation_prompts=("It is",),
        slot=2,
        relation="P159",
        question="Where is {}?",
        paraphrase_questions=("Where does it lie?", "Where can I find it?"),
    )
    assert second == EditRequest("fact-2", *ROW[1:], paraphrase_prompts=("Where?",))


def test_columns_without_name_and_text_are_left_aside(write):
    (request,) = read_requests(write([*HEADER, "", ""], [*ROW, "", ""]))
    assert request == EditRequest(*ROW)


@pytest.mark.parametrize("separator", ["\u2028", "\x0b", "\x85"])
def test_a_row_ends_at_a_line_break_only(write, separator):
    prompt = f"The{separator}seat of {{}} is in"
    (request,) = read_requests(write(HEADER, [*ROW[:2], prompt, ROW[3]]))
    assert request.prompt == "The\nseat of {} is in"


FAULTS = {
    "missing": (HEADER, ["fact-2", "Zanzibarium", "", "Qualverin"], "field prompt is missing"),
    "missing at the end": (HEADER, ["fact-2", "Zanzibarium"], "field prompt, target_new is"),
    "too many": (HEADER, [*ROW, "Qualverin"], "5 cells, but 4 columns"),
    "same id": (HEADER, ROW, "its id was used in row 2"),
    "slot": ([*HEADER, "slot"], ["fact-2", *ROW[1:], "soon"], "slot must be a whole number"),
    "slot 0": ([*HEADER, "slot"], ["fact-2", *ROW[1:], "0"], "slot 0 must be at least 1"),
}


@pytest.mark.parametrize(("header", "row", "told"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_row_is_named_and_not_quoted(write, header, row, told):
    message = refusal(write(header, ROW, row))
    assert "row 3: " in message and told in message


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (ROW, "column 1 has no known name; known are id, subject"),
        (["id", "subjct", "prompt", "target_new"], "column 2 has no known name; did you mean subj"),
        ([*HEADER, "subject"], "several columns are named subject"),
        ([*HEADER, "", "relation"], "column 5 has no known name"),
    ],
)
def test_the_first_row_names_the_columns(write, header, told):
    assert told in refusal(write(header, ROW))


def test_what_is_no_table(write, tmp_path):
    file = tmp_path / "node.csv"
    file.write_text(",".join(HEADER) + '\n"fact-1" x,y,z\n')
    assert "row 2: not CSV" in refusal(file)
    assert "holds no edit request" in refusal(write(HEADER))
    assert "holds no edit request" in refusal(write())


def test_the_ending_may_be_in_capitals(write):
    assert read_requests(write(HEADER, ROW, name="NODE.CSV")) == [EditRequest(*ROW)]
