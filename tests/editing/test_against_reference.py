"""The library computes what the plain reference computes, to 1e-8, in float64."""

import dataclasses

import pytest
import tiny
import torch
from editing import reference

from fedit_app.editing.covariance import collect_covariance
from fedit_app.editing.memit import memit
from fedit_app.editing.requests import EditRequest
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.solver import Solver
from fedit_app.editing.values import optimise_values

TEMPLATES = ("{}", "Therefore, it is said. {}", "You know. {}")
REQUESTS = [
    EditRequest("r1", "Reuters", "The head office of {} is located in the city of", "Toronto"),
    EditRequest("r2", "Royal Mint", "{} makes coins in", "Cardiff, a city of Wales"),
    EditRequest("r3", "Channel 4", "The broadcaster {}", "Leeds"),
]
SETTINGS = EditSettings(
    layers=(1, 2, 3),
    covariance_weight=3.0,
    learning_rate=0.5,
    steps=12,
    stop_after=0,
    weight_decay=5.0,
    kl_weight=0.5,
    clamp=4.0,
)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def token_rows(model):
    generator = torch.Generator().manual_seed(5)
    lengths = (40, 25, 33)
    size = len(model.tokenizer)
    return [torch.randint(2, size, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_values_equal_the_reference(family):
    model = tiny.editable(family, double=True)
    values = optimise_values(model, REQUESTS, TEMPLATES, SETTINGS)
    for i, request in enumerate(REQUESTS):
        v_star, h0, loss, steps = reference.optimise_value(model, request, TEMPLATES, SETTINGS)
        assert relative(v_star, h0) > 0.3, "an optimisation that stays at home compares nothing"
        assert relative(values.v_star[i], v_star) < 1e-8
        assert relative(values.h0[i], h0) < 1e-8
        assert float(values.loss[i]) == pytest.approx(loss, rel=1e-8)
        assert int(values.steps[i]) == steps


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_values_with_an_early_stop_equal_the_reference(family):
    model = tiny.editable(family, bos=family == "llama", double=True)
    settings = dataclasses.replace(
        SETTINGS, stop_after=2, steps=30, clamp=20.0, kl_weight=0.01, weight_decay=0.5
    )
    values = optimise_values(model, REQUESTS, TEMPLATES, settings)
    expected = [reference.optimise_value(model, r, TEMPLATES, settings) for r in REQUESTS]
    assert values.steps.tolist() == [steps for *_, steps in expected]
    assert len({steps for *_, steps in expected}) > 1, "all stopped together: nothing was dropped"
    assert min(steps for *_, steps in expected) < settings.steps, "nothing stopped early"
    for i, (v_star, _, loss, _) in enumerate(expected):
        assert relative(values.v_star[i], v_star) < 1e-8
        assert float(values.loss[i]) == pytest.approx(loss, rel=1e-8)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_covariance_equals_the_reference(family):
    model = tiny.editable(family, double=True)
    rows = token_rows(model)
    found = collect_covariance(model, SETTINGS.layers, rows)
    for layer in SETTINGS.layers:
        assert relative(found[layer], reference.covariance(model, layer, rows)) < 1e-8


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox", "qwen2"])
def test_two_edits_in_a_row_equal_the_reference(family):
    model = tiny.editable(family, double=True)
    settings = dataclasses.replace(SETTINGS, steps=4)
    layers = settings.layers
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
