"""The library computes what the plain reference computes, to 1e-8, in float64."""

import dataclasses
import functools

import pytest
import tiny
import torch
from editing import reference
from editing.cases import EASY, ODD, REQUESTS, SETTINGS, TEMPLATES, outlier_model, relative

from fedit_app.editing.covariance import collect_covariance
from fedit_app.editing.editors import EDITORS
from fedit_app.editing.pairs import Pairs
from fedit_app.editing.subjects import SubjectStates, in_chats, lookup_keys
from fedit_app.models.chat import chat_form

pytestmark = pytest.mark.long

FEW_STEPS = dataclasses.replace(SETTINGS, steps=6, learning_rate=2.0)

# Each editor on one family, and each kind of family with one editor; `make test-all` has them all.
QUICK = [
    ("llama", "memit"),
    *(("llama", editor) for editor in ("blue", "encore", "betaedit")),
    ("gpt2", "alphaedit"),
    ("gptj", "memit-fe"),
    ("gemma2", "pmet"),
]


def token_rows(model):
    generator = torch.Generator().manual_seed(5)
    lengths = (40, 25, 33)
    size = len(model.tokenizer)
    return [torch.randint(2, size, (n,), generator=generator).tolist() for n in lengths]


@functools.cache
def covariances_of(model, layers):
    return collect_covariance(model, layers, token_rows(model))


def splitting(settings, covariances):
    """Settings with which half of the covariances' directions are free for AlphaEdit."""
    eigenvalues = torch.cat([torch.linalg.eigvalsh(c) for c in covariances.values()])
    return dataclasses.replace(settings, null_space_threshold=float(eigenvalues.median()))


def compare_values(model, requests, templates, settings, editor="memit"):
    values = EDITORS[editor].values(model, requests, templates, settings)
    assert values.v_star.dtype == values.h0.dtype == values.loss.dtype == torch.float64
    moved = []
    for i, request in enumerate(requests):
        v_star, h0, loss, steps = reference.optimise_value(
            model, (request,), templates, settings, editor
        )
        assert int(values.steps[i]) == steps, request.id
        moved.append(relative(v_star, h0))
        assert relative(values.v_star[i], v_star) < 1e-8, request.id
        assert relative(values.h0[i], h0) < 1e-8, request.id
        assert float(values.loss[i]) == pytest.approx(loss, rel=1e-8), request.id
    assert max(moved) > 0.1 and min(moved) > 0.02, "what stays at home compares nothing"
    return values


def compare_edits(model, settings, editor, *groups, templates=TEMPLATES):
    """Edit groups of requests, each on top of those before, and compare every figure."""
    layers, editing = settings.layers, EDITORS[editor]
    covariances = covariances_of(model, layers)
    solver = editing.solver(covariances, settings, model.device)
    keys = {layer: torch.zeros(0, model.d_ff, dtype=torch.float64) for layer in layers}
    shifts = {layer: torch.zeros(0, model.d_model, dtype=torch.float64) for layer in layers}
    kinds = [False, True][: len({type(one) for one in templates})]
    ledger = (
        torch.zeros(0, len(layers), model.d_ff, dtype=torch.float64),
        torch.zeros(0, len(layers), model.d_model, dtype=torch.float64),
    )
    for requests in groups:
        alone = [[request] for request in requests]
        if len(kinds) == 1:
            values = compare_values(model, requests, templates, settings, editor)
        else:
            values = editing.values(model, requests, templates, settings)
        places = editing.kinds(model, alone, templates, settings, values)
        found = editing.vectors(model, places, solver, Pairs(*ledger), settings)
        assert torch.equal(found.v_star, values.v_star[:, -1])
        assert torch.equal(found.h0, values.h0[:, -1])
        pairs = found.pairs
        ledger = (torch.cat([ledger[0], pairs.keys]), torch.cat([ledger[1], pairs.shifts]))
        solved = solver.deltas(Pairs(*ledger))
        new_keys, new_shifts, deltas = reference.edit(
            model, requests, TEMPLATES, covariances, settings, keys, shifts, editor, kinds
        )
        for i, layer in enumerate(layers):
            assert relative(found.keys[:, i].flatten(0, 1), new_keys[layer]) < 1e-8
            assert relative(found.shifts[:, i].flatten(0, 1), new_shifts[layer]) < 1e-8
            assert relative(solved[layer], deltas[layer]) < 1e-8
            keys[layer] = torch.cat([keys[layer], new_keys[layer]])
            shifts[layer] = torch.cat([shifts[layer], new_shifts[layer]])


@pytest.mark.parametrize("editor", ["memit", "pmet"])
def test_the_facts_of_a_key_share_the_value_that_serves_their_mean(editor):
    model = tiny.editable("llama", double=True)
    third = dataclasses.replace(REQUESTS[1], id="r4", prompt="{}, founded in", target_new="March")
    requests, groups = [*REQUESTS, third, *EASY], [[0], [1, 3, 5], [2], [4]]
    settings = dataclasses.replace(FEW_STEPS, batch=3)
    values = EDITORS[editor].values(model, requests, TEMPLATES, settings, groups=groups)
    for found, group in enumerate(groups):
        facts = tuple(requests[i] for i in group)
        v_star, h0, loss, steps = reference.optimise_value(
            model, facts, TEMPLATES, settings, editor
        )
        assert int(values.steps[found]) == steps
        assert relative(v_star, h0) > 0.02
        assert relative(values.v_star[found], v_star) < 1e-8
        assert relative(values.h0[found], h0) < 1e-8
        assert float(values.loss[found]) == pytest.approx(loss, rel=1e-8)


@pytest.mark.parametrize(
    ("family", "editor"),
    [
        pytest.param(family, editor, marks=() if (family, editor) in QUICK else pytest.mark.slow)
        for family in tiny.FAMILIES
        for editor in EDITORS
    ],
)
def test_two_edits_in_a_row(family, editor):
    model = tiny.editable(family, double=True)
    layers = FEW_STEPS.layers
    if editor == "blue":
        layers = (layers[0], layers[-1])
    settings = dataclasses.replace(FEW_STEPS, layers=layers)
    settings = splitting(settings, covariances_of(model, layers))
    compare_edits(model, settings, editor, REQUESTS[:2], REQUESTS[2:])


@pytest.mark.parametrize("family", tiny.every(*tiny.VARIANTS))
@pytest.mark.parametrize("editor", ["memit", "pmet"])
def test_two_edits_in_a_row_of_other_configurations(family, editor):
    settings = dataclasses.replace(FEW_STEPS, layers=(0, 2))
    compare_edits(tiny.editable(family, double=True), settings, editor, REQUESTS[:1], REQUESTS[2:])


@pytest.mark.parametrize("editor", ["memit", *tiny.later("pmet", "memit-fe")])
def test_values_that_reach_the_clamp(editor):
    model = tiny.editable(double=True)
    settings = dataclasses.replace(SETTINGS, clamp=0.3, kl_weight=0.01, weight_decay=0.1)
    values = compare_values(model, EASY[:2], TEMPLATES, settings, editor)
    length = (values.v_star - values.h0).norm(dim=-1)
    assert torch.allclose(length, 0.3 * values.h0.norm(dim=-1))


@pytest.mark.parametrize("bos", [*tiny.later(False), True])
@pytest.mark.parametrize(
    ("family", "editor"),
    [
        ("llama", "memit"),
        ("gpt2", "pmet"),
        pytest.param("gptj", "memit-fe", marks=pytest.mark.slow),
        pytest.param("gemma2", "alphaedit", marks=pytest.mark.slow),
    ],
)
def test_values_that_keep_the_subjects_name(family, editor, bos):
    model = tiny.editable(family, bos=bos, double=True)
    settings = dataclasses.replace(SETTINGS, steps=5, subject_weight=2.0)
    requests = [*REQUESTS, *ODD[:-1]]
    found = compare_values(model, requests, TEMPLATES, settings, editor)
    without = dataclasses.replace(settings, subject_weight=0.0)
    forgetful = EDITORS[editor].values(model, requests, TEMPLATES, without)
    assert relative(found.v_star, forgetful.v_star) > 1e-3


@pytest.mark.parametrize("subject_weight", [0.0, 2.0])
@pytest.mark.parametrize("editor", ["memit", "pmet"])
def test_values_and_keys_in_chats(editor, subject_weight):
    """The question is asked where there is one, and the answer ends; lookup keys are of texts."""
    model = tiny.chatting(double=True)
    settings = dataclasses.replace(SETTINGS, steps=5, subject_weight=subject_weight)
    question = dataclasses.replace(REQUESTS[1], id="q", question="What is struck at {} today?")
    requests, groups = [*REQUESTS, question, *EASY[:1]], [[0, 4], [1], [2], [3]]
    templates = (*TEMPLATES, chat_form(model))
    found = EDITORS[editor].values(model, requests, templates, settings, groups=groups)
    for i, group in enumerate(groups):
        facts = tuple(requests[number] for number in group)
        v_star, h0, loss, _ = reference.optimise_value(
            model, facts, TEMPLATES, settings, editor, chat=True
        )
        assert relative(found.v_star[i], v_star) < 1e-8 < relative(v_star, h0)
        assert relative(found.h0[i], h0) < 1e-8
        assert float(found.loss[i]) == pytest.approx(loss, rel=1e-8)
    assert relative(found.v_star[1], found.v_star[3]) > 1e-3
    keys = lookup_keys(model, requests, templates, 2)
    for i, request in enumerate(requests):
        expected = reference.key(model, request, TEMPLATES, 2)
        assert relative(keys[i], expected) < 1e-8
    assert torch.equal(keys[1], keys[3])


@pytest.mark.parametrize("editor", ["memit", "pmet", *tiny.later("alphaedit", "memit-fe")])
def test_a_value_learned_in_chats_is_written_at_the_questions_key_too(editor):
    model = tiny.chatting(double=True)
    question = dataclasses.replace(REQUESTS[1], question="What is struck at {} today?")
    templates, groups = (*TEMPLATES, chat_form(model)), (REQUESTS[:1], [question])
    settings = splitting(FEW_STEPS, covariances_of(model, FEW_STEPS.layers))
    compare_edits(model, settings, editor, *groups, templates=templates)


def test_facts_of_a_key_that_are_asked_for_differently_share_the_mean_of_their_questions_keys():
    model = tiny.chatting(double=True)
    templates = (*TEMPLATES, chat_form(model))
    asked = [
        dataclasses.replace(REQUESTS[1], question=question)
        for question in ("What is struck at {}?", "Who runs {}?", "Who runs {}?")
    ]
    places = in_chats(model, [REQUESTS[:1], asked], templates)
    found = SubjectStates(model, places, 2, 2).see(2, 2)
    keys = [reference.key(model, request, TEMPLATES, 2, chat=True) for request in asked]
    assert relative(found.key[1], (keys[0] + keys[1]) / 2) < 1e-10 < relative(keys[0], keys[1])
    state = reference.output_of(model, asked[0], model.layers[2], chat=True)
    assert relative(found.state[1], state) < 1e-10
    first = reference.key(model, REQUESTS[0], TEMPLATES, 2, chat=True)
    assert relative(found.key[0], first) < 1e-10
    assert in_chats(model, [asked], TEMPLATES) is None


@pytest.mark.parametrize("norm_guard", [*tiny.later(0.0), 2.0])
@pytest.mark.parametrize("editor", ["memit", *tiny.later("pmet", "memit-fe")])
def test_values_beyond_the_norm_guard(editor, norm_guard):
    settings = dataclasses.replace(SETTINGS, clamp=0.3, learning_rate=2.0, norm_guard=norm_guard)
    compare_values(outlier_model(), [ODD[0], EASY[1]], TEMPLATES, settings, editor)


@pytest.mark.parametrize("editor", ["memit", *tiny.later("pmet", "memit-fe")])
@pytest.mark.parametrize("family", ["gpt2", *tiny.later("gptj", "qwen2")])
def test_values_with_an_early_stop(family, editor):
    model = tiny.editable(family, double=True)
    settings = dataclasses.replace(
        SETTINGS, stop_after=2, steps=25, clamp=20.0, kl_weight=0.01, weight_decay=0.1
    )
    steps = compare_values(model, EASY, TEMPLATES, settings, editor).steps.tolist()
    assert min(steps) < max(steps), "all stopped together: no finished row left the batch"


@pytest.mark.parametrize("bos", [*tiny.later(False), True])
@pytest.mark.parametrize(
    ("family", "editor"),
    [
        ("llama", "memit"),
        ("gpt2", "pmet"),
        pytest.param("gptj", "memit-fe", marks=pytest.mark.slow),
        pytest.param("gemma2", "pmet", marks=pytest.mark.slow),
    ],
)
def test_values_of_odd_requests(family, editor, bos):
    model = tiny.editable(family, bos=bos, double=True)
    compare_values(model, ODD, TEMPLATES, dataclasses.replace(SETTINGS, steps=4), editor)


@pytest.mark.parametrize("editor", ["memit", "pmet"])
@pytest.mark.parametrize("family", ["llama", "gptj", "bloom"])
def test_value_without_any_token_before_the_subject(family, editor):
    model = tiny.editable(family, double=True)
    compare_values(model, ODD[:1], ("{}",), FEW_STEPS, editor)


@pytest.mark.parametrize("family", tiny.every(*tiny.FAMILIES))
def test_covariance(family):
    model = tiny.editable(family, double=True)
    found = covariances_of(model, SETTINGS.layers)
    for layer in SETTINGS.layers:
        expected = reference.covariance(model, layer, token_rows(model))
        assert relative(found[layer], expected) < 1e-8


@pytest.mark.parametrize("bos", [False, True])
def test_keys_of_odd_requests(bos):
    model = tiny.editable(bos=bos, double=True)
    found = lookup_keys(model, ODD, TEMPLATES, 2)
    for i, request in enumerate(ODD):
        expected = reference.key(model, request, TEMPLATES, 2)
        assert relative(found[i], expected) < 1e-8, request.id
