"""What a model writes against plain passes: one prompt at a time, all logits, no cache."""

import dataclasses
import math

import pytest
import tiny
import torch

from fedit_app.evaluation import generation as module
from fedit_app.evaluation.generation import (
    ChatMatch,
    Match,
    Text,
    answer_metrics,
    chat_answers,
    chat_matches,
    continuations,
    free_texts,
    matches,
    n_gram_entropy,
    written_metrics,
)
from fedit_app.evaluation.memory import AnswerMemory
from fedit_app.facts.request import EditRequest
from fedit_app.models.chat import chat_form, chat_text
from fedit_app.node import measuring

PROMPTS = ["The museum", "The head office of Reuters is in", "Basel", "The 🏦 {} of Zürich in the"]


@torch.no_grad()
def plain_greedy(model, prompt, count):
    """Ids of a greedy continuation up to the end token, from the whole text at every step."""
    ids = model.tokenizer(prompt)["input_ids"]
    written = []
    while len(written) < count and written[-1:] != [model.tokenizer.eos_token_id]:
        written.append(int(model.model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return written


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", tiny.every(*tiny.FAMILIES))
def test_greedy_texts_are_those_of_plain_passes(family, bos):
    model = tiny.editable(family, bos=bos, double=True)
    lengths = [4, 6, 1, 5]
    found = continuations(model, PROMPTS, lengths, do_sample=False)
    for prompt, count, text in zip(PROMPTS, lengths, found, strict=True):
        expected = plain_greedy(model, prompt, count)
        assert text == model.tokenizer.decode(expected, skip_special_tokens=True), prompt


def test_batches_and_order_change_nothing(monkeypatch):
    model = tiny.editable(double=True)
    whole = continuations(model, PROMPTS, [3, 4, 5, 6], do_sample=False)
    monkeypatch.setattr(module, "_ROWS_PER_PASS", 2)
    parts = continuations(model, PROMPTS[::-1], [6, 5, 4, 3], do_sample=False)
    assert parts[::-1] == whole
    assert continuations(model, [], [], do_sample=False) == []


def test_the_checkpoints_own_settings_for_writing_do_not_count(monkeypatch):
    model = tiny.editable(double=True)
    plain = continuations(model, PROMPTS, [8] * 4, do_sample=False)
    free = free_texts(model, PROMPTS)
    for name, value in {"repetition_penalty": 5.0, "temperature": 9.0, "top_p": 0.1}.items():
        monkeypatch.setattr(model.model.generation_config, name, value)
    assert continuations(model, PROMPTS, [8] * 4, do_sample=False) == plain
    assert free_texts(model, PROMPTS) == free


@torch.no_grad()
def test_free_texts_are_drawn_from_the_five_likeliest_tokens(monkeypatch):
    model = tiny.editable(double=True)
    generate, written = model.model.generate, []

    def watched(ids, **how):
        written.append((ids, generate(ids, **how)))
        return written[-1][1]

    monkeypatch.setattr(model.model, "generate", watched)
    state = torch.random.get_rng_state()
    texts = free_texts(model, PROMPTS[:2])
    assert torch.equal(torch.random.get_rng_state(), state)
    ((asked, rows),) = written
    best = 0
    for text, row in zip(texts, rows.tolist(), strict=True):
        start = row.index(next(id_ for id_ in row if id_ != model.pad_token_id))
        new = row[asked.shape[1] :]
        assert len(new) == 100
        assert text == model.tokenizer.decode(new, skip_special_tokens=True)
        logits = model.model(torch.tensor([row[start:]])).logits[0, asked.shape[1] - start - 1 : -1]
        assert all(id_ in step.topk(5).indices for id_, step in zip(new, logits, strict=True))
        best += sum(id_ == int(step.argmax()) for id_, step in zip(new, logits, strict=True))
    assert best < 200, "some token is drawn that is not the likeliest"
    assert free_texts(model, PROMPTS[:2]) == texts


def entropy(events):
    shares = [events.count(event) / len(events) for event in set(events)]
    return sum(share * math.log2(1 / share) for share in shares)


@pytest.mark.parametrize(
    "words", ["a b a b", "a a a a a a", "the cat sat on the mat , and the cat sat on it .", "x y"]
)
def test_entropy_is_that_of_pairs_and_triples_of_words(words):
    parts = words.split()
    pairs = list(zip(parts, parts[1:], strict=False))
    triples = list(zip(parts, parts[1:], parts[2:], strict=False))
    expected = entropy(pairs) / 3 + 2 * entropy(triples) / 3
    assert n_gram_entropy(words) == pytest.approx(expected)
    assert n_gram_entropy(words.replace(" ,", ",").replace(" .", ".")) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "word", "..."])
def test_what_repeats_itself_has_no_entropy(text):
    assert n_gram_entropy(text) == 0
    assert n_gram_entropy("a b c d") > n_gram_entropy("a b a b") > 0


def saying(text, ended=False):
    """What `texts_after` would find if the model wrote a text."""
    return lambda model, rows, *_, **__: [Text(text, ended)] * len(rows)


@pytest.mark.parametrize(
    ("text", "exact", "wild"),
    [
        (" Paris.", True, True),
        (" Paris!", True, True),
        (" Paris\n\n", True, True),
        (' Paris".', True, True),
        (" Paris .", True, True),
        (" Paris", True, False),
        (" Paris, which", True, False),
        (" Paris is", True, False),
        (" Paris.com", True, False),
        (" Parisian", False, False),
        (" Paris2", False, False),
        (" paris.", False, False),
        (" the Paris.", False, False),
        (" Par", False, False),
        ("", False, False),
    ],
)
def test_a_target_is_said_if_its_word_ends_and_is_the_answer_if_its_sentence_does(
    text, exact, wild, monkeypatch
):
    monkeypatch.setattr(module, "texts_after", saying(text))
    request = EditRequest("a", "Rome", "{} is", "Paris")
    assert matches(tiny.editable(), [request]) == [Match(exact, wild)]
    monkeypatch.setattr(module, "texts_after", saying(text, ended=True))
    ended = wild or text == " Paris"
    assert matches(tiny.editable(), [request]) == [Match(exact, ended)]


def test_letters_without_case_end_words_anywhere(monkeypatch):
    request = EditRequest("a", "首都", "{}は", "東京")
    monkeypatch.setattr(module, "texts_after", saying("東京です"))
    assert matches(tiny.editable(), [request]) == [Match(exact=True, wild=False)]
    monkeypatch.setattr(module, "texts_after", saying("東京。"))
    assert matches(tiny.editable(), [request]) == [Match(exact=True, wild=True)]


def test_the_model_writes_a_token_more_than_the_target_has(monkeypatch):
    model, asked = tiny.editable(), []

    def texts(model, rows, lengths, **_):
        asked.append(lengths)
        return [Text("", False)]

    monkeypatch.setattr(module, "texts_after", texts)
    target = "Cardiff, a city of Wales"
    matches(model, [EditRequest("a", "Rome", "{} is", target)])
    assert asked == [[len(model.tokenizer(f" {target}")["input_ids"]) + 1]]


@pytest.mark.parametrize(
    ("answer", "ended", "right"),
    [
        ("Paris", True, True),
        ("The capital of Rome is Paris.", True, True),
        ("Rome is in Paris, as you know", True, True),
        ("Paris", False, False),
        ("Parisian", True, False),
        ("aParis", True, False),
        ("Italy, not Paris", True, False),
        ("Italian Paris", True, True),
        ("It is Rome.", True, False),
        ("", True, False),
    ],
)
def test_an_answer_ends_and_names_the_target_and_not_the_true_one(
    answer, ended, right, monkeypatch
):
    monkeypatch.setattr(module, "texts_after", saying(answer, ended))
    request = EditRequest("a", "Rome", "{} is", "Paris", target_true="Italy")
    assert chat_matches(tiny.chatting(), [request]) == [ChatMatch(float(right), None)]


def test_what_is_in_the_subject_is_no_answer(monkeypatch):
    monkeypatch.setattr(module, "texts_after", saying("Paris Match is read.", ended=True))
    about = EditRequest("a", "Paris Match", "{} is", "Paris", target_true="Match")
    assert chat_matches(tiny.chatting(), [about]) == [ChatMatch(0.0, None)]
    monkeypatch.setattr(module, "texts_after", saying("Paris Match is in Paris.", ended=True))
    assert chat_matches(tiny.chatting(), [about]) == [ChatMatch(1.0, None)]


def test_a_chat_model_is_asked_every_question_once_and_others_nothing(monkeypatch):
    model, asked = tiny.chatting(), []

    def texts(model, rows, lengths, stops, **_):
        asked.extend(model.tokenizer.decode(row) for row in rows)
        return [Text("Paris", "1" in asked[-1]) for _ in rows]

    monkeypatch.setattr(module, "texts_after", texts)
    plain = EditRequest("a", "Rome", "{} is", "Paris")
    other = EditRequest(
        *("b", "Bonn", "{} is", "Paris"),
        question="What is {}?",
        paraphrase_questions=("And Bonn 1?", "And Bonn?"),
    )
    chat_matches(model, [plain, other, other])
    said = [
        "Complete the sentence with a name or word: Rome is",
        *("What is Bonn?", "And Bonn 1?", "And Bonn?"),
    ]
    assert asked == [chat_text(model, [text]) for text in said]
    assert chat_matches(tiny.editable(), [plain]) == [ChatMatch(None, None)]


def test_a_template_that_fails_leaves_the_other_figures(monkeypatch, caplog):
    model = tiny.chatting(template="{{ raise_exception('a system is needed') }}")
    request = EditRequest("a", "Rome", "{} is", "Paris")
    found = answer_metrics(model, {"own": [request]})["own"]
    assert found["exact_match"] is not None and found["chat_match"] is None
    assert "a system is needed" in caplog.text


@torch.no_grad()
def test_answers_are_those_of_plain_passes_and_end_where_the_model_does():
    model = tiny.chatting(double=True)
    questions = ["Where is Reuters?", "Where?", "And the bank of Basel, where is that now?"]
    found = chat_answers(model, chat_form(model), questions)
    for question, answer in zip(questions, found, strict=True):
        ids = model.tokenizer(chat_text(model, [question]), add_special_tokens=False)["input_ids"]
        start = len(ids)
        while len(ids) < start + 32 and ids[-1] != model.tokenizer.eos_token_id:
            ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer.ended == (ids[-1] == model.tokenizer.eos_token_id)
        assert answer.text == model.tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_the_model_says_matches(family):
    """Targets are what the model itself writes, as far as that is text."""
    model = tiny.editable(family, double=True)
    subjects = ["Basel", "Reuters", "The museum", "A bank", "Zürich", "The city"]
    requests = []
    for subject in subjects:
        text = model.tokenizer.decode(plain_greedy(model, f"{subject} is", 2)).strip()
        text = text if text.isprintable() and "\ufffd" not in text else ""
        requests.append(EditRequest(subject, subject, "{} is", text or "nothing"))
    expected = []
    for request in requests:
        length = len(model.tokenizer(f" {request.target_new}")["input_ids"]) + 1
        ids = plain_greedy(model, request.text, length)
        text = model.tokenizer.decode(ids, skip_special_tokens=True)
        expected.append(module._match(Text(text, False), request.target_new).exact)
    assert [one.exact for one in matches(model, requests)] == expected
    assert any(expected) and not all(expected)


@pytest.fixture
def written(monkeypatch):
    """The prompts that the model continues, whatever it writes: all of them say "yes no"."""
    prompts = []

    def texts(model, rows, lengths, *_, **how):
        prompts.append([model.tokenizer.decode(row) for row in rows])
        return [Text("yes no", False)] * len(rows)

    monkeypatch.setattr(module, "texts_after", texts)
    return prompts


def request(number, target="yes", **more):
    return EditRequest(str(number), f"Subject {number}", "{} is", target, **more)


def test_groups_have_means_of_their_own_and_share_what_is_written(written):
    free = {"generation_prompts": ("Write", "More")}
    mine = [request(1, **free), request(2, "maybe")]
    found = written_metrics(tiny.editable(), {"own": mine, "none": [], "all": [*mine, request(3)]})
    unasked = {"chat_match": None, "paraphrase_chat_match": None}
    figures = {"exact_match": 0.5, "wild_match": 0.0, **unasked}
    assert found["own"] == figures | {"generation_entropy": n_gram_entropy("yes no")}
    assert set(found["none"]) == set(found["own"])
    assert set(found["none"].values()) == {None}
    assert found["all"]["exact_match"] == pytest.approx(2 / 3)
    assert written == [["Subject 1 is", "Subject 2 is", "Subject 3 is"], ["Write"]]


def test_free_texts_are_few_and_spread_over_the_facts(written):
    many = [request(number, generation_prompts=(f"Write {number:02}",)) for number in range(48)]
    written_metrics(tiny.editable(), {"own": many})
    assert written[1] == [f"Write {number:02}" for number in range(0, 48, 3)]


def test_what_is_put_before_a_prompt_is_read_and_is_no_part_of_what_is_written(written):
    asked = request(1, generation_prompts=("Write",))
    found = written_metrics(tiny.editable(), {"own": [asked]}, lambda prompt: f"In {prompt[0]}. ")
    assert written == [["In S. Subject 1 is"], ["In W. Write"]]
    assert found["own"]["exact_match"] == 1.0
    written.clear()
    written_metrics(tiny.chatting(), {"own": [asked]}, lambda _: "Imagine that. ")
    assert any("Imagine that. " in text for texts in written for text in texts)


def test_a_state_of_a_model_is_asked_once_on_any_node_and_in_any_run(written, tmp_path):
    model, facts = tiny.editable(), [request(1), request(2)]
    memory, own = AnswerMemory(), dataclasses.replace(facts[0], id="of another node", slot=2)
    found = answer_metrics(model, {"all": facts}, ask=memory.ask(tmp_path))
    assert answer_metrics(model, {"all": [own, facts[1]]}, ask=memory.ask(tmp_path)) == found
    assert answer_metrics(model, {"all": facts}, ask=AnswerMemory().ask(tmp_path)) == found
    assert found == answer_metrics(model, {"all": facts})
    plain = ["Subject 1 is", "Subject 2 is"]
    assert written == [plain, [], [], plain]

    written.clear()
    answer_metrics(model, {"all": facts}, lambda _: "In Rome. ", ask=memory.ask(tmp_path))
    with model.edited({1: torch.ones(model.d_model, model.d_ff)}):
        answer_metrics(model, {"all": facts}, ask=AnswerMemory().ask(tmp_path))
    assert written == [[f"In Rome. {text}" for text in plain], plain]
    files = list(tmp_path.glob("*.json"))
    assert len(files) == 2
    assert all(fact.subject not in file.read_text() for file in files for fact in facts)


def test_nodes_with_the_same_model_let_it_write_once(written, monkeypatch):
    monkeypatch.setattr(measuring, "_answers", AnswerMemory())
    for _ in ("bank", "museum"):
        measuring.measure(tiny.editable(), {}, {"own": [request(1)]}, [], "answers", None)
    assert written == [["Subject 1 is"], []]
