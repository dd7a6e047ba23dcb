"""What stands between a prompt and its target."""

import pytest

from fedit_app.facts.joint import joint
from fedit_app.facts.jsonl import read_requests, write_requests
from fedit_app.facts.request import EditRequest

SPACE = [
    ("Reuters is in", "London"),
    ("Where is Reuters?", "London"),
    ("The city is:", "London"),
    ("He was born in 1914,", "in Wales"),
    ("the artists'", "museum"),
    ('He said "yes"', "and left"),
    ("the band (1990)", "plays"),
    ("Born in Wales -", "London"),
    ("It is written in", ".NET"),
    ("It is a rifle for", ".38 Special"),
    ("The play is called", "'Hamlet'"),
    ("It costs $", "a lot"),
    ("The owner is", "@fedit"),
    ("서울은 어디에", "한국"),
    ("The capital is", "東京"),
    ("Столица -", "Москва"),
    ("العاصمة هي", "القاهرة"),
    ("राजधानी है", "दिल्ली"),
    ("ภาษาไทย is", "Thai"),
    ("It is (so they say)", ") odd"),
]
NONE = [
    ("Reuters is in ", "London"),
    ("Q: Where?\nA:\n", "London"),
    ("Reuters is in\t", "London"),
    ('The answer is "', "London"),
    ('"', "London"),
    ("He said '", "London"),
    ("Er sagte \u201e", "London"),
    ("Il a dit \u00ab", "Londres"),
    ("She said \u201c", "London"),
    ("the city (", "London"),
    ("cities [", "London"),
    ("the Anglo-", "Welsh"),
    ("https://example.org/", "reuters"),
    ("and/", "or"),
    ("It costs $", "5"),
    ("Reuters", ", which is in London"),
    ("Reuters", "."),
    ("Reuters", "'s office"),
    ("Is it so", "?"),
    ("the city (London", ")"),
    ("日本の首都は", "東京"),
    ("法国的首都是", "巴黎"),
    ("法国的首都是哪里？", "巴黎"),
    ("法国的首都:", "巴黎"),
    ("法国的首都是", "Paris"),
    ("首都は「", "東京"),
    ("コンピューター", "ゲーム"),
    ("เมืองหลวงของประเทศไทยคือ", "กรุงเทพ"),
    ("ນະຄອນຫຼວງ", "ວຽງຈັນ"),
    ("រាជធានី", "ភ្នំពេញ"),
    ("မြို့တော်", "ရန်ကုန်"),
]


@pytest.mark.parametrize(("prompt", "target"), SPACE)
def test_words_are_separated(prompt, target):
    assert joint(prompt, target) == " "


@pytest.mark.parametrize(("prompt", "target"), NONE)
def test_no_space_where_running_text_has_none(prompt, target):
    assert joint(prompt, target) == ""


def test_a_request_may_say_what_stands_there():
    request = EditRequest("1", "Reuters", "{} is in", "London", target_separator="\n")
    assert request.asked_new == ("Reuters is in", "\nLondon")
    assert request.after("Any prompt", "Oslo") == "\nOslo"
    same = EditRequest("1", "Reuters", "{} is in", "London", target_separator=" ")
    plain = EditRequest("1", "Reuters", "{} is in", "London")
    assert plain.fact == same.fact != request.fact


@pytest.mark.parametrize("separator", ["", " ", "\n- ", None])
def test_a_written_file_keeps_it(tmp_path, separator):
    request = EditRequest("1", "Reuters", "{} is in", "London", target_separator=separator)
    write_requests(tmp_path / "a.jsonl", [request])
    assert read_requests(tmp_path / "a.jsonl") == [request]
