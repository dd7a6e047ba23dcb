"""Spectral clusters of vectors, and where the vectors come from."""

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModel, AutoTokenizer

from fedit_app.config.run_config import RunConfig
from fedit_app.facts.clusters import spectral_clusters
from fedit_app.models import embedding as module
from fedit_app.models.embedding import embed, encoder_embeddings, mean_hidden_states
from fedit_app.support.errors import FedEditError

TEXTS = ["Where is Reuters?", "The Lancet is published in the city of", "A", "Basel, of the bank"]


def blobs(sizes, width=6, spread=0.1):
    """Vectors around directions, of very different lengths; and which direction each is of."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    vectors = np.eye(width)[labels] + spread * generator.normal(size=(len(labels), width))
    vectors *= generator.uniform(0.1, 50, size=(len(labels), 1))
    order = generator.permutation(len(labels))
    return vectors[order], labels[order]


def test_directions_are_found_whatever_the_lengths():
    vectors, truth = blobs([40, 30, 20])
    found = np.array(spectral_clusters(vectors, 3, seed=0))

    for label in range(3):
        assert len(set(truth[found == label])) == 1
    assert sorted(np.bincount(found)) == [20, 30, 40]


def test_clusters_are_seeded():
    vectors, _ = blobs([30, 30], spread=1.0)

    assert spectral_clusters(vectors, 4, seed=1) == spectral_clusters(vectors, 4, seed=1)


@pytest.mark.parametrize(("sizes", "count"), [([5], 1), ([2, 2], 4), ([2, 2], 2), ([3, 1], 3)])
def test_few_vectors(sizes, count):
    labels = spectral_clusters(blobs(sizes)[0], count, seed=0)
    assert set(labels) == set(range(count))


@torch.no_grad()
def plain_mean(model, text, layer):
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    states = model.model(ids, output_hidden_states=True).hidden_states[layer]
    return states[0].mean(0).numpy()


@pytest.mark.parametrize(("family", "bos"), [("llama", False), ("gpt2", False), ("opt", True)])
def test_hidden_states_are_averaged_after_a_third_of_the_layers(family, bos, monkeypatch):
    model = tiny.editable(family, bos)
    monkeypatch.setattr(module, "_ROWS_PER_PASS", 3)
    found = mean_hidden_states(model, TEXTS)

    assert found.shape == (len(TEXTS), tiny.D_MODEL)
    for text, mean in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(mean, plain_mean(model, text, tiny.LAYERS // 3), atol=1e-5)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny BERT, as sentence encoders are published."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = tiny.make_tokenizer()
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=16,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_an_encoders_last_states_are_averaged(encoder):
    texts = [*TEXTS, "city of " * 30]  # longer than the encoder takes
    found = encoder_embeddings(str(encoder), "cpu", texts)

    model, tokenizer = AutoModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)
    for text, mean in zip(texts, found, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"][:16]])
        expected = model(ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_the_run_config_names_the_model(encoder, tiny_folder):
    other = RunConfig(model=str(tiny_folder), embedding_model=str(encoder))

    assert embed(RunConfig(model=str(tiny_folder)), TEXTS).shape == (4, tiny.D_MODEL)
    assert embed(other, TEXTS).shape == (4, 12)


def test_an_embedding_model_that_is_not_there():
    with pytest.raises(FedEditError, match="^embedding-model: folder /no/such does not exist"):
        embed(RunConfig(embedding_model="/no/such"), TEXTS)
