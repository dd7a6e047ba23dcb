"""Editing as a node does it: compute MKVs, accept them, use the model they make."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from editing.cases import EASY, REQUESTS, SETTINGS

from fedit_app.editing import workbench as module
from fedit_app.editing.covariance import CovarianceSource
from fedit_app.editing.ledger import Ledger
from fedit_app.editing.settings import edit_settings
from fedit_app.editing.workbench import Workbench
from fedit_app.errors import FedEditError
from fedit_app.evaluation.scores import score_targets
from fedit_app.mkv import create
from fedit_app.models.loading import load_model

STRONG = dataclasses.replace(
    SETTINGS,
    covariance_weight=0.02,
    steps=25,
    stop_after=2,
    clamp=20.0,
    kl_weight=0.01,
    weight_decay=0.1,
)


def make_bench(family="llama", settings=STRONG, n_contexts=2, seed=0):
    source = CovarianceSource(tokens=500)
    return Workbench(tiny.editable(family), "memit", settings, n_contexts, source, seed)


def likelihood(model, requests):
    return [score.nll for score in score_targets(model, [(r.text, r.target_new) for r in requests])]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox"])
def test_an_edit_makes_its_targets_likelier(family, tmp_path):
    bench = make_bench(family)
    before = likelihood(bench.model, EASY)
    weights = {layer: bench.model.weight(layer).clone() for layer in STRONG.layers}
    ledger = Ledger.open(tmp_path, bench.fingerprint)
    ledger.accept(bench.compute(EASY, ledger, "clinic", 1), 1)
    with bench.edited(Ledger.open(tmp_path, bench.fingerprint)) as edited:
        after = likelihood(edited, EASY)
    assert all(a < b - 0.5 for a, b in zip(after, before, strict=True)), (before, after)
    assert all(a < b - 3 for a, b in zip(after[:2], before[:2], strict=True)), (before, after)
    assert likelihood(bench.model, EASY) == before
    for layer, weight in weights.items():
        assert torch.equal(bench.model.weight(layer), weight)


def test_mkvs_of_others_edit_without_their_text():
    bench = make_bench()
    mine = bench.compute(EASY[:1], Ledger(bench.fingerprint), "clinic", 1)
    theirs = bench.compute(EASY[1:2], Ledger(bench.fingerprint), "bank", 1)
    ledger = Ledger(bench.fingerprint)
    ledger.accept([*mine, *theirs], 1)
    with bench.edited(ledger) as edited:
        after = likelihood(edited, EASY[:2])
    before = likelihood(bench.model, EASY[:2])
    assert all(a < b - 3 for a, b in zip(after, before, strict=True)), (before, after)


def test_later_requests_are_edited_on_top_of_the_ledger():
    bench = make_bench()
    ledger = Ledger(bench.fingerprint)
    ledger.accept(bench.compute(EASY[:1], ledger, "clinic", 1), 1)
    on_top = bench.compute(EASY[1:2], ledger, "clinic", 2)
    (apart,) = bench.compute(EASY[1:2], Ledger(bench.fingerprint), "clinic", 2)
    assert on_top[0].id != apart.id, "layers above the first see the earlier edit"
    assert np.array_equal(on_top[0].v_star, apart.v_star), "v* is of the unedited model"
    ledger.accept(on_top, 2)
    with bench.edited(ledger) as edited:
        after = likelihood(edited, EASY[:2])
    before = likelihood(bench.model, EASY[:2])
    assert all(a < b - 3 for a, b in zip(after, before, strict=True)), "the first is still there"


def test_computing_does_not_change_the_ledger_and_takes_no_requests():
    bench = make_bench()
    ledger = Ledger(bench.fingerprint)
    (mkv,) = bench.compute(REQUESTS[:1], ledger, "clinic", 4)
    assert len(ledger) == 0
    assert (mkv.node, mkv.slot, mkv.fingerprint) == ("clinic", 4, bench.fingerprint)
    assert mkv.keys.shape == (3, tiny.D_FF) and mkv.shifts.shape == (3, tiny.D_MODEL)
    assert bench.compute([], ledger, "clinic", 1) == []
    assert bench.lookup_keys([]).shape == (0, tiny.D_FF)


def test_the_lookup_key_is_the_same_whatever_was_edited_before():
    bench = make_bench()
    ledger = Ledger(bench.fingerprint)
    (fresh,) = bench.compute(REQUESTS[:1], ledger, "clinic", 1)
    ledger.accept(bench.compute(EASY, ledger, "clinic", 1), 1)
    (later,) = bench.compute(REQUESTS[:1], ledger, "clinic", 2)
    assert np.array_equal(fresh.lookup_key, later.lookup_key)
    expected = bench.lookup_keys(REQUESTS[:1])[0].numpy()
    assert np.allclose(fresh.lookup_key, expected, atol=1e-3 * np.abs(expected).max())


def test_a_candidate_is_reused_only_if_it_says_the_target():
    bench = make_bench()
    first, second = bench.compute(EASY[:2], Ledger(bench.fingerprint), "bank", 1)
    nothing = create(
        "bank", 1, bench.fingerprint, first.keys, first.shifts, v_star=first.h0, h0=first.h0
    )
    assert bench.decodes(EASY[0], [second, first, nothing]) == [False, True, False]
    assert bench.decodes(dataclasses.replace(EASY[0], target_new="of"), [first]) == [False]


def test_the_fingerprint_says_what_the_vectors_depend_on():
    base = make_bench().fingerprint
    assert make_bench().fingerprint == base
    assert make_bench(settings=dataclasses.replace(STRONG, batch=3)).fingerprint == base
    others = [
        make_bench("gpt2"),
        make_bench(settings=dataclasses.replace(STRONG, layers=(1, 2))),
        make_bench(settings=dataclasses.replace(STRONG, clamp=1.0)),
        make_bench(n_contexts=3),
        make_bench(seed=1),
    ]
    assert len({base, *(bench.fingerprint for bench in others)}) == len(others) + 1


def test_contexts_are_sampled_once(monkeypatch):
    templates = make_bench(seed=5).templates
    monkeypatch.setattr(module, "sample_contexts", None)
    assert make_bench(seed=5).templates == templates


def test_an_unknown_editor_is_refused():
    with pytest.raises(FedEditError, match="editor = 'rome' must be one of memit"):
        Workbench(tiny.editable(), "rome", STRONG, 0, CovarianceSource(), 0)


def test_settings_take_the_defaults_of_the_model():
    settings = edit_settings("llama", 30, 576, steps=9)
    assert settings.layers == (4, 5, 6, 7, 8) and settings.value_layer == 8
    assert (settings.covariance_weight, settings.learning_rate) == (1000.0, 0.5)
    assert settings.steps == 9
    given = edit_settings("llama", 30, 576, layers=(2, 5), covariance_weight=7.0, learning_rate=0.2)
    assert (given.layers, given.covariance_weight, given.learning_rate) == ((2, 5), 7.0, 0.2)
    unknown = edit_settings("gpt2", tiny.LAYERS, tiny.D_MODEL)
    assert unknown.layers[-1] <= tiny.LAYERS - 2


def test_a_layer_with_nothing_above_it_cannot_be_edited():
    with pytest.raises(FedEditError, match="layers: 4 is out of range, the model has 5 layers"):
        edit_settings("llama", 5, 16, layers=(3, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_computes_what_the_cpu_does(tiny_folder):
    found = {}
    for device in ("cpu", "cuda"):
        model = load_model(str(tiny_folder), device, "float32")
        bench = Workbench(model, "memit", STRONG, 2, CovarianceSource(tokens=500), 0)
        ledger = Ledger(bench.fingerprint)
        ledger.accept(bench.compute(EASY, ledger, "clinic", 1), 1)
        with bench.edited(ledger) as edited:
            found[device] = likelihood(edited, EASY), bench.lookup_keys(EASY)
    assert np.allclose(found["cpu"][0], found["cuda"][0], rtol=0.05)
    assert torch.allclose(found["cpu"][1], found["cuda"][1], rtol=1e-3, atol=1e-5)
