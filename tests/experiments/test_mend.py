"""MEND on a tiny model: what the editor does untrained, and that it learns to edit."""

import copy
import math

import numpy as np
import pytest
import tiny
import torch
from editing.cases import EASY
from experiments.lessons import RECORDS, lesson

from fedit_app.evaluation.scores import nothing, score_targets
from fedit_app.experiments.baselines import mend
from fedit_app.experiments.baselines.gradient_editor import GradientEditor
from fedit_app.experiments.baselines.training import fact_rows, target_loss
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.long

FAMILIES = pytest.mark.parametrize("model", ["llama", "gpt2"], indirect=True)
MATRICES = {
    "llama": {"gate_proj": (32, 16), "up_proj": (32, 16), "down_proj": (16, 32)},
    "gpt2": {"c_fc": (32, 16), "c_proj": (16, 32)},
}
HELD_OUT = RECORDS[-6:]


@pytest.fixture
def model(request):
    """A tiny model of its own."""
    made = tiny.editable(getattr(request, "param", "llama"))
    return EditableModel(copy.deepcopy(made.model), made.tokenizer, "own", "1" * 32)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A training that a random model of 16 dimensions learns something in."""
    for name, value in {"STEPS": 15, "LEAST": 10, "RATE": 1e-3}.items():
        monkeypatch.setattr(mend, name, value)


def editor_of(model):
    torch.manual_seed(1)
    return mend.Editor(model)


def randomised(model):
    """An editor that is not the identity."""
    editor = editor_of(model)
    with torch.no_grad():
        for parameter in editor.networks.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return editor.requires_grad_(False)


def nll(model):
    return [score.nll for score in score_targets(model, [fact.asked_new for fact in EASY])]


@FAMILIES
def test_the_matrices_are_those_of_the_mlps_of_the_last_three_layers(model):
    named = MATRICES[model.model.config.model_type]
    editor = editor_of(model)
    changes = editor.edit(fact_rows(model, EASY))
    expected = {f"{at}.{name}": shape for at in (2, 3, 4) for name, shape in named.items()}
    assert {name: tuple(change.shape) for name, change in changes.items()} == expected
    assert len(editor.networks) == 2, "one for each shape"


@FAMILIES
def test_an_untrained_editor_that_has_seen_no_token_makes_a_step_of_the_plain_gradient(model):
    rows, found = fact_rows(model, EASY), mend.matrices(model)
    weights = [module.weight.requires_grad_() for module in found.values()]
    gradients = torch.autograd.grad(sum(target_loss(model, [row]) for row in rows), weights)
    model.model.requires_grad_(False)
    changes = editor_of(model).edit(rows)
    for (name, module), gradient in zip(found.items(), gradients, strict=True):
        plain = gradient.T if isinstance(module, mend.Conv1D) else gradient
        assert torch.allclose(changes[name], -mend.STEP * plain, rtol=1e-3, atol=1e-9), name
        assert changes[name].any()


@FAMILIES
def test_the_edited_model_is_the_one_with_changed_weights(model):
    changes = {name: 300 * c for name, c in editor_of(model).edit(fact_rows(model, EASY)).items()}
    plain, before = nll(model), {n: p.clone() for n, p in model.model.named_parameters()}
    with mend.added(model, changes):
        found = nll(model)
        with model.unedited():
            assert nll(model) == plain
    assert nll(model) == plain and found != pytest.approx(plain, rel=1e-2)
    assert all(torch.equal(p, before[n]) for n, p in model.model.named_parameters())
    for name, module in mend.matrices(model).items():
        change = changes[name]
        module.weight.data += change.T if isinstance(module, mend.Conv1D) else change
    assert nll(model) == pytest.approx(found, rel=1e-4)


def test_what_is_found_for_a_fact_does_not_depend_on_those_beside_it(model, monkeypatch):
    rows = fact_rows(model, [*EASY, *RECORDS])
    editor = randomised(model)
    together = editor.edit(rows)
    monkeypatch.setattr(mend, "BATCH", 1)
    for name, change in editor.edit(rows).items():
        assert torch.allclose(together[name], change, rtol=1e-3, atol=1e-4 * float(change.std()))


def test_tokens_are_normalised_by_all_that_were_seen():
    torch.manual_seed(0)
    z = 5 * torch.randn(40, 7) + 3
    network = GradientEditor(4, 3, 1)
    for part in z.split([1, 12, 0, 27]):
        network.observe(part[:, :4], part[:, 4:])
    u, delta = network(z[:, :4], z[:, 4:], 0)
    expected = (z - z.mean(0)) / z.std(0)
    assert torch.allclose(torch.cat([u, delta], 1), expected, atol=1e-5)


def test_matrices_of_a_shape_share_a_network_and_have_scales_and_offsets_of_their_own():
    torch.manual_seed(0)
    network, u, delta = GradientEditor(4, 3, 2), torch.randn(5, 4), torch.randn(5, 3)
    with torch.no_grad():
        network.first.u.normal_()
        network.second.u.normal_()
        alike = [torch.cat(network(u, delta, number), 1) for number in (0, 1)]
        network.second.s[1] *= 2
        network.second.o[1] += 1
        apart = [torch.cat(network(u, delta, number), 1) for number in (0, 1)]
    assert torch.equal(alike[0], alike[1]) and torch.equal(apart[0], alike[0])
    assert not torch.allclose(apart[1], alike[1])
    assert not torch.allclose(alike[0], torch.cat([u, delta], 1))


@FAMILIES
def test_training_lowers_the_loss_on_records_that_were_not_trained_on(model):
    def held_out(editor):
        edit, locality = mend.edit_loss(model, editor, HELD_OUT, np.random.default_rng(0))
        return float((mend.EDIT * edit + mend.LOCALITY * locality).detach())

    untrained = editor_of(model)
    held_out(untrained)  # what it normalises by
    assert held_out(mend.trained(model, RECORDS[:-6], 6, 1)) < 0.97 * held_out(untrained)


def test_the_same_seed_gives_the_same_editor_and_another_one_another(model, monkeypatch):
    monkeypatch.setattr(mend, "STEPS", 2)
    first, same, other = (mend.trained(model, RECORDS, 3, seed).state_dict() for seed in (1, 1, 2))
    assert first.keys() == same.keys()
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not torch.equal(first["steps"], other["steps"])


@pytest.mark.parametrize(("facts", "edits"), [(1, [1] * 10), (4, [4, 4]), (60, [10])])
def test_the_editor_is_trained_on_as_many_edits_at_once_as_it_will_make(
    model, monkeypatch, facts, edits
):
    monkeypatch.setattr(mend, "STEPS", 1)
    plain, seen = mend.edit_loss, []

    def spy(model, editor, records, random):
        seen.append(len(records))
        return plain(model, editor, records, random)

    monkeypatch.setattr(mend, "edit_loss", spy)
    mend.trained(model, RECORDS, facts, 1)
    assert seen == edits


def test_the_targets_are_likelier_in_the_edited_model_and_its_progress_is_in_the_log(model, caplog):
    plain = nll(model)
    with caplog.at_level("INFO"), mend.mend(model, lesson([EASY[:1], EASY])) as put:
        assert sum(nll(model)) < 0.8 * sum(plain)
        assert put is not nothing  # scores are not found again by the state of W_out
    assert nll(model) == plain
    assert caplog.text.count("baseline mend: step ") == 15


def test_too_few_records_to_train_on_are_refused(model, monkeypatch):
    monkeypatch.setattr(mend, "LEAST", len(RECORDS) + 1)
    told = r"mend: the data has 24 records to train on, and it needs 25: .* Edit fewer"
    with pytest.raises(FedEditError, match=told):
        with mend.mend(model, lesson([EASY])):
            pass
    monkeypatch.setattr(mend, "LEAST", 1)
    with pytest.raises(FedEditError, match="has 0 records .* with paraphrase_prompts"):
        mend.usable(model, EASY)


def test_a_loss_that_is_not_finite_is_an_error(model, monkeypatch):
    monkeypatch.setattr(mend, "STEP", math.inf)
    with pytest.raises(FedEditError, match="not finite at step 1 of the training; try dtype"):
        mend.trained(model, RECORDS, 3, 1)
