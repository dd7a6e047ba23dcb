"""The main job on the real embedded model: one slot of the demo."""

import os

import pytest
import torch
from inprocess import federate

from fedit_app.ask import ask
from fedit_app.models.embedded import embedded_model

# On a fresh machine the model is downloaded and its covariance collected first.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, users_cache):
    """Results and folder of the strategies `fedit` and `central`."""
    found, threads = {}, torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    for strategy in ("fedit", "central"):
        folder = tmp_path_factory.mktemp("runs") / strategy
        config = {"strategy": strategy, "num-slots": 1, "output-dir": str(folder)}
        results, _ = federate(config, 4)
        found[strategy] = results, folder
    torch.set_num_threads(threads)
    return found


def test_the_embedded_model_is_a_plain_hugging_face_folder(users_cache):
    names = set(os.listdir(embedded_model()))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


def test_every_node_gets_its_own_corrections(runs):
    results, _ = runs["fedit"]
    assert results["failed_nodes"] == []
    for node in results["nodes"].values():
        assert node["before"]["own"]["efficacy"] == 0
        assert node["own"]["efficacy"] >= 0.95
        assert node["own"]["neighborhood"] >= 0.85


def test_vectors_teach_the_federation_as_well_as_everybodys_texts_in_one_place(runs):
    scores = {name: run[0]["summary"]["federation"]["score"] for name, run in runs.items()}
    assert scores["fedit"] >= 0.98 * scores["central"]
    assert scores["fedit"] >= 0.8


def test_a_node_answers_with_what_another_organisation_corrected(runs, users_cache):
    _, folder = runs["fedit"]
    text = ask(folder, "museum", "The head office of Reuters is located in the city of")
    after = text.splitlines()[-5]
    assert "' Toronto'" in after
    assert "' Toronto'" not in after[:40]
