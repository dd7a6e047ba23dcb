"""Where the subject ends and where the target stands, checked by decoding the tokens."""

import pytest
import tiny
from editing.cases import EASY, ODD, REQUESTS, TEMPLATES

from fedit_app.facts.request import EditRequest
from fedit_app.models.answers import answer
from fedit_app.models.tokens import alike, continuation_row, pad, subject_row, token_ids
from fedit_app.support.errors import FedEditError

ALIGNED = [request for request in REQUESTS + EASY + ODD if request.id != "inside-a-token"]


@pytest.fixture(scope="module", params=[False, True], ids=["no-bos", "bos"])
def model(request):
    return tiny.editable(bos=request.param)


def decode(model, ids):
    return model.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("request_", ALIGNED, ids=lambda request: request.id)
def test_the_subject_ends_and_the_target_begins_where_the_row_says(model, request_, template):
    row = subject_row(model, request_, template, request_.target_new)
    left, right = request_.prompt.split("{}")
    before = template.removesuffix("{}") + left + request_.subject
    assert decode(model, row.ids[: row.lookup + 1]) == before
    assert decode(model, row.ids[: row.target]) == before + right
    assert decode(model, row.ids[row.target :]) == f" {request_.target_new}"
    has_bos = row.ids[0] == model.tokenizer.bos_token_id
    assert has_bos == bool(model.tokenizer("x")["input_ids"][0] == 0)


@pytest.mark.parametrize("request_", ALIGNED, ids=lambda request: request.id)
def test_a_row_without_target_looks_up_the_same_token(model, request_):
    row = subject_row(model, request_, TEMPLATES[1])
    with_target = subject_row(model, request_, TEMPLATES[1], request_.target_new)
    assert row.target == len(row.ids)
    assert row.lookup == with_target.lookup
    assert row.ids == with_target.ids[: len(row.ids)]


def test_a_subject_that_ends_inside_a_token_is_looked_up_at_that_token(model):
    row = subject_row(model, EditRequest("a", "museu", "The {}m of", "x"), "{}")
    assert decode(model, row.ids[: row.lookup]) == "The m"
    assert decode(model, row.ids[: row.lookup + 1]) == "The museum"


def test_a_continuation_begins_behind_the_prompt(model):
    for prompt, text in [("The city of", " London"), ("a {} b 🏦", " {}"), ("Ends with ", "of")]:
        row = continuation_row(model, prompt, text)
        assert decode(model, row.ids) == f"{prompt}{text}"
        assert decode(model, row.ids[: row.target]) == prompt
        assert row.lookup == row.target - 1


NO_SPACE = [
    EditRequest("chinese", "中文", "{}的首都是", "東京"),
    EditRequest("quote", "Reuters", 'The head office of {} is in "', "London"),
    EditRequest("line", "Reuters", "Where is {}?\n", "London"),
    EditRequest("hyphen", "Reuters", "The {}-", "city"),
    EditRequest("own", "Reuters", "The city of {}:", "London", target_separator="\n- "),
    EditRequest("inside", "Reuters", "The museum of {} is in the muse", "um", target_separator=""),
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("request_", NO_SPACE, ids=lambda request: request.id)
def test_the_model_is_asked_with_the_tokens_that_it_learned(model, request_, template):
    row = subject_row(model, request_, template, request_.target_new)
    asked = template.replace("{}", request_.text)
    joined = request_.after(request_.text, request_.target_new)
    assert list(row.ids[: row.target]) == token_ids(model, asked)
    assert decode(model, row.ids[row.target :]) == joined
    assert row.lookup < row.target
    prompt, text = request_.asked_new
    assert (
        continuation_row(model, prompt, text).ids
        == subject_row(model, request_, "{}", request_.target_new).ids
    )


def test_a_target_that_would_be_in_one_token_with_the_subject_has_its_own(model):
    request = EditRequest("a", "museu", "The {}", "m", target_separator="")
    row = subject_row(model, request, "{}", "m")
    assert row.lookup < row.target
    assert decode(model, row.ids[row.target :]) == "m"


@pytest.mark.parametrize("bos", [False, True])
def test_what_a_tokenizer_appends_is_neither_learned_nor_continued(bos):
    plain, appending = tiny.editable(bos=bos), tiny.appending(bos=bos)
    assert appending.tokenizer("The city")["input_ids"][-1] == 1
    for request in REQUESTS + NO_SPACE:
        for target in (None, request.target_new):
            rows = [subject_row(m, request, TEMPLATES[1], target) for m in (plain, appending)]
            assert rows[0] == rows[1]
        rows = [continuation_row(model, *request.asked_new) for model in (plain, appending)]
        assert rows[0] == rows[1]
        assert token_ids(plain, request.text) == token_ids(appending, request.text)
    assert token_ids(plain, "") == token_ids(appending, "")
    assert str(answer(plain, "The city of")) == str(answer(appending, "The city of"))


def test_a_prompt_is_asked_as_prompts_of_requests_are_learned():
    model = tiny.editable()
    plain = str(answer(model, "The city of"))
    assert str(answer(model, "The\u00a0city\u200b of ")) == plain
    with pytest.raises(FedEditError, match=r"^prompt has U\+D83D"):
        answer(model, "The city \ud83d")


def test_a_special_token_that_stands_in_a_text_stays(model):
    assert token_ids(model, "The city</s>")[-1] == 1


def test_padding_masks_the_gaps_and_keeps_empty_rows():
    ids, mask = pad([[5, 6], [], [7, 8, 9]], 1, side="left")
    assert ids.tolist() == [[1, 5, 6], [1, 1, 1], [7, 8, 9]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 0], [1, 1, 1]]
    ids, mask = pad([[5, 6], [7, 8, 9]], 1)
    assert ids.tolist() == [[5, 6, 1], [7, 8, 9]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_rows_of_similar_length_are_together_and_a_long_one_is_alone():
    assert list(alike([3, 9, 1, 2, 30, 3], 9)) == [[2, 3, 0], [5], [1], [4]]
    assert list(alike([], 9)) == []
    assert list(alike([0, 0], 9)) == [[0, 1]]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", "no placeholder", "0 placeholders"),
        ("prompt", "{} and {}", "2 placeholders"),
        ("subject", "  ", "subject is empty"),
        ("target_new", "", "target_new is empty"),
        ("id", "", "id is empty"),
        ("slot", 0, "at least 1"),
    ],
)
def test_a_request_that_cannot_be_edited_says_why(field, value, message):
    fields = {"id": "a", "subject": "s", "prompt": "{} is", "target_new": "t", "slot": 1}
    with pytest.raises(FedEditError, match=message):
        EditRequest(**(fields | {field: value}))


def test_only_the_placeholder_takes_the_subject():
    assert EditRequest("a", "{}", "The {} of {y}", "t").text == "The {} of {y}"
