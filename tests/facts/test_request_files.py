"""Files of edit requests as people have them: read rightly, or refused in one line that says where.

Every file holds the request of `PLAIN`, or is refused with its name, the place and the field.
"""

import codecs
import gzip
import json
import logging

import pytest

from fedit_app.facts import reading
from fedit_app.facts.request import EditRequest
from fedit_app.facts.sources import load_requests, node_of
from fedit_app.support.errors import FedEditError

PLAIN = EditRequest("fact-1", "Zanzibarium", "The seat of {} is in", "Qualverin", slot=1)
RECORD = {
    "id": "fact-1",
    "slot": 1,
    "subject": "Zanzibarium",
    "prompt": "The seat of {} is in",
    "target_new": "Qualverin",
}
OTHER = RECORD | {"id": "fact-2", "subject": "Cormorant"}
SECRETS = ("Zanzibarium", "seat of", "is in", "Qualverin", "Cormorant")
NAMES = "id,slot,subject,prompt,target_new"
ROW = "fact-1,1,Zanzibarium,The seat of {} is in,Qualverin"
LINE = json.dumps(RECORD)
TABLE = f"{NAMES}\n{ROW}\n"
ZSRE = {"subject": "Zanzibarium", "src": "Where is Zanzibarium?", "answers": ["Qualverin"]}


def changed(**fields: object) -> str:
    """A good record, then one with other values."""
    return f"{LINE}\n{json.dumps(RECORD | {'id': 'x'} | fields)}\n"


def cells(**fields: str) -> str:
    """A good row, then one with other values."""
    values = dict(zip(NAMES.split(","), ROW.split(","), strict=True)) | {"id": "x"} | fields
    return f"{TABLE}{','.join(values.values())}\n"


READ = {
    "JSON lines": ("a.jsonl", LINE),
    "JSON lines of Windows": ("a.jsonl", f"{LINE}\r\n\r\n"),
    "JSON lines of an old Mac": ("a.jsonl", f"\r{LINE}\r"),
    "JSON array": ("a.jsonl", json.dumps([RECORD], indent=2)),
    "JSON array with another name": ("a.json", json.dumps([RECORD])),
    "JSON with a byte order mark": ("a.jsonl", codecs.BOM_UTF8 + LINE.encode()),
    "JSON in UTF-16": ("a.jsonl", LINE.encode("utf-16")),
    "JSON in UTF-32": ("a.jsonl", LINE.encode("utf-32")),
    "compressed JSON lines": ("a.jsonl.gz", gzip.compress(LINE.encode())),
    "null where nothing is": (
        "a.jsonl",
        json.dumps(RECORD | {"target_true": None, "paraphrase_prompts": None, "relation": None}),
    ),
    "a slot of pandas": ("a.jsonl", json.dumps(RECORD | {"slot": 1.0})),
    "CSV": ("a.csv", TABLE),
    "CSV with a byte order mark": ("a.csv", codecs.BOM_UTF8 + TABLE.encode()),
    "CSV in UTF-16": ("a.csv", TABLE.encode("utf-16")),
    "CSV in big-endian UTF-16": ("a.csv", codecs.BOM_UTF16_BE + TABLE.encode("utf-16-be")),
    "CSV with semicolons": ("a.csv", TABLE.replace(",", ";")),
    "CSV with tabs": ("a.csv", TABLE.replace(",", "\t")),
    "CSV with bars": ("a.csv", TABLE.replace(",", "|")),
    "tabs by name": ("a.tsv", TABLE.replace(",", "\t")),
    "UTF-16 with tabs": ("a.txt.csv", TABLE.replace(",", "\t").encode("utf-16")),
    "sep line": ("a.csv", "sep=;\r\n" + TABLE.replace(",", ";").replace("\n", "\r\n")),
    "quoted sep line": ("a.csv", '"sep=,"\n' + TABLE),
    "CSV of an old Mac": ("a.csv", TABLE.replace("\n", "\r")),
    "compressed CSV": ("a.csv.gz", gzip.compress(TABLE.encode())),
    "quoted cells": (
        "a.CSV",
        "\n".join('"' + row.replace(",", '","') + '"' for row in (NAMES, ROW)),
    ),
    "empty cells": ("a.csv", f"{NAMES},target_true,relation\n{ROW},,\n,,,,,,\n"),
    "slot 1.0": ("a.csv", TABLE.replace(",1,", ",1.0,")),
    "spaces in cells": ("a.csv", TABLE.replace(",Zanzibarium,", ", Zanzibarium ,")),
    "no-break space at the end": ("a.csv", TABLE.replace("is in", "is in\u00a0")),
    "target with a space before it": ("a.jsonl", json.dumps(RECORD | {"target_new": " Qualverin"})),
    "soft hyphen": ("a.jsonl", json.dumps(RECORD | {"subject": "Zanzi\u00adbarium"})),
    "subject that is not marked": ("a.csv", TABLE.replace("{}", "Zanzibarium")),
    "prompt with a space behind it": (
        "a.jsonl",
        json.dumps(RECORD | {"prompt": "The seat of {} is in  "}),
    ),
}


WHOLE = {"id": "fact-1", "slot": 1, "prompt": "Zanzibarium is in", "target_new": "Qualverin"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", json.dumps(WHOLE)),
        ("a.jsonl", json.dumps(WHOLE | {"subject": ""})),
        ("a.csv", f"{NAMES}\nfact-1,1,,Zanzibarium is in,Qualverin\n"),
    ],
)
def test_without_a_subject_the_whole_prompt_is_one(tmp_path, caplog, name, text):
    file = tmp_path / name
    file.write_text(text)
    with caplog.at_level(logging.WARNING):
        (request,) = load_requests(file)
    assert (request.subject, request.prompt) == ("Zanzibarium is in", "{}")
    assert request.asked_new == ("Zanzibarium is in", " Qualverin")
    assert "learned at its last token" in caplog.text


@pytest.mark.parametrize(("name", "data"), READ.values(), ids=READ)
def test_a_file_that_is_understood(tmp_path, name, data):
    file = tmp_path / name
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    assert load_requests(file) == [PLAIN]


# name of the file, its content, where the fault is, what is said; an array counts its records
REFUSED = {
    "spreadsheet": ("a.csv", b"PK\x03\x04\x14\x00", "", "spreadsheet or ZIP archive; save it as"),
    "Parquet": ("a.jsonl", b"PAR1\x15\x04", "", "Parquet"),
    "another encoding": ("a.csv", TABLE.encode() + b"Z\xfcrich", "line 3: ", "not UTF-8 text"),
    "UTF-16 without its mark": ("a.csv", TABLE.encode("utf-16-le"), "", "UTF-16 without"),
    "half of a compressed file": ("a.jsonl.gz", gzip.compress(LINE.encode())[:-9], "", "gzip"),
    "cut off": ("a.jsonl", f"{LINE}\n{LINE[:50]}", "line 2: ", "not JSON"),
    "cut off array": ("a.json", f"[{LINE},\n{LINE[:50]}", "line 2: ", "not JSON"),
    "a long number": (
        "a.jsonl",
        f"{LINE}\n" + '{"slot": ' + "1" * 9000 + "}",
        "line 2: ",
        "too long",
    ),
    "a deep list": ("a.jsonl", f"{LINE}\n" + '{"x": ' + "[" * 99999, "line 2: ", "too long"),
    "open quote": (
        "a.csv",
        TABLE + 'fact-2,1,"Cormorant,x {},y\n',
        "row 3: ",
        "quote is not closed",
    ),
    "no header": ("a.csv", ROW, "", "first row must name the columns"),
    "too many cells": ("a.csv", TABLE + ROW + ",more", "row 3: ", "6 cells, but 5 columns"),
    "row after a line break": (
        "a.csv",
        f'{NAMES}\nx,1,Cormorant,"The seat\nof {{}}",Qualverin\nfact-1,1,,{{}} is in,Qualverin\n',
        "row 3: ",
        "subject is empty",
    ),
    "nan in a cell": ("a.csv", cells(subject="nan"), "row 3: ", "subject is nan"),
    "slot 1.5": ("a.csv", cells(slot="1.5"), "row 3: ", "slot must be a whole number"),
    "slot soon": ("a.csv", cells(slot="soon"), "row 3: ", "slot must be a whole number"),
    "NaN": (
        "a.jsonl",
        changed(target_true=float("nan")),
        "line 2: ",
        "target_true must be a string, found nan",
    ),
    "NaN slot": ("a.jsonl", changed(slot=float("nan")), "line 2: ", "slot must be a whole number"),
    "surrogate": ("a.jsonl", changed(subject="Cormorant \ud83d"), "line 2: ", "subject has U+D83D"),
    "surrogate around": (
        "a.jsonl",
        changed(neighborhood_prompts=["Cormorant \ude00"]),
        "line 2: ",
        "neighborhood_prompts has U+DE00",
    ),
    "surrogate in a name": (
        "a.jsonl",
        changed(**{"\ud83d": 1}),
        "line 2: ",
        "of the object has no known name",
    ),
    "bell": ("a.csv", cells(target_new="Qual\x07verin"), "row 3: ", "target_new has U+0007"),
    "nothing": ("a.jsonl", changed(prompt="\0 {} is in"), "line 2: ", "prompt has U+0000"),
    "lost character": ("a.csv", cells(prompt="{} \ufffd is in"), "row 3: ", "prompt has U+FFFD"),
    "invisible subject": ("a.jsonl", changed(subject="\u200b"), "line 2: ", "subject is empty"),
    "no subject in the prompt": (
        "a.jsonl",
        changed(prompt="Who?"),
        "line 2: ",
        "prompt has 0 place",
    ),
    "no subject in the question": (
        "a.jsonl",
        changed(question="Where is it?"),
        "line 2: ",
        "question has 0 place",
    ),
    "subject twice in the question": (
        "a.csv",
        f"{NAMES},question\n{ROW},Zanzibarium? Where is Zanzibarium?\n",
        "row 2: ",
        "question has 0 place",
    ),
    "subject inside another word": (
        "a.csv",
        cells(prompt="Zanzibarians live in"),
        "row 3: ",
        "prompt has 0 place",
    ),
    "bell in a question": (
        "a.jsonl",
        changed(paraphrase_questions=["Where is it?", "a\x07?"]),
        "line 2: ",
        "paraphrase_questions has U+0007",
    ),
    "one question as a text": (
        "a.jsonl",
        changed(paraphrase_questions="Where is it?"),
        "line 2: ",
        "paraphrase_questions must be a list",
    ),
    "in an array": ("a.json", f"[{LINE}, {LINE}]", "record 2: ", "its id was used in record 1"),
    "separator": ("a.jsonl", changed(target_separator=7), "line 2: ", "target_separator must be a"),
}


@pytest.mark.parametrize(("name", "data", "place", "told"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_refused(tmp_path, name, data, place, told):
    file = tmp_path / name
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(FedEditError) as caught:
        load_requests(file)
    message = str(caught.value)
    assert message.startswith(f"data file {name}: {place}") and told in message
    assert message.isprintable() and message.isascii()
    assert not [secret for secret in SECRETS if secret in message]


@pytest.mark.parametrize(
    ("question", "prompt"),
    [
        ("Is Ann in Annapolis?", "Is {} in Annapolis?"),
        ("Is Annapolis where Ann is?", "Is Annapolis where {} is?"),
        ("Is Ann's city small?", "Is {}'s city small?"),
        ("Annは東京に?", "{}は東京に?"),
        ("Ann은 어디에?", "{}은 어디에?"),
    ],
)
def test_the_subject_of_a_question_is_a_word_of_its_own(tmp_path, question, prompt):
    file = tmp_path / "zsre.json"
    file.write_text(json.dumps([ZSRE | {"subject": "Ann", "src": question}]), encoding="utf-8")
    assert [request.prompt for request in load_requests(file, "zsre")] == [prompt]


def test_a_subject_inside_another_word_is_none(tmp_path):
    file = tmp_path / "zsre.json"
    file.write_text(json.dumps([ZSRE, ZSRE | {"subject": "Ann", "src": "Where is Annapolis?"}]))
    with pytest.raises(FedEditError, match="record 2: src contains the subject inside another"):
        load_requests(file, "zsre")
    (request,) = load_requests(file, "zsre", skip_bad=True)
    assert request.id == "0"


def test_the_rest_of_a_file_goes_on_and_what_is_left_out_is_named(tmp_path, caplog):
    file = tmp_path / "a.jsonl"
    bad = [json.dumps(RECORD | {"subject": ""}), LINE[:40], json.dumps(RECORD | {"slot": 0})]
    file.write_text("\n".join([LINE, *bad, json.dumps(OTHER)]))
    with pytest.raises(FedEditError, match=r"line 2: .*; line 3: .*; line 4: "):
        load_requests(file)
    assert [r.id for r in load_requests(file, skip_bad=True)] == ["fact-1", "fact-2"]
    said = [record.getMessage() for record in caplog.records]
    places = [f"data file a.jsonl: line {number}: " for number in (2, 3, 4)]
    assert all(line.startswith(place) for line, place in zip(said, places, strict=False))
    assert said[3:] == ["data file a.jsonl: 3 lines left out"]
    assert not [secret for secret in SECRETS if secret in "".join(said)]


def test_a_file_of_invalid_records_is_refused_even_so(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(RECORD | {"subject": ""}))
    with pytest.raises(FedEditError, match="line 1: subject is empty"):
        load_requests(file, skip_bad=True)


def test_every_invalid_record_is_named_in_the_log_up_to_a_hundred(tmp_path, caplog):
    file = tmp_path / "a.csv"
    file.write_text(TABLE + "x,1,,{} is,y\n" * 150)
    with pytest.raises(FedEditError, match="row 7: .*; and 145 more rows, see the log$") as caught:
        load_requests(file)
    assert len(str(caught.value)) < 500
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 101
    assert said[99].startswith("data file a.csv: row 102: ") and said[100].endswith("and 50 more")


def test_a_compressed_file_names_its_node_as_the_plain_one_does(tmp_path):
    names = ["bank.jsonl", "bank.jsonl.gz", "bank.csv.GZ", "bank.csv"]
    assert {node_of(tmp_path / name) for name in names} == {"bank"}
    assert node_of(tmp_path / "bank.v2.jsonl") == "bank.v2"


def test_a_file_that_is_read_again_is_told_of_once(tmp_path, caplog):
    file = tmp_path / "a.jsonl"
    file.write_text(f"{LINE}\n{LINE[:40]}")
    for _ in range(3):
        load_requests(file, skip_bad=True)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_file_is_read_up_to_a_size_that_is_counted_as_text(tmp_path, monkeypatch, compress):
    file, data = tmp_path / "a.jsonl.gz", LINE.encode() + b" " * 100_000
    file.write_bytes(compress(data))
    monkeypatch.setattr(reading, "MOST_BYTES", len(data))
    assert load_requests(file) == [PLAIN]
    monkeypatch.setattr(reading, "MOST_BYTES", len(data) - 1)
    with pytest.raises(FedEditError, match="a.jsonl.gz: more than 100.1 kB of text; divide it"):
        load_requests(file)
