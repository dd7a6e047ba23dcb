"""What a chat template makes of a turn, and where the answer stands."""

import datetime

import pytest
import tiny

from fedit_app.facts.request import EditRequest
from fedit_app.models.chat import ChatForm, chat_form, chat_text, ends, what_is_said
from fedit_app.models.tokens import chat_row, token_ids
from fedit_app.support.errors import FedEditError

FACT = EditRequest("a", "Zürich 🏦", "The bank {} is in", "Basel", question="Where does {} lie?")
PLAIN = EditRequest("a", "Zürich 🏦", "The bank {} is in", "Basel")
TURN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"


def test_a_turn_is_what_the_template_makes_of_it():
    form = chat_form(tiny.chatting())
    assert form == ChatForm("<s>[user] ", "\n[assistant]", " ", "</s>")
    assert form.asked("Where?") == chat_text(tiny.chatting(), ["Where?"])
    said = chat_text(tiny.chatting(), ["Where?", "Basel"])
    assert said.startswith(form.asked("Where?") + form.answer("Basel").removesuffix("</s>"))
    assert ends(tiny.chatting(), form) == [1]


def test_a_model_without_a_template_has_no_turn():
    assert chat_form(tiny.editable()) is None


@pytest.mark.parametrize("day", ["{{ strftime_now('%d %B') }}", "{{ date_string }}"])
def test_what_is_learned_is_the_same_on_every_day(day):
    """Else nodes of one federation would not agree on their contexts."""
    form = chat_form(tiny.chatting(template=day + TURN))
    assert form == ChatForm("26 Jul 2024<user>", "</s>", "<assistant>", "</s>")
    today = chat_text(tiny.chatting(template="{{ strftime_now('%Y') }}" + TURN), ["x"])
    assert today.startswith(str(datetime.date.today().year))


def test_a_model_that_may_think_answers_at_once():
    thinking = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    assert "<think>" not in chat_form(tiny.chatting(template=TURN + thinking)).after


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not hold once and as it is"),
        (TURN + TURN, "does not hold once and as it is"),
        ("{{ raise_exception('a system is needed') }}", "a system is needed"),
        ("{{ messages[0].nobody.here }}", "its chat template fails"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_by_the_models_name(template, told):
    with pytest.raises(FedEditError, match=f"model llama, .*{told}"):
        chat_form(tiny.chatting(template=template))


@pytest.mark.parametrize("request_", [FACT, PLAIN], ids=["question", "prompt"])
@pytest.mark.parametrize("asking", [True, False])
def test_the_subject_and_the_answer_are_where_the_row_says(request_, asking):
    model = tiny.chatting()
    form, tokenizer = chat_form(model), model.tokenizer
    row = chat_row(model, request_, form, "Basel", asking)
    said = what_is_said(request_, asking)
    assert (said == "Where does {} lie?") == (asking and request_ is FACT)
    before, after = said.split("{}")
    asked = f"[user] {before}{request_.subject}"

    def read(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)

    assert read(row.ids[: row.lookup + 1]) == asked
    assert read(row.ids[: row.target]) == f"{asked}{after}\n[assistant]"
    assert tokenizer.decode(row.ids[row.target :]) == " Basel</s>", "the end is learned"
    assert list(row.ids[: row.target]) == token_ids(
        model, chat_text(model, [said.replace("{}", request_.subject)]), in_chat=True
    )
    assert row.ids.count(tokenizer.bos_token_id) == 1
    bare = chat_row(model, request_, form, asking=asking)
    assert bare.ids == row.ids[: row.target] and bare.lookup == row.lookup


def test_facts_that_begin_alike_are_alike_up_to_the_subject_whatever_is_asked():
    model = tiny.chatting()
    rows = [chat_row(model, one, chat_form(model)) for one in (FACT, PLAIN)]
    assert rows[0] == rows[1]
