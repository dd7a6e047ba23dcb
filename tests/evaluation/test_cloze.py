"""The bundled cloze set: sound items, and counted by the model's own likelihoods."""

import itertools

import tiny
import torch
from editing.cases import EASY, REQUESTS

from fedit_app.evaluation import cloze as module
from fedit_app.evaluation.cloze import ITEMS, cloze


def test_every_item_has_four_different_ends_and_no_name():
    assert len(ITEMS) >= 40 and len({start for start, _ in ITEMS}) == len(ITEMS)
    for start, text in ITEMS:
        ends = text.split("|")
        assert len(set(ends)) == 4 and all(end.strip() == end for end in ends)
        assert start[1:] == start[1:].lower(), start
        for fact in (*EASY, *REQUESTS):
            assert fact.subject not in start


def test_the_right_end_has_to_be_the_likeliest_by_its_own_tokens(monkeypatch):
    """Against the model's own pass over each sentence, one by one."""
    model = tiny.editable("llama")
    items = ITEMS[:8]
    monkeypatch.setattr(module, "ITEMS", items)
    right = 0
    for start, text in items:
        losses = []
        for end in text.split("|"):
            begun, whole = (model.tokenizer(t)["input_ids"] for t in (start, f"{start} {end}"))
            same = itertools.takewhile(lambda p: p[0] == p[1], zip(begun, whole, strict=False))
            first = len(list(same))
            with torch.no_grad():
                found = model.model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
            own = [-float(found[at - 1, whole[at]]) for at in range(first, len(whole))]
            losses.append(sum(own) / len(own))
        right += losses[0] < min(losses[1:])
    assert cloze(model) == right / len(items)
