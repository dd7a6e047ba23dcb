"""Batches, stops and patches of the v* optimisation."""

import dataclasses

import pytest
import tiny
import torch
from editing.cases import EASY, ODD, REQUESTS, SETTINGS, TEMPLATES, relative

from fedit_app.editing.values import ValueProblem, optimise_values

FAST = dataclasses.replace(
    SETTINGS, stop_after=2, steps=25, clamp=20.0, kl_weight=0.01, weight_decay=0.1
)


@pytest.fixture(scope="module")
def model():
    return tiny.editable(double=True)


@pytest.fixture(scope="module")
def alone(model):
    """Every request optimised by itself."""
    return {r.id: optimise_values(model, [r], TEMPLATES, FAST) for r in EASY + REQUESTS + ODD}


@pytest.mark.parametrize("batch", [1, 2, 5, 16])
@pytest.mark.parametrize("order", [1, -1])
def test_batch_size_and_order_change_nothing(model, alone, batch, order):
    requests = (EASY + REQUESTS + ODD)[::order]
    values = optimise_values(
        model, requests, TEMPLATES, dataclasses.replace(FAST, batch=batch, steps=25)
    )
    for i, request in enumerate(requests):
        expected = alone[request.id]
        assert int(values.steps[i]) == int(expected.steps[0]), request.id
        assert relative(values.v_star[i], expected.v_star[0]) < 1e-8, request.id
        assert relative(values.h0[i], expected.h0[0]) < 1e-10, request.id
        assert float(values.loss[i]) == pytest.approx(float(expected.loss[0]), rel=1e-8)


def test_a_finished_request_keeps_its_value_while_others_go_on(model, alone):
    quick, slow = EASY[0], REQUESTS[0]
    assert int(alone[quick.id].steps[0]) < int(alone[slow.id].steps[0]) == FAST.steps
    values = optimise_values(model, [slow, quick], TEMPLATES, FAST)
    assert relative(values.v_star[1], alone[quick.id].v_star[0]) < 1e-8
    assert relative(values.v_star[0], alone[slow.id].v_star[0]) < 1e-8


def test_stops_after_so_many_passes_beyond_the_first_that_decodes(model):
    steps = [
        int(
            optimise_values(
                model, EASY[:1], TEMPLATES, dataclasses.replace(FAST, stop_after=stop)
            ).steps[0]
        )
        for stop in (1, 2, 4)
    ]
    assert steps == [steps[0], steps[0] + 1, steps[0] + 3]


def test_a_target_that_is_lost_again_starts_the_count_anew(model, monkeypatch):
    decoded = iter([False, True, True, False, True, True, True, True])
    plain = ValueProblem.evaluate

    def evaluate(self, delta):
        answer = torch.tensor([next(decoded)])
        return dataclasses.replace(plain(self, delta), decoded=answer)

    monkeypatch.setattr(ValueProblem, "evaluate", evaluate)
    assert optimise_values(model, REQUESTS[:1], TEMPLATES, FAST).steps.tolist() == [7]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_selected_requests_make_the_same_problem(family):
    model = tiny.editable(family, double=True)
    requests = EASY + ODD
    kept = [1, 3, 4, 8]
    whole = ValueProblem(model, requests, TEMPLATES, 2)
    twice = whole.select(torch.tensor([0, 1, 3, 4, 6, 8])).select(torch.tensor([1, 2, 3, 5]))
    fresh = ValueProblem(model, [requests[i] for i in kept], TEMPLATES, 2)
    delta = torch.randn(len(kept), model.d_model, dtype=torch.float64)
    expected = fresh.evaluate(delta)
    for problem in (whole.select(torch.tensor(kept)), twice):
        found = problem.evaluate(delta)
        assert relative(problem.h0, fresh.h0) < 1e-10
        assert relative(found.nll, expected.nll) < 1e-10
        assert relative(found.kl, expected.kl) < 1e-10
        assert torch.equal(found.decoded, expected.decoded)


def test_an_optimised_value_decodes_and_the_unedited_state_does_not(model, alone):
    problem = ValueProblem(model, EASY[:2], TEMPLATES, SETTINGS.value_layer)
    v_star = torch.cat([alone[request.id].v_star for request in EASY[:2]])
    assert problem.decodes(v_star).tolist() == [True, True]
    assert problem.decodes(problem.h0).tolist() == [False, False]
    assert problem.decodes(v_star.flip(0)).tolist() == [False, False], "another request's value"
    assert problem.decodes(torch.stack([v_star[0], problem.h0[1]])).tolist() == [True, False]


def test_every_context_and_every_target_token_has_to_decode(model):
    words = ("city", "published")
    found = {}
    for word in words:
        request = dataclasses.replace(EASY[0], target_new=word)
        found[word] = optimise_values(model, [request], TEMPLATES, FAST).v_star
        problem = ValueProblem(model, [request], TEMPLATES, SETTINGS.value_layer)
        assert bool(problem.decodes(found[word]))
    longer = dataclasses.replace(EASY[0], target_new="city published museum")
    problem = ValueProblem(model, [longer], TEMPLATES, SETTINGS.value_layer)
    assert not bool(problem.decodes(found["city"])), "its first token alone is not the target"


def test_half_precision_is_computed_in_float32():
    full = tiny.editable()
    half = tiny.EditableModel(
        tiny.in_bfloat16(full.model), full.tokenizer, "tiny in bfloat16", "0" * 32
    )
    settings = dataclasses.replace(FAST, steps=2)
    values = optimise_values(half, EASY, TEMPLATES, settings)
    expected = optimise_values(full, EASY, TEMPLATES, settings)
    assert values.v_star.dtype == values.h0.dtype == values.loss.dtype == torch.float32
    assert relative(values.h0, expected.h0) < 0.05
    assert torch.isfinite(values.v_star).all()


def test_the_model_stays_as_it_was(model):
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    optimise_values(model, EASY, TEMPLATES, FAST)
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
