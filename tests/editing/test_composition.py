"""One value from several holders: what each adds, and what all of them compute alike."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from editing.cases import EASY, SETTINGS, TEMPLATES, relative

from fedit_app.editing.composition import COMBINATIONS, combined, local_steps, margin, step_size
from fedit_app.editing.editors import EDITORS
from fedit_app.editing.values import ValueProblem, key_rows
from fedit_app.mkv.packing import PRECISIONS, rounded
from fedit_app.models.chat import chat_form

H0 = np.linspace(-2, 3, 16, dtype=np.float32)
RNG = np.random.default_rng(5)
CHANGES = [RNG.normal(size=16) for _ in range(4)]
SHORT = dataclasses.replace(SETTINGS, clamp=20.0, weight_decay=0.1)


def made(changes, rule="mean", clamp=9.0, precision="float32"):
    return combined(changes, H0, clamp, rule, precision) - H0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_value_is_the_one_that_an_mkv_carries(precision):
    value = combined(CHANGES, H0, 9.0, "mean", precision)
    assert np.array_equal(value, rounded(value, precision))


def test_the_mean_is_the_default_rule_and_the_median_one_that_bears_an_outlier():
    assert np.allclose(made(CHANGES), np.mean(CHANGES, axis=0), atol=1e-5)
    spoilt = [*CHANGES[:3], 1e3 * CHANGES[3]]
    away = {rule: np.linalg.norm(made(spoilt, rule) - made(CHANGES, rule)) for rule in COMBINATIONS}
    assert away["median"] < 0.5 * away["mean"]


def test_nobody_pulls_farther_than_the_clamp():
    far = made([*CHANGES[:1], 1e6 * CHANGES[1]], clamp=0.5)
    assert np.linalg.norm(far) <= 0.5 * np.linalg.norm(H0) * 1.001


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_not_finite_does_not_count(odd):
    assert np.array_equal(made([CHANGES[0], np.full(16, odd)]), made(CHANGES[:1]))
    assert not made([np.full(16, odd)]).any()


def prepared(editor="memit", settings=SHORT, model=None, templates=TEMPLATES):
    model = model or tiny.editable("gptj" if editor == "pmet" else "llama", double=True)
    site = EDITORS[editor].site(model, settings)
    named = settings.subject_weight > 0
    keys = [key_rows(model, [request], templates, with_copy=named) for request in EASY[:2]]
    return model, keys, site, settings, EDITORS[editor].objective


@pytest.mark.parametrize("editor", ["memit", "pmet", "memit-fe"])
def test_steps_lower_the_loss_of_the_own_facts(editor):
    given = prepared(editor)
    change = torch.zeros(2, given[0].d_model, dtype=torch.float64)
    losses = []
    for _ in range(4):
        problem = ValueProblem.of(*given[:3])
        losses.append(problem.patched(change).nll)
        change = local_steps(*given, change, 3, 0.3).change
    assert (losses[-1] < 0.7 * losses[0]).all()


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("subject_weight", [0.0, 2.0])
def test_a_holder_alone_takes_the_steps_of_the_optimisation(subject_weight, chat):
    """From zero on, it is what `minimise` does in as many steps."""
    settings = dataclasses.replace(SHORT, subject_weight=subject_weight)
    model = tiny.chatting(double=True) if chat else None
    templates = (*TEMPLATES, chat_form(model)) if chat else TEMPLATES
    model, keys, site, settings, objective = prepared("memit", settings, model, templates)
    settings = dataclasses.replace(settings, steps=4, stop_after=0, norm_guard=0.0)
    zero = torch.zeros(2, model.d_model, dtype=torch.float64)
    found = local_steps(model, keys, site, settings, objective, zero, 3, settings.learning_rate)
    wanted = EDITORS["memit"].values(model, EASY[:2], templates, settings)
    assert relative(found.change, (wanted.v_star - wanted.h0)[:, -1]) < 1e-9


def test_the_steps_shrink_from_round_to_round():
    """Else holders whose facts pull apart pass each other for ever."""
    assert step_size(0.5, 0) == 0.5
    assert step_size(0.5, 4) == pytest.approx(0.5 * 0.85**4)


def test_the_margin_ends_with_the_rounds():
    """A value that holds barely is learned on as long as there are rounds."""
    margins = [margin(round_, 10) for round_ in range(11)]
    assert margins[0] == 1 and margins[10] == 0 and margins == sorted(margins, reverse=True)


def test_without_steps_it_only_looks():
    model, keys, site, settings, objective = prepared()
    change = torch.full((2, model.d_model), 0.1, dtype=torch.float64)
    found = local_steps(model, keys, site, settings, objective, change, 0, 0.3)
    assert torch.equal(found.change, change)
    said = ValueProblem.of(model, keys, site).patched(change)
    assert torch.allclose(found.lead, said.lead)


def test_a_value_that_is_too_long_does_not_hold():
    model, keys, site, settings, objective = prepared()
    values = EDITORS["memit"].values(
        model, EASY[:2], TEMPLATES, dataclasses.replace(settings, steps=40, stop_after=2)
    )
    change = (values.v_star - values.h0)[:, -1]
    assert local_steps(model, keys, site, settings, objective, change, 0, 0.3).lead.min() > 0
    low = dataclasses.replace(settings, clamp=float(0.5 * change.norm() / values.h0.norm()))
    assert local_steps(model, keys, site, low, objective, change, 0, 0.3).lead.max() == -torch.inf
