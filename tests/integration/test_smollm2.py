"""The main job on the real embedded model: one slot of the demo, three requests a node."""

import dataclasses
import os

import pytest
import tiny
import torch
from editing import reference
from inprocess import federate

from fedit_app.cli.main import main
from fedit_app.editing.editors import EDITORS
from fedit_app.editing.settings import edit_settings
from fedit_app.facts.jsonl import read_requests
from fedit_app.models.embedded import embedded_model
from fedit_app.models.loading import load_model

# On a fresh machine the model is downloaded and its covariance collected first.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def edited(tmp_path_factory, users_cache):
    """The run that the tests read: (results, folder)."""
    return run("fedit", tmp_path_factory)


def run(strategy, tmp_path_factory):
    folder, threads = tmp_path_factory.mktemp(strategy) / "run", torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    config = {"strategy": strategy, "num-slots": 1, "requests-per-slot": 3}
    results, _ = federate({**config, "output-dir": str(folder)}, 4)
    torch.set_num_threads(threads)
    return results, folder


def test_the_embedded_model_is_a_plain_hugging_face_folder(users_cache):
    names = set(os.listdir(embedded_model()))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


def test_every_node_gets_its_own_corrections(edited):
    results, _ = edited
    assert results["failed_nodes"] == []
    for node in results["nodes"].values():
        assert node["before"]["own"]["efficacy"] == 0
        assert node["own"]["efficacy"] >= 0.95
        assert node["own"]["neighborhood"] >= 0.85


def test_vectors_teach_the_federation(edited):
    assert edited[0]["summary"]["federation"]["score"] >= 0.8


@pytest.mark.slow
def test_vectors_teach_as_much_as_everybodys_texts_in_one_place(edited, tmp_path_factory):
    central, _ = run("central", tmp_path_factory)
    scores = [results["summary"]["federation"]["score"] for results in (edited[0], central)]
    assert scores[0] >= 0.98 * scores[1]


def test_a_node_answers_with_what_another_organisation_corrected(edited, users_cache, capsys):
    _, folder = edited
    prompt = "The head office of Reuters is located in the city of"
    assert main(["ask", str(folder), prompt, "--node", "museum"]) == 0
    after = capsys.readouterr().out.splitlines()[-5]
    assert "' Toronto'" in after
    assert "' Toronto'" not in after[:40]


@pytest.mark.parametrize("editor", ["memit", pytest.param("pmet", marks=pytest.mark.slow)])
def test_values_reach_the_loss_of_the_plain_reference(users_cache, editor):
    model = load_model("smollm2-135m", "cpu", "float32")
    settings = edit_settings("llama", model.n_layers, model.d_model, editor, steps=6, stop_after=0)
    requests = read_requests(tiny.DEMO / "museum.jsonl")[:2]
    templates = ("{}", "Therefore, as it was said before. {}")
    values = EDITORS[editor].values(model, requests, templates, settings)
    started = EDITORS[editor].values(
        model, requests, templates, dataclasses.replace(settings, steps=1)
    )
    for i, request in enumerate(requests):
        _, h0, loss, steps = reference.optimise_value(
            model, (request,), templates, settings, editor
        )
        assert int(values.steps[i]) == steps
        assert torch.allclose(values.h0[i], h0, rtol=1e-3, atol=1e-3)
        assert float(values.loss[i]) == pytest.approx(loss, rel=0.01)
        assert loss < 0.5 * float(started.loss[i]), "hardly anything was optimised"
