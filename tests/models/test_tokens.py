"""Where the subject ends and where the target stands, checked by decoding the tokens."""

import pytest
import tiny
from editing.cases import EASY, ODD, REQUESTS, TEMPLATES

from fedit_app.facts.request import EditRequest
from fedit_app.models.tokens import continuation_row, pad, subject_row
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
    for prompt, target in [("The city of", "London"), ("a {} b 🏦", "{}"), ("Ends with ", "of")]:
        row = continuation_row(model, prompt, target)
        assert decode(model, row.ids) == f"{prompt} {target}"
        assert decode(model, row.ids[: row.target]) == prompt
        assert row.lookup == row.target - 1


def test_padding_masks_the_gaps_and_keeps_empty_rows():
    ids, mask = pad([[5, 6], [], [7, 8, 9]], 1, side="left")
    assert ids.tolist() == [[1, 5, 6], [1, 1, 1], [7, 8, 9]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 0], [1, 1, 1]]
    ids, mask = pad([[5, 6], [7, 8, 9]], 1)
    assert ids.tolist() == [[5, 6, 1], [7, 8, 9]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]


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
