"""Batches, stops and patches of the v* optimisation."""

import dataclasses
import functools
import itertools

import pytest
import tiny
import torch
from editing.cases import (
    EASY,
    EVERY_EDITOR,
    ODD,
    REQUESTS,
    SETTINGS,
    TEMPLATES,
    outlier_model,
    relative,
)

from fedit_app.editing.editors import EDITORS
from fedit_app.editing.sites import LayerOutput, LayerParts
from fedit_app.editing.values import ValueProblem, key_rows
from fedit_app.models.chat import chat_form

FAST = dataclasses.replace(
    SETTINGS, stop_after=2, steps=25, clamp=20.0, kl_weight=0.01, weight_decay=0.1
)
MEMIT = EDITORS["memit"]
LAST = SETTINGS.layers[-1]


@pytest.fixture(scope="module")
def model():
    return tiny.editable(double=True)


@functools.cache
def alone(editor="memit", family="llama", bos=False):
    """Every request optimised by itself."""
    model = tiny.editable(family, bos=bos, double=True)
    requests = EASY + REQUESTS + ODD
    return {r.id: EDITORS[editor].values(model, [r], TEMPLATES, FAST) for r in requests}


def make_problem(model, requests, site, with_copy=False):
    form = chat_form(model)
    templates = TEMPLATES if form is None else (*TEMPLATES, form)
    keys = [key_rows(model, [r], templates, with_copy) for r in requests]
    return ValueProblem.of(model, keys, site)


def changes_of(values):
    """(n, d_model) v* - h0 at the last output of the site, as an MKV carries it."""
    return (values.v_star - values.h0)[:, -1]


@pytest.mark.parametrize(
    ("editor", "family", "bos", "batch", "order"),
    [
        ("memit", "llama", False, 16, 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("pmet", "gptj", False, 5, -1),
                *itertools.product(["memit"], ["llama"], [False], [1, 2, 5], [1, -1]),
                ("memit", "llama", False, 16, -1),
                ("memit", "llama", True, 4, -1),
                ("pmet", "gptj", False, 0, -1),
                *itertools.product(["memit-fe", "alphaedit"], ["gptj"], [False], [0, 5], [-1]),
            ]
        ),
    ],
)
def test_batch_size_and_order_change_nothing(editor, family, bos, batch, order):
    model, expected = tiny.editable(family, bos=bos, double=True), alone(editor, family, bos)
    requests = (EASY + REQUESTS + ODD)[::order]
    settings = dataclasses.replace(FAST, batch=batch)
    values = EDITORS[editor].values(model, requests, TEMPLATES, settings)
    assert len(set(values.steps.tolist())) > 1, "all stopped together"
    for i, request in enumerate(requests):
        one = expected[request.id]
        assert int(values.steps[i]) == int(one.steps[0]), request.id
        assert relative(values.v_star[i], one.v_star[0]) < 1e-8, request.id
        assert relative(values.h0[i], one.h0[0]) < 1e-10, request.id
        assert float(values.loss[i]) == pytest.approx(float(one.loss[0]), rel=1e-8)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_changes_nothing(model, monkeypatch, side):
    expected = MEMIT.values(model, EASY + ODD, TEMPLATES, FAST)
    monkeypatch.setattr(model.tokenizer, "padding_side", side)
    assert torch.equal(MEMIT.values(model, EASY + ODD, TEMPLATES, FAST).v_star, expected.v_star)


def test_a_finished_request_keeps_its_value_while_others_go_on(model):
    quick, slow = EASY[0], REQUESTS[0]
    assert int(alone()[quick.id].steps[0]) < int(alone()[slow.id].steps[0]) == FAST.steps
    values = MEMIT.values(model, [slow, quick], TEMPLATES, FAST)
    assert relative(values.v_star[1], alone()[quick.id].v_star[0]) < 1e-8
    assert relative(values.v_star[0], alone()[slow.id].v_star[0]) < 1e-8


def test_stops_after_so_many_passes_beyond_the_first_that_decodes(model):
    settings = [dataclasses.replace(FAST, stop_after=stop) for stop in (1, 2, 4)]
    steps = [int(MEMIT.values(model, EASY[:1], TEMPLATES, each).steps[0]) for each in settings]
    assert steps == [steps[0], steps[0] + 1, steps[0] + 3]


def test_a_target_that_is_lost_again_starts_the_count_anew(model, monkeypatch):
    decoded = iter([False, True, True, False, True, True, True, True])
    plain = ValueProblem.evaluate

    def evaluate(self, delta):
        return dataclasses.replace(plain(self, delta), lead=torch.tensor([next(decoded) - 0.5]))

    monkeypatch.setattr(ValueProblem, "evaluate", evaluate)
    assert MEMIT.values(model, REQUESTS[:1], TEMPLATES, FAST).steps.tolist() == [7]


@pytest.mark.parametrize("site", [LayerOutput, LayerParts])
@pytest.mark.parametrize("family", [*tiny.every(*tiny.FAMILIES, *tiny.VARIANTS), "chat"])
def test_selected_requests_make_the_same_problem(family, site):
    chat = family == "chat"
    model = tiny.chatting(double=True) if chat else tiny.editable(family, double=True)
    requests = EASY + ODD
    kept = [1, 3, 4, 8]
    whole = make_problem(model, requests, site(model, 2), with_copy=True)
    twice = whole.select(torch.tensor([0, 1, 3, 4, 6, 8])).select(torch.tensor([1, 2, 3, 5]))
    fresh = make_problem(model, [requests[i] for i in kept], site(model, 2), with_copy=True)
    delta = torch.randn(len(kept), site.parts, model.d_model, dtype=torch.float64)
    expected = fresh.evaluate(delta)
    for problem in (whole.select(torch.tensor(kept)), twice):
        found = problem.evaluate(delta)
        assert relative(problem.states, fresh.states) < 1e-10
        assert relative(found.nll, expected.nll) < 1e-10
        assert relative(found.kl, expected.kl) < 1e-10
        assert relative(found.subject_kl, expected.subject_kl) < 1e-10
        assert torch.equal(found.decoded, expected.decoded)


def test_an_optimised_value_decodes_and_the_unedited_state_does_not(model):
    problem = make_problem(model, EASY[:2], LayerOutput(model, LAST))
    change = torch.cat([changes_of(alone()[request.id]) for request in EASY[:2]])
    nothing = torch.zeros_like(change)
    assert problem.patched(change).decoded.tolist() == [True, True]
    assert problem.patched(nothing).decoded.tolist() == [False, False]
    others = change.flip(0) + problem.h0[:, -1].flip(0) - problem.h0[:, -1]
    assert problem.patched(others).decoded.tolist() == [False, False], "another request's value"
    assert problem.patched(torch.stack([change[0], nothing[1]])).decoded.tolist() == [True, False]


def test_every_context_and_every_target_token_has_to_decode(model):
    words = ("city", "published")
    found = {}
    for word in words:
        request = dataclasses.replace(EASY[0], target_new=word)
        found[word] = changes_of(MEMIT.values(model, [request], TEMPLATES, FAST))
        problem = make_problem(model, [request], LayerOutput(model, LAST))
        assert bool(problem.patched(found[word]).decoded)
    longer = dataclasses.replace(EASY[0], target_new="city published museum")
    problem = make_problem(model, [longer], LayerOutput(model, LAST))
    assert not bool(problem.patched(found["city"]).decoded), (
        "its first token alone is not the target"
    )


@pytest.mark.parametrize("editor", EVERY_EDITOR)
def test_half_precision_is_computed_in_float32(editor):
    full = tiny.editable()
    half = tiny.EditableModel(
        tiny.in_bfloat16(full.model), full.tokenizer, "tiny in bfloat16", "0" * 32
    )
    settings = dataclasses.replace(FAST, steps=2)
    values = EDITORS[editor].values(half, EASY, TEMPLATES, settings)
    expected = EDITORS[editor].values(full, EASY, TEMPLATES, settings)
    assert values.v_star.dtype == values.h0.dtype == values.loss.dtype == torch.float32
    assert relative(values.h0, expected.h0) < 0.05
    assert torch.isfinite(values.v_star).all()


@pytest.mark.parametrize("editor", EVERY_EDITOR)
def test_the_model_stays_as_it_was(model, editor):
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    EDITORS[editor].values(model, EASY, TEMPLATES, dataclasses.replace(FAST, steps=3))
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in model.model.modules())


def reaches(model, requests, **changes):
    """|v* - h0| of values that go as far as they may, and the states' norms in every context."""
    settings = dataclasses.replace(
        SETTINGS, steps=8, learning_rate=5.0, weight_decay=0.0, kl_weight=0.0, clamp=0.5, **changes
    )
    values = MEMIT.values(model, requests, TEMPLATES, settings)
    norms = make_problem(model, requests, LayerOutput(model, LAST)).states.norm(dim=-1)[..., 0]
    return changes_of(values).norm(dim=-1), norms


def test_a_value_keeps_to_the_norm_of_other_contexts(log):
    requests = [ODD[0], EASY[0]]
    lengths, norms = reaches(outlier_model(), requests)
    median = norms.median(dim=1).values
    assert norms[0, 0] > 4 * median[0], "the first token is meant to be an outlier"
    assert norms[1, 0] < 2 * median[1]
    assert lengths[0] == pytest.approx(0.5 * 2 * median[0])
    assert lengths[1] == pytest.approx(0.5 * norms[1, 0])
    assert "of 1 of 2 values is more than 2 times as long as in other contexts" in log.text


@pytest.mark.parametrize("guard", [1.25, 3.0])
def test_the_norm_guard_is_a_setting(guard):
    lengths, norms = reaches(outlier_model(), ODD[:1], norm_guard=guard)
    assert lengths[0] == pytest.approx(0.5 * guard * norms[0].median())


def test_without_a_norm_guard_the_state_of_the_prompt_counts(log):
    lengths, norms = reaches(outlier_model(), ODD[:1], norm_guard=0.0)
    assert lengths[0] == pytest.approx(0.5 * norms[0, 0])
    assert "other contexts" not in log.text


def test_ordinary_states_are_not_guarded(model, log):
    reaches(model, EASY)
    assert "other contexts" not in log.text
