"""The library computes what the plain reference computes, to 1e-8, in float64."""

import dataclasses

import pytest
import tiny
import torch
from editing import reference
from editing.cases import EASY, ODD, REQUESTS, SETTINGS, TEMPLATES, relative

from fedit_app.editing.covariance import collect_covariance
from fedit_app.editing.memit import memit
from fedit_app.editing.solver import Solver
from fedit_app.editing.subjects import lookup_keys
from fedit_app.editing.values import optimise_values


def token_rows(model):
    generator = torch.Generator().manual_seed(5)
    lengths = (40, 25, 33)
    size = len(model.tokenizer)
    return [torch.randint(2, size, (n,), generator=generator).tolist() for n in lengths]


def compare_values(model, requests, templates, settings):
    values = optimise_values(model, requests, templates, settings)
    assert values.v_star.dtype == values.h0.dtype == values.loss.dtype == torch.float64
    moved = []
    for i, request in enumerate(requests):
        v_star, h0, loss, steps = reference.optimise_value(model, request, templates, settings)
        assert int(values.steps[i]) == steps, request.id
        moved.append(relative(v_star, h0))
        assert relative(values.v_star[i], v_star) < 1e-8, request.id
        assert relative(values.h0[i], h0) < 1e-8, request.id
        assert float(values.loss[i]) == pytest.approx(loss, rel=1e-8), request.id
    assert max(moved) > 0.25 and min(moved) > 0.02, "what stays at home compares nothing"
    return values


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_values(family):
    compare_values(tiny.editable(family, double=True), REQUESTS, TEMPLATES, SETTINGS)


def test_values_that_reach_the_clamp():
    model = tiny.editable(double=True)
    settings = dataclasses.replace(SETTINGS, clamp=0.3, kl_weight=0.01, weight_decay=0.1)
    values = compare_values(model, EASY[:2], TEMPLATES, settings)
    length = (values.v_star - values.h0).norm(dim=1)
    assert torch.allclose(length, 0.3 * values.h0.norm(dim=1))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox"])
def test_values_with_an_early_stop(family):
    model = tiny.editable(family, double=True)
    settings = dataclasses.replace(
        SETTINGS, stop_after=2, steps=25, clamp=20.0, kl_weight=0.01, weight_decay=0.1
    )
    steps = compare_values(model, EASY, TEMPLATES, settings).steps.tolist()
    assert len(set(steps)) > 1, "all stopped together: no finished row left the batch"
    assert min(steps) < settings.steps, "nothing stopped early"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox"])
def test_values_of_odd_requests(family, bos):
    model = tiny.editable(family, bos=bos, double=True)
    compare_values(model, ODD, TEMPLATES, dataclasses.replace(SETTINGS, steps=4))


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_value_without_any_token_before_the_subject(family):
    model = tiny.editable(family, double=True)
    compare_values(model, ODD[:1], ("{}",), dataclasses.replace(SETTINGS, steps=5))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_covariance(family):
    model = tiny.editable(family, double=True)
    rows = token_rows(model)
    found = collect_covariance(model, SETTINGS.layers, rows)
    for layer in SETTINGS.layers:
        assert relative(found[layer], reference.covariance(model, layer, rows)) < 1e-8


@pytest.mark.parametrize("bos", [False, True])
def test_keys_of_odd_requests(bos):
    model = tiny.editable(bos=bos, double=True)
    found = lookup_keys(model, ODD, TEMPLATES, 2)
    for i, request in enumerate(ODD):
        expected = reference.key(model, request, TEMPLATES, 2)
        assert relative(found[i], expected) < 1e-8, request.id


@pytest.mark.parametrize("layers", [(1, 2, 3), (0, 2)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox", "qwen2"])
def test_two_edits_in_a_row(family, layers):
    model = tiny.editable(family, double=True)
    settings = dataclasses.replace(SETTINGS, steps=4, layers=layers)
    covariances = collect_covariance(model, layers, token_rows(model))
    solver = Solver(covariances, settings.covariance_weight)

    keys = {layer: torch.zeros(0, model.d_ff, dtype=torch.float64) for layer in layers}
    shifts = {layer: torch.zeros(0, model.d_model, dtype=torch.float64) for layer in layers}
    ledger = (
        torch.zeros(0, len(layers), model.d_ff, dtype=torch.float64),
        torch.zeros(0, len(layers), model.d_model, dtype=torch.float64),
    )
    for requests in (REQUESTS[:2], REQUESTS[2:]):
        found = memit(model, requests, TEMPLATES, solver, ledger, settings)
        ledger = (torch.cat([ledger[0], found.keys]), torch.cat([ledger[1], found.shifts]))
        new_keys, new_shifts, deltas, v_star = reference.edit(
            model, requests, TEMPLATES, covariances, settings, keys, shifts
        )
        assert relative(found.v_star, v_star) < 1e-8
        solved = solver.deltas(*ledger)
        for i, layer in enumerate(layers):
            assert relative(found.keys[:, i], new_keys[layer]) < 1e-8
            assert relative(found.shifts[:, i], new_shifts[layer]) < 1e-8
            assert relative(solved[layer], deltas[layer]) < 1e-8
            keys[layer] = torch.cat([keys[layer], new_keys[layer]])
            shifts[layer] = torch.cat([shifts[layer], new_shifts[layer]])
