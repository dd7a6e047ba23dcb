"""Where the text behind the covariance comes from, and that it is computed once."""

import json
import threading
import time

import pytest
import tiny
import torch
from editing import reference
from editing.cases import relative
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedit_app.editing import corpus, statistics
from fedit_app.editing import covariance as module
from fedit_app.editing.corpus import read_rows, token_rows, write_rows
from fedit_app.editing.covariance import (
    CovarianceSource,
    collect_covariance,
    covariance,
    load_into_cache,
    origin_of,
    sample_text,
    statistics_files,
)
from fedit_app.editing.statistics import open_statistics, write_statistics
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import cache_dir

LAYERS = (1, 3)
ROW = 24  # tokens of a sampled row here, instead of 96: a token is a pass of the model
OTHER_TEXT = "Other words about the bank and the city of Basel.\n" * 40


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "_SAMPLED_LENGTH", ROW)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("The head office is in the city.\n\nThe museum of London is old.\n" * 20)
    return file


@pytest.fixture
def passes():
    """Counts the forward passes of a model: `passes(model)` gives a list that grows."""
    handles = []

    def count(model):
        seen = []
        handles.append(model.model.register_forward_pre_hook(lambda *_: seen.append(1)))
        return seen

    yield count
    for handle in handles:
        handle.remove()


def cached_files(name: str = "*.safetensors") -> dict:
    """File name in the only cache folder -> file."""
    (folder,) = (cache_dir() / "covariance").iterdir()
    return {file.name: file for file in folder.glob(name)}


# The text


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


def test_too_little_text_says_how_much_there_is(text):
    text.write_text("The city.\n")
    count = len(tiny.make_tokenizer()("The city.")["input_ids"])
    with pytest.raises(FedEditError, match=rf"text.txt' has {count} tokens, 320 are needed"):
        covariance(tiny.editable(), LAYERS, CovarianceSource(str(text)))
    assert not list(cache_dir().glob("**/*.safetensors"))


def test_a_source_that_is_not_there_is_named():
    with pytest.raises(FedEditError, match="covariance-source: '/nowhere/text.txt'"):
        covariance(tiny.editable(), LAYERS, CovarianceSource("/nowhere/text.txt"))


def test_a_file_that_is_not_text_is_named(text):
    text.write_bytes(b"abc\xff\xfe")
    with pytest.raises(FedEditError, match=r"text.txt' is not UTF-8 text \(byte 3\)"):
        covariance(tiny.editable(), LAYERS, CovarianceSource(str(text)))


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
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
    assert {len(row) for row in first} == {ROW}
    assert len({row[0] for row in first}) > 1


@pytest.mark.slow
def test_text_is_sampled_in_batches_that_fit(monkeypatch, passes):
    model = tiny.editable()
    seen = passes(model)
    whole = sample_text(model, 5 * ROW, seed=7)
    assert len(seen) == ROW - 1
    per_row = 2 * model.n_layers * model.d_model * 4 * ROW
    monkeypatch.setattr(corpus, "_SAMPLING_BYTES", 2 * per_row)
    parts = sample_text(model, 5 * ROW, seed=7)
    assert len(seen) == 4 * (ROW - 1), "five rows, two at once"
    assert {len(row) for row in parts} == {ROW}
    assert [row[0] for row in parts] == [row[0] for row in whole]
    assert sample_text(model, 5 * ROW, seed=7) == parts


def test_sampled_text_does_not_follow_the_checkpoints_taste(monkeypatch):
    model = tiny.editable()
    plain = sample_text(model, ROW, seed=7)
    for name, value in {"top_p": 0.1, "repetition_penalty": 5.0, "temperature": 0.1}.items():
        monkeypatch.setattr(model.model.generation_config, name, value)
    assert sample_text(model, ROW, seed=7) == plain


def test_no_row_is_longer_than_the_model_reads(monkeypatch):
    model = tiny.editable()
    monkeypatch.setattr(model.model.config, "max_position_embeddings", 20)
    assert {len(row) for row in sample_text(model, 50, seed=1)} == {20}


# What is collected


def test_batches_change_nothing_and_padding_does_not_count(monkeypatch):
    model = tiny.editable("gpt2", double=True)
    rows = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [14] * 9]
    whole = collect_covariance(model, LAYERS, rows)
    monkeypatch.setattr(module, "_TOKENS_PER_PASS", 5)
    parts = collect_covariance(model, LAYERS, iter(rows))
    for layer in LAYERS:
        assert relative(parts[layer], whole[layer]) < 1e-12


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_what_is_cached_agrees_with_the_formula(family):
    model = tiny.editable(family, double=True)
    found = covariance(model, LAYERS, CovarianceSource(seed=7))
    rows = read_rows(cached_files()["tokens.safetensors"])
    assert rows == sample_text(model, 10 * model.d_ff, 7)
    for layer in LAYERS:
        assert relative(found[layer], reference.covariance(model, layer, rows)) < 1e-6


def test_the_order_of_the_layers_changes_nothing():
    model = tiny.editable()
    rows = [[5, 6, 7, 8], [9, 10]]
    rising, falling = (collect_covariance(model, layers, rows) for layers in ((1, 3), (3, 1)))
    assert all(torch.equal(rising[layer], falling[layer]) for layer in LAYERS)
    source = CovarianceSource(tokens=100)
    falling = covariance(model, (3, 1), source)
    assert list(falling) == [3, 1]
    rising = covariance(model, (1, 3), source)
    assert list(rising) == [1, 3]
    assert all(torch.equal(rising[layer], falling[layer]) for layer in LAYERS)


# The cache


def test_it_is_computed_once_and_again_for_other_text(text, passes):
    model = tiny.editable()
    seen = passes(model)
    source = CovarianceSource(str(text), 150)
    first = covariance(model, LAYERS, source)
    again = covariance(model, LAYERS, source)
    assert len(seen) == 1
    assert all(torch.equal(first[layer], again[layer]) for layer in LAYERS)
    covariance(model, LAYERS, CovarianceSource(str(text), 150, seed=5))
    assert len(seen) == 1, "nothing is drawn from a text file"
    covariance(model, LAYERS, CovarianceSource(str(text), 151))
    assert len(seen) == 2
    other = tiny.editable("gpt2")
    assert not torch.equal(covariance(other, LAYERS, source)[1], first[1])
    text.write_text(OTHER_TEXT)
    assert not torch.equal(covariance(model, LAYERS, source)[1], first[1])
    assert len(seen) == 3, "the file has changed"


def test_only_missing_layers_are_computed(passes):
    model = tiny.editable()
    seen = passes(model)
    source = CovarianceSource(tokens=100, seed=3)
    first = covariance(model, (1, 2), source)
    assert len(seen) == ROW - 1 + 1, "tokens written behind the first ones, one pass over the text"
    before = {name: file.stat().st_mtime_ns for name, file in cached_files().items()}
    assert set(before) == {"tokens.safetensors", "layer-1.safetensors", "layer-2.safetensors"}

    found = covariance(model, (3, 2, 0), source)
    assert list(found) == [3, 2, 0]
    assert torch.equal(found[2], first[2])
    assert len(seen) == ROW - 1 + 2, "no text is sampled again, one pass for both layers"
    after = {name: file.stat().st_mtime_ns for name, file in cached_files().items()}
    assert set(after) - set(before) == {"layer-0.safetensors", "layer-3.safetensors"}
    assert before.items() <= after.items()

    whole = collect_covariance(model, (0, 3), read_rows(cached_files()["tokens.safetensors"]))
    assert all(relative(found[layer], whole[layer]) < 1e-6 for layer in (0, 3))


def test_a_pass_stops_after_the_last_missing_layer():
    model = tiny.editable()
    covariance(model, (1, 3), CovarianceSource(tokens=100))
    reached = []
    handle = model.layers[3].register_forward_pre_hook(lambda *_: reached.append(1))
    covariance(model, (0, 2, 3), CovarianceSource(tokens=100))
    handle.remove()
    assert reached == []


def test_a_file_says_what_it_is_of(text):
    model = tiny.editable()
    covariance(model, (1,), CovarianceSource(str(text), 150))
    with safe_open(cached_files()["layer-1.safetensors"], "pt") as tensors:
        metadata = tensors.metadata()
        assert tensors.get_tensor("layer-1").dtype == torch.float32
    assert metadata["model"] == model.fingerprint
    assert metadata["source"].startswith("sha256:")
    assert (metadata["tokens"], metadata["seed"]) == ("150", "0")
    rows = read_rows(cached_files()["tokens.safetensors"])
    assert rows == token_rows(model, CovarianceSource(str(text)), 150)
    assert json.loads(metadata["counted"]) == {"1": sum(map(len, rows))}
    assert load_file(cached_files()["tokens.safetensors"])["tokens"].dtype == torch.int32


def test_anyone_who_may_read_new_files_may_read_the_cache(tmp_path):
    covariance(tiny.editable(), (1,), CovarianceSource(tokens=100))
    plain = tmp_path / "plain"
    plain.touch()
    assert {f.stat().st_mode for f in cached_files().values()} == {plain.stat().st_mode}


def test_a_home_relative_file_is_known_by_its_content(text, monkeypatch):
    monkeypatch.setenv("HOME", str(text.parent))
    source = CovarianceSource("~/text.txt", 100)
    first = covariance(tiny.editable(), LAYERS, source)
    text.write_text(OTHER_TEXT)
    assert not torch.equal(first[1], covariance(tiny.editable(), LAYERS, source)[1])


def test_what_fails_leaves_no_cache(text, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    source = CovarianceSource(str(text), 150)
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "save_file", fail)
        with pytest.raises(RuntimeError):
            covariance(tiny.editable(), LAYERS, source)
    assert list(cached_files("*")) == [".lock"]
    assert covariance(tiny.editable(), LAYERS, source)[1].shape == (tiny.D_FF, tiny.D_FF)


@pytest.mark.parametrize(
    "content",
    [*(pytest.param(c, marks=pytest.mark.slow) for c in (b"", b"not safetensors at all")), None],
)
@pytest.mark.parametrize("name", ["layer-1.safetensors", "tokens.safetensors"])
def test_a_damaged_file_is_named_with_the_remedy(name, content, passes):
    model = tiny.editable()
    source = CovarianceSource(tokens=100)
    covariance(model, (1,), source)
    file = cached_files()[name]
    file.write_bytes(file.read_bytes()[:-9] if content is None else content)
    seen = passes(model)
    with pytest.raises(FedEditError, match=rf"{name}: .*; delete it"):
        covariance(model, LAYERS, source)
    assert seen == []
    file.unlink()
    assert set(covariance(model, LAYERS, source)) == set(LAYERS)


def test_lengths_that_do_not_fit_the_tokens(tmp_path):
    file = tmp_path / "tokens.safetensors"
    write_rows(file, [[1, 2, 3], [4]])
    assert read_rows(file) == [[1, 2, 3], [4]]
    save_file({**load_file(file), "lengths": torch.tensor([3, 4])}, file)
    with pytest.raises(FedEditError, match="tokens.safetensors: damaged"):
        read_rows(file)


def test_a_file_of_something_else_is_not_taken():
    model = tiny.editable()
    for seed in (0, 1):
        covariance(model, (1,), CovarianceSource(tokens=100, seed=seed))
    one, other = (cache_dir() / "covariance").glob("*/layer-1.safetensors")
    other.write_bytes(one.read_bytes())
    with pytest.raises(FedEditError, match="header names another origin or layer; delete it"):
        for seed in (0, 1):
            covariance(model, (1,), CovarianceSource(tokens=100, seed=seed))


def test_a_second_process_waits_and_then_reads(log, passes):
    model = tiny.editable()
    source = CovarianceSource(tokens=100)
    expected = covariance(model, (1,), source)[1]
    file = cached_files()["layer-1.safetensors"]
    aside = file.rename(file.with_name("aside"))
    seen = passes(model)
    found = []
    thread = threading.Thread(target=lambda: found.append(covariance(model, (1,), source)[1]))
    with FileLock(file.with_name(".lock")):
        thread.start()
        for _ in range(600):
            if "waiting for another process" in log.text:
                break
            time.sleep(0.1)
        assert found == []
        aside.rename(file)
    thread.join(600)
    assert torch.equal(found[0], expected)
    assert seen == []


def test_long_work_is_visible_and_short_work_is_not(log, monkeypatch):
    covariance(tiny.editable(), (2,), CovarianceSource(tokens=100))
    assert " of 120 tokens" not in log.text
    monkeypatch.setattr(corpus, "_SAMPLING_BYTES", 1)
    monkeypatch.setattr(module, "_TOKENS_PER_PASS", 1)
    covariance(tiny.editable(), (1,), CovarianceSource(tokens=100, seed=1))
    assert "sampled 24 of 120 tokens" in log.text
    assert "counted 24 of 120 tokens" in log.text


# Statistics files


@pytest.fixture
def given(tmp_path):
    """Statistics of layers 1 and 3 as another machine has made them, and their matrices."""
    model = tiny.editable()
    source = CovarianceSource(tokens=100)
    file = tmp_path / "given.safetensors"
    matrices = dict(covariance(model, LAYERS, source))
    files = statistics_files(model, LAYERS, source)
    counted = {layer: files[layer].counted[layer] for layer in LAYERS}
    write_statistics(file, files[1].origin, counted, matrices)
    for cached in cached_files().values():
        cached.unlink()
    return file, matrices


def test_a_statistics_file_is_used_as_it_is(given, passes):
    file, expected = given
    model = tiny.editable()
    seen = passes(model)
    found = covariance(model, (3,), CovarianceSource(str(file), tokens=7, seed=9))
    assert list(found) == [3]
    assert torch.equal(found[3], expected[3])
    assert found[3].dtype == torch.float64
    assert seen == [] and not cached_files()


def test_a_loaded_file_spares_the_computation(given, passes):
    file, expected = given
    model = tiny.editable()
    seen = passes(model)
    load_into_cache(model, open_statistics(file))
    found = covariance(model, LAYERS, CovarianceSource(tokens=100))
    assert seen == []
    assert all(torch.equal(found[layer], expected[layer]) for layer in LAYERS)


def test_loading_mends_a_damaged_cache(given):
    file, expected = given
    model = tiny.editable()
    source = CovarianceSource(tokens=100)
    load_into_cache(model, open_statistics(file))
    cached_files()["layer-1.safetensors"].write_bytes(b"damaged")
    load_into_cache(model, open_statistics(file))
    assert torch.equal(covariance(model, LAYERS, source)[1], expected[1])


def test_statistics_of_another_model_are_refused(given):
    file, _ = given
    other = tiny.editable("gpt2")
    with pytest.raises(FedEditError, match=r"given.safetensors: statistics of another model \(fin"):
        covariance(other, LAYERS, CovarianceSource(str(file)))
    with pytest.raises(FedEditError, match="fedit stats --save"):
        load_into_cache(other, open_statistics(file))
    assert not cached_files()


def test_a_layer_that_is_not_in_the_file(given):
    with pytest.raises(FedEditError, match=r"has the layers 1,3, not 0,2; make one"):
        covariance(tiny.editable(), (0, 1, 2), CovarianceSource(str(given[0])))


def test_statistics_of_another_width(tmp_path):
    model = tiny.editable()
    file = tmp_path / "wide.safetensors"
    origin = origin_of(model, CovarianceSource())
    write_statistics(file, origin, {1: 10}, {1: torch.eye(model.d_ff + 1)})
    with pytest.raises(FedEditError, match=r"its d_ff is 33, the model's is 32"):
        covariance(model, (1,), CovarianceSource(str(file)))


def test_statistics_that_are_not_finite(tmp_path):
    model = tiny.editable()
    file = tmp_path / "nan.safetensors"
    matrix = torch.eye(model.d_ff)
    matrix[2, 2] = float("nan")
    write_statistics(file, origin_of(model, CovarianceSource()), {1: 10}, {1: matrix})
    with pytest.raises(FedEditError, match="nan.safetensors: layer 1 is not finite"):
        load_into_cache(model, open_statistics(file))


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"layer-1": torch.eye(4)}, "no header of covariances"),
        (None, "No such file"),
        (b"\x00\x01", "not a complete statistics file"),
    ],
)
def test_what_is_no_statistics_file(tmp_path, tensors, told):
    file = tmp_path / "some.safetensors"
    if isinstance(tensors, bytes):
        file.write_bytes(tensors)
    elif tensors:
        save_file(tensors, file)
    with pytest.raises(FedEditError, match=f"some.safetensors: .*{told}.*fedit stats --save"):
        covariance(tiny.editable(), LAYERS, CovarianceSource(str(file)))


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"layer-1": torch.eye(4), "layer-2": torch.eye(4)}, "not those of its header"),
        ({"layer-1": torch.eye(4), "layer-3": torch.eye(5)}, "differ in type or width"),
        ({"layer-1": torch.ones(4, 5), "layer-3": torch.ones(4, 5)}, r"\[4, 5\] where"),
        ({"layer-1": torch.eye(4).half(), "layer-3": torch.eye(4).half()}, "F16"),
    ],
)
def test_matrices_that_do_not_fit_the_header(given, tensors, told):
    file, _ = given
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, file, metadata)
    with pytest.raises(FedEditError, match=told):
        open_statistics(file)
