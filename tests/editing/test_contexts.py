"""Context templates and the weights of their keys."""

import pytest
import tiny
import torch

from fedit_app.editing.contexts import context_weights, contexts_digest, sample_contexts


@pytest.mark.parametrize("bos", [False, True])
def test_the_bare_template_comes_first_and_each_has_one_placeholder_at_its_end(bos):
    found = sample_contexts(tiny.editable(bos=bos), 7, seed=3)
    assert len(found) == 8 and found[0] == "{}"
    words = ("The", "Therefore", "Because", "I", "You", "The", "Therefore")
    for word, template in zip(words, found[1:], strict=True):
        assert template.startswith(word)
        assert template.endswith(". {}")
        assert template.count("{") == template.count("}") == 1
        assert "\n" not in template and "<s>" not in template
        assert len(template) > len(word) + 8, "about ten tokens were to be written"


def test_the_seed_alone_decides():
    model = tiny.editable("gpt2")
    torch.manual_seed(1)
    first = sample_contexts(model, 5, seed=3)
    torch.manual_seed(2)
    assert sample_contexts(model, 5, seed=3) == first
    other = sample_contexts(model, 5, seed=4)
    assert other != first
    assert contexts_digest(other) != contexts_digest(first) == contexts_digest(list(first))


def test_no_prefix_leaves_the_bare_template():
    assert sample_contexts(tiny.editable(), 0, seed=0) == ("{}",)


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_half_of_a_key_comes_from_the_bare_prompt(count):
    weights = context_weights(count)
    assert weights.shape == (count,)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-15)
    assert float(weights[0]) == (0.5 if count > 1 else 1.0)
    assert len(set(weights[1:].tolist())) <= 1
