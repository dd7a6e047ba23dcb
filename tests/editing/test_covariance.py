"""Where the text behind the covariance comes from, and that it is computed once."""

import pytest
import tiny
import torch
from editing.cases import relative

from fedit_app.editing import covariance as module
from fedit_app.editing.covariance import (
    CovarianceSource,
    collect_covariance,
    covariance,
    sample_text,
)
from fedit_app.errors import FedEditError
from fedit_app.files import cache_dir

LAYERS = (1, 3)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("The head office is in the city.\n\nThe museum of London is old.\n" * 20)
    return file


def test_a_text_file_is_what_is_counted(text):
    model = tiny.editable()
    found = covariance(model, LAYERS, CovarianceSource(str(text), 150))
    ids = [
        token
        for line in text.read_text().splitlines()
        for token in model.tokenizer(line)["input_ids"]
    ]
    lengths = [len(model.tokenizer(line)["input_ids"]) for line in text.read_text().splitlines()]
    enough = next(n for n in range(len(lengths)) if sum(lengths[:n]) >= 150)
    expected = collect_covariance(model, LAYERS, [ids[: sum(lengths[:enough])]])
    assert set(found) == set(LAYERS)
    for layer in LAYERS:
        assert found[layer].shape == (tiny.D_FF, tiny.D_FF)
        assert found[layer].dtype == torch.float64
        assert relative(found[layer], expected[layer]) < 1e-6


def test_batches_change_nothing_and_padding_does_not_count(monkeypatch):
    model = tiny.editable("gpt2", double=True)
    rows = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [14] * 9]
    whole = collect_covariance(model, LAYERS, rows)
    monkeypatch.setattr(module, "_TOKENS_PER_PASS", 5)
    parts = collect_covariance(model, LAYERS, rows)
    for layer in LAYERS:
        assert relative(parts[layer], whole[layer]) < 1e-12


def test_it_is_computed_once_and_again_for_other_text(text, monkeypatch):
    model = tiny.editable()
    collected = []
    monkeypatch.setattr(
        module,
        "collect_covariance",
        lambda *args: collected.append(args) or collect_covariance(*args),
    )
    source = CovarianceSource(str(text), 150)
    first = covariance(model, LAYERS, source)
    again = covariance(model, LAYERS, source)
    assert len(collected) == 1
    assert all(torch.equal(first[layer], again[layer]) for layer in LAYERS)
    covariance(model, (1,), source)
    covariance(model, LAYERS, CovarianceSource(str(text), 151))
    covariance(tiny.editable("gpt2"), LAYERS, source)
    assert len(collected) == 4
    text.write_text("Other words about the bank and the city of Basel.\n" * 40)
    other = covariance(model, LAYERS, source)
    assert len(collected) == 5, "the file has changed"
    assert not torch.equal(first[1], other[1])


def test_a_home_relative_file_is_known_by_its_content(text, monkeypatch):
    monkeypatch.setenv("HOME", str(text.parent))
    source = CovarianceSource("~/text.txt", 100)
    first = covariance(tiny.editable(), LAYERS, source)
    text.write_text("Other words about the bank and the city of Basel.\n" * 40)
    assert not torch.equal(first[1], covariance(tiny.editable(), LAYERS, source)[1])


def test_too_little_text_says_how_much_there_is(text):
    text.write_text("The city.\n")
    count = len(tiny.make_tokenizer()("The city.")["input_ids"])
    with pytest.raises(FedEditError, match=rf"text.txt' has {count} tokens, 320 are needed"):
        covariance(tiny.editable(), LAYERS, CovarianceSource(str(text)))
    assert not list(cache_dir().glob("**/*.safetensors"))


def test_a_source_that_is_not_there_is_named():
    with pytest.raises(FedEditError, match="covariance-source: '/nowhere/text.txt'"):
        covariance(tiny.editable(), LAYERS, CovarianceSource("/nowhere/text.txt"))


def test_a_damaged_source_leaves_no_cache(text, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    source = CovarianceSource(str(text), 150)
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", fail)
        with pytest.raises(RuntimeError):
            covariance(tiny.editable(), LAYERS, source)
    assert covariance(tiny.editable(), LAYERS, source)[1].shape == (tiny.D_FF, tiny.D_FF)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sampled_text_is_the_same_for_the_same_seed(family):
    model = tiny.editable(family)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = sample_text(model, 250, seed=7)
    assert torch.equal(torch.get_rng_state(), state), "the draw must not disturb others"
    torch.manual_seed(2)
    assert sample_text(model, 250, seed=7) == first
    assert sample_text(model, 250, seed=8) != first
    assert sum(map(len, first)) >= 250
    assert {len(row) for row in first} == {96}
    assert len({row[0] for row in first}) > 1


def test_the_model_itself_is_the_default_source():
    model = tiny.editable()
    found = covariance(model, LAYERS, CovarianceSource(seed=7))
    expected = collect_covariance(model, LAYERS, sample_text(model, 10 * model.d_ff, 7))
    for layer in LAYERS:
        assert relative(found[layer], expected[layer]) < 1e-6
