"""Scores of targets and requests against one plain forward pass a pair."""

import math
from contextlib import contextmanager

import pytest
import tiny
import torch

from fedit_app.evaluation import memory as memory_module
from fedit_app.evaluation import scores as module
from fedit_app.evaluation.memory import ScoreMemory, request_hash
from fedit_app.evaluation.metrics import RequestScore
from fedit_app.evaluation.scores import (
    TargetScore,
    repetitions,
    score_requests,
    score_targets,
    still_given,
)
from fedit_app.facts.request import EditRequest

PROMPTS = ["The head office of Reuters is in", "Basel", "The museum", "The 🏦 {} of Zürich in the"]
TARGETS = ["city", "of", "London", "Cardiff, a city of Wales", "€"]
PAIRS = [(prompt, f" {target}") for prompt in PROMPTS for target in TARGETS]


@torch.no_grad()
def plain_score(model, prompt, target):
    """NLL and decoding of one target from the logits of one pass without padding."""
    ids = model.tokenizer(f"{prompt}{target}")["input_ids"]
    start = len(model.tokenizer(prompt)["input_ids"])
    log_p = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    nll = [-float(log_p[at - 1, ids[at]]) for at in range(start, len(ids))]
    hit = [int(log_p[at - 1].argmax()) == ids[at] for at in range(start, len(ids))]
    return TargetScore(sum(nll) / len(nll), sum(hit) / len(hit))


def what_it_says(model):
    """A prompt of two words and the word that the model itself puts behind it."""
    for first in ("The", "Basel", "Reuters", "A"):
        for second in ("is", "of", "in", "has", "and", "museum", "bank", "city"):
            ids = torch.tensor([model.tokenizer(f"{first} {second}")["input_ids"]])
            said = model.tokenizer.decode([int(model.model(ids).logits[0, -1].argmax())])
            if said.startswith(" ") and said.strip().isalpha():
                return first, second, said.strip()
    raise AssertionError("this model never says a word")


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", tiny.every(*tiny.FAMILIES))
def test_targets_score_as_in_a_plain_pass(family, bos):
    model = tiny.editable(family, bos=bos, double=True)
    for pair, found in zip(PAIRS, score_targets(model, PAIRS), strict=True):
        expected = plain_score(model, *pair)
        assert found.nll == pytest.approx(expected.nll, rel=1e-8), pair
        assert found.correct == expected.correct, pair
        assert found.decoded == (expected.correct == 1.0), pair


def test_batches_and_order_change_nothing(monkeypatch):
    model = tiny.editable(double=True)
    whole = score_targets(model, PAIRS)
    monkeypatch.setattr(module, "_TOKENS_PER_PASS", 10)
    small = score_targets(model, PAIRS[::-1])[::-1]
    for one, other in zip(whole, small, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-10)
        assert one.correct == other.correct


def test_targets_of_one_token_share_the_pass_of_their_prompt(monkeypatch):
    model = tiny.editable()
    seen = []
    plain = module.last_states
    monkeypatch.setattr(
        module, "last_states", lambda m, ids, mask: seen.append(len(ids)) or plain(m, ids, mask)
    )
    score_targets(model, [(PROMPTS[0], target) for target in (" city", " of", " published")])
    assert seen == [1]
    score_targets(model, [(PROMPTS[0], " London"), (PROMPTS[0], " Cardiff")])
    assert seen == [1, 2]


def test_the_same_pair_twice_and_no_pair():
    model = tiny.editable()
    first, second = score_targets(model, [PAIRS[2], PAIRS[2]])
    assert first == second
    assert score_targets(model, []) == []


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_the_model_says_is_decoded(family):
    model = tiny.editable(family)
    first, second, said = what_it_says(model)
    score, other = score_targets(model, [(f"{first} {second}", f" {text}") for text in (said, "€")])
    assert score.decoded and not other.decoded


def make_request(**changes):
    fields = {
        "id": "a",
        "subject": "Reuters",
        "prompt": "{} is in",
        "target_new": "new",
        "target_true": "true",
        "paraphrase_prompts": ("P1", "P2"),
        "neighborhood_prompts": ("N1", "N2", "N3", "N4"),
    }
    return EditRequest(**(fields | changes))


@pytest.fixture
def told(monkeypatch):
    """Scores by (prompt, target) instead of a model's; the others are (1.0, nothing correct)."""
    table = {}
    asked = []

    def score(_, pairs):
        plain = [(prompt, text.removeprefix(" ")) for prompt, text in pairs]
        asked.append(plain)
        return [TargetScore(*table.get(pair, (1.0, 0.0))) for pair in plain]

    monkeypatch.setattr(module, "score_targets", score)
    monkeypatch.setattr(module, "still_given", lambda _, subjects, __: [None] * len(subjects))
    table["asked"] = asked
    return table


def test_a_request_is_compared_with_the_true_target(told):
    told["Reuters is in", "new"] = (0.5, 1.0)
    told["P1", "new"] = (0.5, 0.0)
    told["P2", "new"] = (2.0, 0.0)
    told["N1", "true"] = told["N2", "true"] = told["N3", "true"] = (0.5, 0.0)
    told["N4", "true"] = (3.0, 0.0)
    (score,) = score_requests(None, [make_request()])
    assert (score.efficacy, score.accuracy) == (1.0, 1.0)
    assert score.paraphrase == 0.5
    assert score.neighborhood == 0.75
    assert score.metric == "likelihood"
    half, second, most = math.exp(-0.5), math.exp(-1), math.exp(-2)
    assert score.magnitude == pytest.approx(half - second)
    assert score.paraphrase_magnitude == pytest.approx((half - second + most - second) / 2)
    unlikely = math.exp(-3) - second
    assert score.neighborhood_magnitude == pytest.approx((3 * (half - second) + unlikely) / 4)


def test_accuracy_is_that_of_whole_targets(told):
    told["P1", "new"] = (0.5, 1.0)
    told["P2", "new"] = (0.5, 0.75)
    told["N1", "true"] = (0.5, 1.0)
    told["N2", "new"] = (0.5, 1.0)
    (score,) = score_requests(None, [make_request()])
    assert (score.paraphrase_accuracy, score.neighborhood_accuracy) == (0.5, 0.25)


@torch.no_grad()
def test_magnitude_is_a_difference_of_probabilities():
    model = tiny.editable(double=True)

    def probability(prompt, target):
        ids = model.tokenizer(f"{prompt} {target}")["input_ids"]
        start = len(model.tokenizer(prompt)["input_ids"])
        p = model.model(torch.tensor([ids])).logits[0].softmax(-1)
        each = [float(p[at - 1, ids[at]]) for at in range(start, len(ids))]
        return math.prod(each) ** (1 / len(each))

    request = make_request(target_new="city of Wales", target_true="London")
    (score,) = score_requests(model, [request])
    prompts = {"magnitude": ["Reuters is in"], "paraphrase_magnitude": ["P1", "P2"]}
    for name, asked in prompts.items():
        leads = [probability(p, "city of Wales") - probability(p, "London") for p in asked]
        assert getattr(score, name) == pytest.approx(sum(leads) / len(leads), rel=1e-8)


def test_likelier_is_not_yet_decoded(told):
    told["Reuters is in", "new"] = (0.5, 0.0)
    (score,) = score_requests(None, [make_request()])
    assert (score.efficacy, score.accuracy) == (1.0, 0.0)


def test_without_a_true_target_correct_tokens_count(told):
    told["Reuters is in", "new"] = (0.1, 0.75)
    told["P1", "new"] = (9.0, 1.0)
    (score,) = score_requests(None, [make_request(target_true=None)])
    assert (score.efficacy, score.accuracy) == (0.75, 0.0)
    assert score.paraphrase == 0.5
    assert score.neighborhood is None
    assert (score.paraphrase_accuracy, score.neighborhood_accuracy) == (0.5, None)
    assert score.magnitude is score.paraphrase_magnitude is score.neighborhood_magnitude is None
    assert score.metric == "tokens"
    assert set(told["asked"][0]) == {("Reuters is in", "new"), ("P1", "new"), ("P2", "new")}


OWN_TARGETS = ("one", "two", "three", "four")


def test_neighbours_with_targets_of_their_own_are_asked_for_these(told):
    told["N1", "one"] = (9.0, 1.0)
    told["N2", "two"] = (9.0, 0.5)
    around = {"neighborhood_targets": OWN_TARGETS}
    (score,) = score_requests(None, [make_request(target_true=None, **around)])
    assert (score.neighborhood, score.metric) == (0.375, "tokens")
    assert (score.neighborhood_accuracy, score.neighborhood_magnitude) == (0.25, None)
    asked = {pair for pair in told["asked"][0] if pair[0].startswith("N")}
    assert asked == set(zip(("N1", "N2", "N3", "N4"), OWN_TARGETS, strict=True))

    (score,) = score_requests(None, [make_request(**around)])
    assert (score.neighborhood, score.metric) == (0.375, "mixed")


def test_what_follows_from_an_edit_is_asked_with_its_own_answers(told):
    told["H1", "one"], told["H2", "two"] = (3.0, 0.5), (3.0, 1.0)
    hops = {"portability_prompts": ("H1", "H2"), "portability_targets": ("one", "two")}
    (score,) = score_requests(None, [make_request(**hops)])
    assert (score.portability, score.reversal) == (0.75, None)
    (bare,) = score_requests(None, [make_request()])
    assert (bare.portability, bare.reversal) == (None, None)


@pytest.mark.parametrize(("nll", "reversal"), [(0.5, 1.0), (1.5, 0.0)])
def test_a_reversed_fact_compares_the_subject_behind_the_two_targets(told, nll, reversal):
    told["New holds", "Reuters"], told["True holds", "Reuters"] = (nll, 0.25), (1.0, 1.0)
    (score,) = score_requests(None, [make_request(reversed_prompt="{} holds")])
    assert score.reversal == reversal
    (score,) = score_requests(None, [make_request(reversed_prompt="{} holds", target_true=None)])
    assert score.reversal == 0.25, "with one target the correct tokens count"


@torch.no_grad()
def zsre_accuracy(model, prompt, target):
    """Share of a target's tokens that are the argmax, one pass a token as in MEMIT's evaluation."""
    ids = model.tokenizer(prompt)["input_ids"]
    wanted = model.tokenizer(f" {target}", add_special_tokens=False)["input_ids"]
    hits = []
    for token in wanted:
        hits.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()) == token)
        ids = [*ids, token]
    return sum(hits) / len(hits)


@pytest.mark.parametrize(("family", "bos"), [("llama", True), ("gpt2", False), ("gptj", False)])
def test_zsre_is_scored_as_in_the_literature(family, bos):
    model = tiny.editable(family, bos, double=True)
    questions = ["What city is the seat of Reuters?", "Where does Reuters have its seat?"]
    around = ["nq question: who made the museum?", "nq question: where is the bank?"]

    def partly(prompt):
        """An answer that the model gives in its first two tokens, and then not."""
        ids = model.tokenizer(f"{prompt} ", return_tensors="pt")["input_ids"]
        said = model.model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=1)
        text = model.tokenizer.decode(said[0, ids.shape[1] :])
        seen = "".join(char for char in text if char.isprintable() and char != "\ufffd")
        return seen.strip() + " museum of the city"

    request = EditRequest(
        "0",
        "Reuters",
        "What city is the seat of {}?",
        partly(questions[0]),
        paraphrase_prompts=(questions[1],),
        neighborhood_prompts=tuple(around),
        neighborhood_targets=tuple(map(partly, around)),
    )
    (score,) = score_requests(model, [request])
    answers = [request.target_new] * 2 + list(request.neighborhood_targets)
    asked = zip(questions + around, answers, strict=True)
    expected = [zsre_accuracy(model, *pair) for pair in asked]
    assert score.efficacy == pytest.approx(expected[0])
    assert score.paraphrase == pytest.approx(expected[1])
    assert score.neighborhood == pytest.approx(sum(expected[2:]) / 2)
    assert any(0 < share < 1 for share in expected), "a share that is neither none nor all"


def test_without_prompts_there_is_no_share(told):
    bare = make_request(paraphrase_prompts=(), neighborhood_prompts=())
    (score,) = score_requests(None, [bare])
    assert score.paraphrase is None and score.neighborhood is None


ABOUT = tuple(f"The {word} of Reuters {verb}" for word in TARGETS for verb in ("is", "has", "in"))


@torch.no_grad()
def said_next(model, prompt):
    return int(
        model.model(torch.tensor([model.tokenizer(prompt)["input_ids"]])).logits[0, -1].argmax()
    )


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", tiny.every(*tiny.FAMILIES))
def test_other_relations_are_the_prompts_whose_next_token_stays(family, bos):
    model = tiny.editable(family, bos=bos, double=True)
    request = make_request(subject_prompts=ABOUT)
    (before,) = score_requests(model, [request])
    assert before.other_relations == 1.0
    was = [said_next(model, prompt) for prompt in ABOUT]
    delta = torch.randn(model.d_model, model.d_ff, generator=torch.Generator().manual_seed(1))
    shares = set()
    for size in (0.01, 0.1, 1.0, 100.0):
        with model.edited({1: size * delta}):
            (after,) = score_requests(model, [request])
            now = [said_next(model, prompt) for prompt in ABOUT]
        kept = [one == other for one, other in zip(was, now, strict=True)]
        assert after.other_relations == sum(kept) / len(kept)
        shares.add(after.other_relations)
    assert min(shares) < 1


def test_without_subject_prompts_the_unedited_model_is_not_asked(told):
    (score,) = score_requests(None, [make_request()])
    assert score.other_relations is None


@torch.no_grad()
def writes(model, prompt, text):
    """Whether greedy decoding, a token a pass, writes this text."""
    ids = model.tokenizer(prompt)["input_ids"]
    wanted = model.tokenizer(prompt + text)["input_ids"][len(ids) :]
    said = []
    for _ in wanted:
        said.append(int(model.model(torch.tensor([ids + said])).logits[0, -1].argmax()))
    return said == wanted


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_fidelity_is_how_often_a_name_is_repeated_that_the_unedited_model_repeats(
    family, monkeypatch
):
    model = tiny.editable(family, double=True)
    first, second, said = what_it_says(model)
    asking = (f"{first} {second}", f"{second} {first}", "The museum of {}:")
    monkeypatch.setattr(module, "_REPEATING", asking)
    names = [said, "Reuters"]
    pairs = {name: repetitions(name) for name in names}
    before = {name: [writes(model, *pair) for pair in pairs[name]] for name in names}
    assert any(before[said]) and not any(before["Reuters"])
    assert still_given(model, names) == [1.0, None]
    delta = torch.randn(model.d_model, model.d_ff, generator=torch.Generator().manual_seed(1))
    shares = set()
    for size in (0.01, 0.1, 1.0, 100.0):
        with model.edited({1: size * delta}):
            now = {name: [writes(model, *pair) for pair in pairs[name]] for name in names}
            found = still_given(model, names)
            (score,) = score_requests(model, [make_request(subject=said)])
        kept = [after for after, base in zip(now[said], before[said], strict=True) if base]
        assert found == [sum(kept) / len(kept), None]
        assert score.subject_fidelity == found[0]
        shares.add(found[0])
    assert min(shares) < 1


def test_no_pair_is_asked_twice(told):
    score_requests(None, [make_request(), make_request(id="b"), make_request(id="c")])
    (pairs,) = told["asked"]
    assert len(pairs) == len(set(pairs)) == 14


@pytest.fixture
def counted(monkeypatch):
    """The requests that reach the model, call by call."""
    calls = []

    def score(model, requests):
        calls.append([request.target_new for request in requests])
        return score_requests(model, requests)

    monkeypatch.setattr(memory_module, "score_requests", score)
    return calls


@contextmanager
def in_state(model, state):
    """The model, edited by so much; 0: unedited."""
    with model.edited({1: torch.full((model.d_model, model.d_ff), float(state))}):
        yield


def test_memory_asks_once_per_state(counted):
    model, memory = tiny.editable(), ScoreMemory()
    one, same = make_request(), make_request(id="b", slot=2)
    other = make_request(target_new="other")
    found = memory.score(model, [one, same])
    assert found[one] == found[same] == score_requests(model, [one])[0]
    memory.score(model, [one, other])
    memory.score(model, [same, other])
    assert counted == [["new"], ["other"], []]


def test_memory_forgets_old_states_and_keeps_the_unedited(counted):
    model, memory = tiny.editable(), ScoreMemory()
    request = make_request()
    for state in (0, 1, 1, 2, 0, 1):
        with in_state(model, state):
            memory.score(model, [request])
    assert counted == [["new"], ["new"], [], ["new"], [], ["new"]]


def test_memory_tells_subject_prompts_apart(counted, tmp_path):
    model, one = tiny.editable(), make_request()
    other = make_request(subject_prompts=("Reuters is a",))
    for _ in range(2):
        found = ScoreMemory().score(model, [one, other], tmp_path)
        assert [found[r].other_relations for r in (one, other)] == [None, 1.0]
    assert counted == [["new", "new"], []]


def test_memory_tells_implications_apart_and_a_fact_is_the_same_with_other_ones(tmp_path):
    model, one = tiny.editable(), make_request()
    other = make_request(reversed_prompt="{} is home of")
    for _ in range(2):
        found = ScoreMemory().score(model, [one, other], tmp_path)
        assert [found[r].reversal is None for r in (one, other)] == [True, False]
    assert request_hash(one) == request_hash(other)


def test_memory_tells_models_and_dtypes_apart(counted):
    memory = ScoreMemory()
    for model in (tiny.editable(), tiny.editable("gpt2"), tiny.editable(double=True)):
        memory.score(model, [make_request()])
    assert counted == [["new"]] * 3


def test_memory_scores_the_model_as_it_is():
    model, memory = tiny.editable(), ScoreMemory()
    first, second, said = what_it_says(model)
    request = EditRequest("a", first, f"{{}} {second}", said)
    delta = torch.randn(model.d_model, model.d_ff, generator=torch.Generator().manual_seed(0))
    before = memory.score(model, [request])[request]
    with model.edited({layer: 5 * delta for layer in range(model.n_layers)}):
        after = memory.score(model, [request])[request]
        assert after == score_requests(model, [request])[0]
    assert (before.accuracy, after.accuracy) == (1.0, 0.0)


def test_another_process_finds_the_scores_of_a_state(counted, tmp_path):
    model, one, other = tiny.editable(), make_request(), make_request(target_new="other")
    computed = {}
    for state in (0, 1):
        with in_state(model, state):
            computed[state] = ScoreMemory().score(model, [one], tmp_path)[one]
    assert computed[0] != computed[1] or counted == [["new"], ["new"]]
    counted.clear()
    renamed = make_request(id="b", slot=2)
    with in_state(model, 1):
        found = ScoreMemory().score(model, [renamed, other], tmp_path)
        assert found == dict(
            zip([renamed, other], score_requests(model, [one, other]), strict=True)
        )
    assert counted == [["other"]]
    assert ScoreMemory().score(model, [one], tmp_path)[one] == computed[0]
    files = list(tmp_path.glob("*.json"))
    assert len(files) == 2
    assert all(one.subject not in file.read_text() + file.name for file in files)


def test_what_is_not_a_number_is_not_kept(tmp_path, monkeypatch):
    nan = RequestScore(1.0, math.nan, None, 0.0, "likelihood")
    monkeypatch.setattr(memory_module, "score_requests", lambda *_: [nan])
    found = ScoreMemory().score(tiny.editable(), [make_request()], tmp_path)
    assert list(found.values()) == [nan]
    assert [file.read_text() for file in tmp_path.glob("*.json")] == ["{}\n"]


def test_scores_that_cannot_be_read_are_computed(counted, tmp_path, log):
    model = tiny.editable()
    ScoreMemory().score(model, [make_request()], tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_text('{"half')
    ScoreMemory().score(model, [make_request()], tmp_path)
    ScoreMemory().score(model, [make_request()], tmp_path)
    assert counted == [["new"], ["new"], []] and "is replaced" in log.text
