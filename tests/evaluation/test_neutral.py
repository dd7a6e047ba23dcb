"""Divergence and perplexity on ordinary text against plain passes with all logits."""

from pathlib import Path

import pytest
import tiny
import torch

from fedit_app.editing.corpus import sample_text
from fedit_app.evaluation import neutral as module
from fedit_app.evaluation.cloze import cloze
from fedit_app.evaluation.neutral import neutral_rows, neutral_scores
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError

WIKITEXT = Path(__file__).parents[3] / "shared" / "data" / "wikitext2_raw_test.txt"
ROWS = [(5, 6, 7, 8, 9), (10, 11), (12,), (13, 14, 15, 16, 17, 18, 19, 20, 21), (22, 23, 24)]


def random_deltas(model, layers=(1, 3), size=0.3):
    generator = torch.Generator().manual_seed(0)
    shape = (model.d_model, model.d_ff)
    return {
        layer: size * torch.randn(shape, generator=generator, dtype=torch.float64)
        for layer in layers
    }


@torch.no_grad()
def plain_scores(model, deltas, rows):
    """All figures from the full logits of one row at a time, without padding."""

    def log_p(row):
        return model.model(torch.tensor([row])).logits[0, :-1].log_softmax(-1)

    before = [log_p(row) for row in rows]
    with model.edited(deltas):
        after = [log_p(row) for row in rows]
    p, q = torch.cat(before), torch.cat(after)
    wanted = torch.tensor([token for row in rows for token in row[1:]])
    kl = (p.exp() * (p - q)).sum(-1).mean()
    perplexities = [torch.exp(-x[torch.arange(len(x)), wanted].mean()) for x in (p, q)]
    likeliest = [[set(row.argsort(descending=True)[:10].tolist()) for row in x] for x in (p, q)]
    shared = [len(one & other) / 10 for one, other in zip(*likeliest, strict=True)]
    return float(kl), *map(float, perplexities), len(wanted), sum(shared) / len(shared)


@pytest.mark.parametrize("family", tiny.every(*tiny.FAMILIES))
def test_scores_are_those_of_plain_passes(family):
    model = tiny.editable(family, double=True)
    deltas = random_deltas(model)
    weights = {layer: model.weight(layer).clone() for layer in deltas}
    found = neutral_scores(model, deltas, ROWS)
    kl, before, after, tokens, overlap = plain_scores(model, deltas, ROWS)
    assert kl > 1e-3, "the edit has to change something"
    assert found.kl == pytest.approx(kl, rel=1e-8)
    assert found.perplexity_before == pytest.approx(before, rel=1e-8)
    assert found.perplexity_after == pytest.approx(after, rel=1e-8)
    assert found.tokens == tokens == sum(len(row) - 1 for row in ROWS)
    assert found.top10_overlap == pytest.approx(overlap)
    assert 0 < overlap < 1
    assert all(torch.equal(model.weight(layer), weight) for layer, weight in weights.items())


@pytest.mark.parametrize("tokens", [1, 10, 18])
def test_chunks_and_order_change_nothing(tokens, monkeypatch):
    model = tiny.editable(double=True)
    deltas = random_deltas(model)
    whole = neutral_scores(model, deltas, ROWS)
    monkeypatch.setattr(module, "_TOKENS_PER_PASS", tokens)
    monkeypatch.setattr(module, "_POSITIONS_PER_PASS", 3)
    parts = neutral_scores(model, deltas, ROWS[::-1])
    for name in vars(whole):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-10), name


def test_memory_is_bounded(monkeypatch):
    model = tiny.editable()
    passes, heads = [], []
    last_states, log_probabilities = module.last_states, EditableModel.log_probabilities

    def count_head(self, hidden):
        heads.append(len(hidden))
        return log_probabilities(self, hidden)

    monkeypatch.setattr(
        module,
        "last_states",
        lambda m, ids, mask: passes.append(ids.numel()) or last_states(m, ids, mask),
    )
    monkeypatch.setattr(EditableModel, "log_probabilities", count_head)
    monkeypatch.setattr(module, "_TOKENS_PER_PASS", 20)
    monkeypatch.setattr(module, "_POSITIONS_PER_PASS", 7)
    monkeypatch.setattr(module, "cloze", lambda _: 0.0)  # it reads short sentences, as scores do
    neutral_scores(model, random_deltas(model), ROWS * 3)
    assert max(passes) <= 20
    assert max(heads) == 7
    assert sum(heads) == 2 * 3 * sum(len(row) - 1 for row in ROWS)


@pytest.mark.parametrize("deltas", ["none", "zero"])
def test_no_change_is_no_divergence(deltas):
    model = tiny.editable()
    changes = random_deltas(model, size=0.0) if deltas == "zero" else {}
    found = neutral_scores(model, changes, ROWS)
    assert (found.kl, found.top10_overlap) == (0.0, 1.0)
    assert found.perplexity_before == found.perplexity_after > 1


def test_half_precision_is_summed_in_more():
    whole = tiny.editable()
    half = EditableModel(tiny.in_bfloat16(whole.model), whole.tokenizer, "half", "f")
    deltas = random_deltas(whole)
    rough, exact = (neutral_scores(model, deltas, ROWS) for model in (half, whole))
    assert rough.kl == pytest.approx(exact.kl, rel=0.1)
    assert rough.perplexity_before == pytest.approx(exact.perplexity_before, rel=0.1)
    assert neutral_scores(half, {}, ROWS).kl == 0.0


@pytest.mark.parametrize("rows", [[], [(5,), (6,)]])
def test_nothing_to_predict_is_an_error(rows):
    with pytest.raises(FedEditError, match="no row has two tokens"):
        neutral_scores(tiny.editable(), {}, rows)


def test_own_text_is_sampled_once_and_not_that_of_the_covariance(monkeypatch):
    model = tiny.editable()
    rows = module.own_text(model)
    assert [len(row) for row in rows] == [96] * 4
    assert not set(map(tuple, rows)) & set(map(tuple, sample_text(model, 384, seed=0)))
    monkeypatch.setattr(module, "sample_text", None)
    assert module.own_text(model) == rows


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(" = The museum = \n\n \nThe head office is in the city .\n" * 10)
    return file


def test_rows_are_the_text_in_order(text):
    model = tiny.editable()
    rows = neutral_rows(model, text, 4, 12)
    assert [len(row) for row in rows] == [12] * 4
    joined = model.tokenizer.decode([token for row in rows for token in row])
    expected = "".join(line for line in text.read_text().splitlines(True) if line.strip())
    assert expected.startswith(joined) and len(joined) > 12


def test_every_row_begins_with_bos_where_the_tokenizer_adds_one(text):
    model = tiny.editable(bos=True)
    rows = neutral_rows(model, text, 3, 12)
    assert {row[0] for row in rows} == {model.tokenizer.bos_token_id}
    plain = neutral_rows(tiny.editable(), text, 3, 11)
    assert [row[1:] for row in rows] == plain


def test_too_little_text_says_what_is_needed(text):
    with pytest.raises(FedEditError, match=r"text.txt has \d+ tokens, 99 rows of 64 need 6336"):
        neutral_rows(tiny.editable(), text, 99, 64)


def test_text_that_cannot_be_read(tmp_path):
    with pytest.raises(FedEditError, match=r"absent.txt cannot be read"):
        neutral_rows(tiny.editable(), tmp_path / "absent.txt", 1)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("é".encode("latin-1"))
    with pytest.raises(FedEditError, match=r"latin.txt cannot be read \(not UTF-8"):
        neutral_rows(tiny.editable(), latin, 1)


@pytest.mark.parametrize("length", [1, 257])
def test_rows_fit_the_model(text, length):
    with pytest.raises(FedEditError, match=f"rows of {length} tokens requested; .* 2 to 256"):
        neutral_rows(tiny.editable(), text, 1, length)


@pytest.mark.skipif(not WIKITEXT.exists(), reason="no shared/data beside the project")
def test_wikitext_gives_rows():
    rows = neutral_rows(tiny.editable(), WIKITEXT, 32)
    assert len(rows) == 32
    assert {len(row) for row in rows} == {128}
    assert len(set(rows)) == 32


def test_general_knowledge_is_asked_before_and_after_the_edit():
    model = tiny.editable()
    deltas = {layer: 30 * delta for layer, delta in random_deltas(model).items()}
    found = neutral_scores(model, deltas, ROWS)
    assert found.cloze_before == cloze(model)
    with model.edited(deltas):
        assert found.cloze_after == cloze(model)
