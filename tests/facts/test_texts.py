"""Characters that cannot be seen, or that look like others, make no edit silently another one."""

import json

import pytest

from fedit_app.facts.jsonl import read_requests
from fedit_app.facts.request import EditRequest
from fedit_app.facts.texts import clean, look_alikes
from fedit_app.support.errors import FedEditError

PLAIN = {
    "no-break space": ("New\u00a0York", "New York"),
    "narrow no-break space": ("10\u202f000", "10 000"),
    "soft hyphen": ("Donau\u00addampf", "Donaudampf"),
    "zero-width space": ("New\u200b York", "New York"),
    "byte order mark inside": ("\ufeffReuters", "Reuters"),
    "word joiner": ("a\u2060b", "ab"),
    "direction marks": ("\u202aReuters\u202c \u200fnews\u2069", "Reuters news"),
    "decomposed": ("Zu\u0308rich", "Z\u00fcrich"),
    "Angstrom sign": ("\u212b", "\u00c5"),
    "Windows line break": ("a\r\nb\rc", "a\nb\nc"),
    "line separator": ("a\u2028b\u2029c\x85d\x0be", "a\nb\nc\nd\ne"),
    "joiner between Latin letters": ("Auf\u200clage", "Auflage"),
    "joiner at the end": ("Reuters\u200d", "Reuters"),
    "zero-width space between Latin letters": ("Reu\u200bters", "Reuters"),
}
KEPT = {
    "Persian": "می\u200cخواهم",
    "Hindi": "क्\u200dष",
    "Khmer words": "ភាសា\u200bខ្មែរ",
    "family": "👨\u200d👩\u200d👧",
    "sign": "⚕\ufe0f👩\u200d⚕\ufe0f 🏳\ufe0f\u200d🌈",
    "skin": "👩🏽\u200d🚀",
    "flag of Wales": "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f",
    "code": "for x in y:\n\tprint(x)",
    "ideographic space": "東京\u3000都",
    "accents": "Łódź, Đà Nẵng, São Paulo",
}
REFUSED = {
    "bell": ("a\x07b", "U+0007"),
    "escape": ("\x1b[31mred", "U+001B"),
    "nothing": ("a\x00b", "U+0000"),
    "C1 control": ("a\x9bb", "U+009B"),
    "high surrogate": ("a\ud83d", "U+D83D"),
    "low surrogate": ("\ude00b", "U+DE00"),
    "private use": ("\uf8ff", "U+F8FF"),
    "replacement": ("Z\ufffdrich", "U+FFFD"),
    "override": ("abc\u202efed", "U+202E"),
    "noncharacter": ("a\uffff", "U+FFFF"),
    "object": ("a\ufffcb", "U+FFFC"),
    "filler": ("a\u3164b", "U+3164"),
    "tags": ("a\U000e0068\U000e0069", "U+E0068"),
}


@pytest.mark.parametrize(("text", "plain"), PLAIN.values(), ids=PLAIN)
def test_texts_that_look_alike_become_the_same(text, plain):
    changes = []
    assert clean(text, changes) == plain
    assert changes
    assert clean(plain) == plain


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_what_a_reader_sees_stays(text):
    changes = []
    assert clean(text, changes) == text
    assert not changes


@pytest.mark.parametrize(("text", "point"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize(
    "field", ["id", "subject", "target_new", "target_true", "paraphrase_prompts"]
)
def test_what_means_nothing_is_refused_by_code_point(text, point, field):
    given = {"id": "a", "subject": "Reuters", "prompt": "{} is in", "target_new": "Oslo"}
    given[field] = (text,) if field.endswith("s") else text
    with pytest.raises(FedEditError) as caught:
        EditRequest(**given)
    message = str(caught.value)
    assert message.startswith(f"{field} has {point}")
    assert message.isascii() and message.isprintable()


def test_a_request_is_made_plain_and_says_so():
    request = EditRequest(
        "a\u00a0b",
        " New\u00a0York ",
        "{} is\u200b in ",
        "\u00a0the USA",
        paraphrase_prompts=("Where is it?\u00a0",),
    )
    plain = EditRequest(
        "a\u00a0b", "New York", "{} is in", "the USA", paraphrase_prompts=("Where is it?",)
    )
    assert request == plain and hash(request) == hash(plain)
    assert request.asked_new == ("New York is in", " the USA")
    assert sorted(set(request.changes)) == [
        "invisible character",
        "no-break space",
        "space at an end",
    ]
    assert plain.changes == ()


def test_a_text_of_invisible_characters_is_empty():
    with pytest.raises(FedEditError, match="subject is empty"):
        EditRequest("a", "\u200b\u00a0", "{} is in", "Oslo")
    with pytest.raises(FedEditError, match="paraphrase_prompts has an empty entry"):
        EditRequest("a", "Reuters", "{} is in", "Oslo", paraphrase_prompts=("\u200b",))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("subject", None, "subject must be a string, found NoneType"),
        ("target_new", 1889, "target_new must be a string, found int"),
        ("paraphrase_prompts", "Where?", "paraphrase_prompts must be a list of strings, found str"),
        ("paraphrase_prompts", (7,), "paraphrase_prompts must be a string, found int"),
        ("slot", "1", "slot must be a whole number, found str"),
        ("slot", True, "slot must be a whole number, found bool"),
    ],
)
def test_a_request_made_in_python_has_fields_of_the_right_kind(field, value, told):
    given = {"id": "a", "subject": "Reuters", "prompt": "{} is in", "target_new": "Oslo"}
    with pytest.raises(FedEditError, match=told):
        EditRequest(**given | {field: value})


def test_a_list_in_python_is_kept_as_a_request_keeps_it():
    request = EditRequest("a", "Reuters", "{} is in", "Oslo", paraphrase_prompts=["Where\u00a0?"])
    assert request.paraphrase_prompts == ("Where ?",)
    assert hash(request)


def test_letters_of_two_scripts_in_one_word():
    assert list(look_alikes("P\u0430ris is in Fr\u0430nce")) == ["\u0430", "\u0430"]
    assert list(look_alikes("\u0391thens")) == ["\u0391"]
    for text in ("Москва is Moscow", "5 kΩ", "Δx", "λ-calculus", "Zürich", "Αθήνα"):
        assert not list(look_alikes(text))


RECORD = {"id": "1", "subject": "Paris", "prompt": "{} is in", "target_new": "France"}


@pytest.fixture
def said(tmp_path, caplog):
    def said(*changes: dict) -> list[str]:
        file = tmp_path / "node.jsonl"
        records = [RECORD | {"id": str(number)} | one for number, one in enumerate(changes)]
        file.write_text("\n".join(map(json.dumps, records)))
        caplog.clear()
        with caplog.at_level("INFO", "fedit_app"):
            read_requests(file)
        return [record.getMessage() for record in caplog.records]

    return said


def test_the_log_says_once_a_file_what_was_made_plain(said):
    assert said({}, {"subject": "New York"}) == []
    assert said(
        {"subject": "New\u00a0York"},
        {"prompt": "{} is\u00a0in ", "target_true": "the\u200b UK"},
    ) == [
        "data file node.jsonl: texts were made plain: 1 invisible character, 2 no-break spaces "
        "and 1 space at an end"
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"subject": "P\u0430ris"},
            "subject has U+0430, CYRILLIC SMALL LETTER A, in a word of Latin letters",
        ),
        ({"prompt": "{} is called", "target_new": "paris"}, "target_new is the subject itself"),
        ({"prompt": "Paris, or {}, is in"}, "the subject is in the prompt again"),
        ({"target_new": "Texas"}, "asks the same as line 1 with another target"),
    ],
)
def test_what_is_odd_is_said_with_its_line(said, change, told):
    (line,) = said({}, change)
    assert line.startswith("data file node.jsonl: line 2: ")
    assert told in line
    assert "Texas" not in line and "France" not in line


def test_many_notices_are_counted(said):
    lines = said(*[{"subject": "Paris", "prompt": "{} is", "target_new": "paris"}] * 14)
    assert len(lines) == 11
    assert lines[-1].endswith("and 4 more such notices")


def test_a_correction_in_a_later_slot_is_no_contradiction(said):
    assert said({"slot": 1}, {"slot": 2, "target_new": "Texas"}) == []


@pytest.mark.parametrize(
    ("prompt", "marked"),
    [
        ("Ann lives in", "{} lives in"),
        ("In Annapolis lived Ann, who said", "In Annapolis lived {}, who said"),
        ("{} is not Ann, but", "{} is not Ann, but"),
        ("Annは東京に", "{}は東京に"),
    ],
)
def test_the_subject_is_found_in_a_text_where_it_stands_once(prompt, marked):
    request = EditRequest("1", "Ann", prompt, "Paris", question=f"{prompt}?")
    assert (request.prompt, request.question) == (marked, f"{marked}?")


@pytest.mark.parametrize("prompt", ["Ann is Ann in", "Annapolis is in", "Joanna is in", "She is"])
def test_where_its_place_is_not_certain_nothing_is_guessed(prompt):
    with pytest.raises(FedEditError, match="prompt has 0 placeholders; .*or the subject itself"):
        EditRequest("1", "Ann", prompt, "Paris")
