"""Baselines on a tiny model: each does what its paper says, and leaves the model as it was."""

import copy

import pytest
import tiny
import torch
from editing.cases import EASY, REQUESTS
from experiments.lessons import lesson

from fedit_app.evaluation.scores import nothing, score_requests, score_targets
from fedit_app.experiments.baselines import (
    BASELINES,
    federated,
    fine_tuning,
    grace,
    mend,
    training,
)
from fedit_app.experiments.baselines.in_context import nearest_fact
from fedit_app.experiments.baselines.lora import trained_changes
from fedit_app.experiments.baselines.lora_fedavg import averaged_changes
from fedit_app.models.editable import EditableModel

pytestmark = pytest.mark.long

pytest.importorskip("peft", reason="the extra `baselines` is not installed")


@pytest.fixture
def model(request):
    """A tiny model of its own."""
    made = tiny.editable(getattr(request, "param", "llama"))
    return EditableModel(copy.deepcopy(made.model), made.tokenizer, "own", "1" * 32)


def parameters(model):
    return {name: p.clone() for name, p in model.model.named_parameters()}


def nll(model, put=nothing):
    """Of the targets of the facts, behind what is put before their prompts."""
    asked = [(put(prompt) + prompt, text) for prompt, text in (f.asked_new for f in EASY)]
    return [score.nll for score in score_targets(model, asked)]


@pytest.mark.parametrize("model", ["llama", "gpt2"], indirect=True)
@pytest.mark.parametrize("name", BASELINES)
def test_the_model_is_the_same_as_before_once_a_baseline_is_measured(model, name, monkeypatch):
    monkeypatch.setattr(mend, "STEPS", 1)
    monkeypatch.setattr(mend, "LEAST", 1)
    before = parameters(model)
    with BASELINES[name](model, lesson([EASY[:1], EASY])) as put:
        learned = nll(model, put)
    now = dict(model.model.named_parameters())
    assert now.keys() == before.keys() and not any(p.requires_grad for p in now.values())
    assert all(torch.equal(now[key], value) for key, value in before.items())
    assert learned != nll(model)


def test_the_loss_is_the_mean_nll_of_the_targets_that_evaluation_has(model):
    facts = [*EASY, *REQUESTS]
    loss = training.target_loss(model, training.fact_rows(model, facts))
    found = [score.nll for score in score_targets(model, [fact.asked_new for fact in facts])]
    assert float(loss) == pytest.approx(sum(found) / len(found), rel=1e-5)


@pytest.mark.parametrize("name", ["ft-m", "locft-bf", "ft-fedavg", "ft-fedprox"])
def test_fine_tuning_changes_the_weights_of_one_layer(model, name, monkeypatch):
    monkeypatch.setattr(fine_tuning, "RATE", 0.02)
    before = parameters(model)
    with BASELINES[name](model, lesson([EASY[:1], EASY])):
        changed = {n for n, p in model.model.named_parameters() if not torch.equal(p, before[n])}
        learned = sum(nll(model))
    layer = round((21 if name == "ft-m" else 22) / 32 * tiny.LAYERS)
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight"}
    assert learned < 0.7 * sum(nll(model))


def test_breadth_first_sees_every_fact_in_every_epoch_and_depth_first_one_after_another(
    model, monkeypatch
):
    seen = []
    plain = training.target_loss

    def spy(model, rows):
        seen.append(len(rows))
        return plain(model, rows)

    monkeypatch.setattr(fine_tuning, "target_loss", spy)
    with BASELINES["locft-bf"](model, lesson([EASY[:1], EASY])):
        assert set(seen) == {3} and len(seen) <= fine_tuning.STEPS
    seen.clear()
    with BASELINES["ft-m"](model, lesson([EASY[:1], EASY])):
        assert set(seen) == {1}


def test_training_ends_once_the_loss_is_small():
    weight, count = torch.nn.Parameter(torch.ones(1)), []

    def loss_of(batch):
        count.append(batch)
        return weight.square().sum()

    training.descend([weight], loss_of, 0.3, [[[0]]] * 50)
    assert float(weight.detach()) ** 2 < training.ENOUGH and len(count) < 20


def test_an_adapter_changes_output_projections_by_matrices_of_its_rank(model):
    changes = trained_changes(model, EASY, 1)
    assert set(changes) == set(range(tiny.LAYERS))
    for layer, change in changes.items():
        assert change.shape == model.weight(layer).shape
        assert 0 < int(torch.linalg.matrix_rank(change.double(), rtol=1e-4)) <= 8


def test_averaged_factors_keep_their_rank_and_are_those_of_a_node_if_all_are_alike(model):
    """The mean of the products of two nodes with other facts has twice the rank."""
    alone = averaged_changes(model, [EASY], 1)
    alike = averaged_changes(model, [EASY, EASY], 1)
    other = averaged_changes(model, [EASY[:1], EASY[1:]], 1)
    for layer, change in other.items():
        assert change.shape == model.weight(layer).shape
        assert 0 < int(torch.linalg.matrix_rank(change.double(), rtol=1e-4)) <= 8
        assert torch.allclose(alike[layer], alone[layer], atol=1e-6)
        assert not torch.allclose(change, alone[layer], atol=1e-6)


def trained_at(model, groups, mu=0.0):
    """W_l of layer 1 after `train_in_rounds` with large steps, less what it was."""
    weight = model.mlp_output(1).get_parameter("weight")
    before = weight.detach().clone()
    weight.requires_grad_(True)
    federated.train_in_rounds(model, [weight], groups, 0.02, 10, mu)
    change = weight.detach() - before
    weight.requires_grad_(False)
    weight.copy_(before)
    return change


def test_after_a_round_the_weights_are_the_mean_of_the_nodes(model, monkeypatch):
    monkeypatch.setattr(federated, "ROUNDS", 1)
    alone = [trained_at(model, [[fact]]) for fact in EASY[:2]]
    together = trained_at(model, [EASY[:1], [], EASY[1:2]])
    assert torch.allclose(together, (alone[0] + alone[1]) / 2, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_nodes_that_are_alike_make_what_one_of_them_makes(model):
    alone, alike = trained_at(model, [EASY]), trained_at(model, [EASY, EASY])
    assert alone.norm() > 0 and torch.allclose(alike, alone, atol=1e-6)


def test_the_proximal_term_holds_the_weights_where_the_round_began(model):
    groups = [EASY[:1], EASY[1:2]]
    lengths = [float(trained_at(model, groups, mu).norm()) for mu in (0.0, 0.01, 100.0)]
    assert lengths[0] > lengths[2] and lengths[1] != lengths[0]


def test_the_fact_nearest_to_a_prompt_is_put_before_it():
    put = nearest_fact(REQUESTS)
    assert put("Coins of the Royal Mint") == (
        "Imagine that Royal Mint makes coins in Cardiff, a city of Wales. "
    )
    assert "Reuters" in put("Where is the head office of Reuters?")


def test_what_is_read_before_a_prompt_is_no_part_of_what_the_unedited_model_reads(model):
    fact = copy.copy(REQUESTS[0])
    object.__setattr__(fact, "subject_prompts", ("Reuters was founded in", "Reuters sells"))
    (plain,) = score_requests(model, [fact], nothing)
    assert plain.other_relations == 1.0
    (read,) = score_requests(model, [fact], lambda prompt: "Channel 4 Leeds Leeds Leeds ")
    assert read.other_relations < 1.0 and read.efficacy == plain.efficacy or read != plain


def test_a_memory_answers_within_the_radius_of_its_nearest_key_and_the_layer_elsewhere():
    memory = grace.Memory()
    keys = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    for number, key in enumerate(keys):
        memory.place(key, f"target {number}", torch.full((3,), float(number + 1)))
    inputs = torch.tensor([[[0.5, 0.0], [1.5, 0.0], [3.9, 0.0], [9.0, 0.0]]])
    outputs = torch.zeros(1, 4, 3)
    assert memory.read(inputs, outputs)[0, :, 0].tolist() == [1.0, 0.0, 2.0, 0.0]
    assert grace.Memory().read(inputs, outputs) is outputs


def test_radii_grow_for_the_same_target_and_are_split_between_two():
    """Algorithm 1 of the paper."""
    memory, value = grace.Memory(), torch.zeros(1)
    assert memory.place(torch.tensor([0.0]), "Paris", value) == 0
    assert memory.place(torch.tensor([1.5]), "Paris", value) == 0 and memory.radii == [1.5]
    assert memory.place(torch.tensor([2.0]), "Rome", value) == 1
    assert memory.radii == pytest.approx([1.0, 1.0], abs=1e-4) and memory.radii[0] < 1
    assert memory.place(torch.tensor([9.0]), "Rome", value) == 2 and memory.radii[2] == 1.0
    assert memory.labels == ["Paris", "Rome", "Rome"]


def test_a_memory_learns_its_facts_beside_one_layer_and_is_no_part_of_the_unedited_model(model):
    before = nll(model)
    with BASELINES["grace"](model, lesson([EASY[:1], EASY])) as put:
        assert sum(nll(model, put)) < 0.5 * sum(before)
        assert put is not nothing  # scores are not found again by the state of the weights
        with model.unedited():
            assert nll(model) == before
    assert nll(model) == before
