"""Context templates and the weights of their keys."""

import dataclasses

import pytest
import tiny
import torch

from fedit_app.editing.contexts import context_weights, contexts_digest, sample_contexts
from fedit_app.models.chat import ChatForm


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


@pytest.mark.parametrize("prefixes", [0, 1, 3, 5])
def test_each_kind_of_text_counts_as_much_in_a_key(prefixes):
    weights = context_weights(["{}", *["Then. {}"] * prefixes])
    kinds = [weights[:1], weights[1:]]
    sums = [float(kind.sum()) for kind in kinds if len(kind)]
    assert sums == pytest.approx([1 / len(sums)] * len(sums), abs=1e-15)
    assert all(len(set(kind.tolist())) <= 1 for kind in kinds)


def test_the_digest_of_texts_alone_is_that_of_earlier_versions():
    """An MKV's fingerprint rests on it."""
    assert contexts_digest(["{}", "Therefore. {}"]) == "26a28743c6b23179"
    turn = ChatForm("[user]", "[assistant]", "", "</s>")
    digests = {contexts_digest(["{}", turn]), contexts_digest(["{}"])}
    for part in ("before", "after", "gap", "end"):
        other = dataclasses.replace(turn, **{part: "another"})
        digests.add(contexts_digest(["{}", other]))
    assert len(digests) == 6
