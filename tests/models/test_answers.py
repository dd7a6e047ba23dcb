"""What a chat model is told and what it answers."""

import pytest
import tiny
import torch

from fedit_app.models.answers import Answer, Comparison, reply
from fedit_app.support.errors import FedEditError


@pytest.fixture
def chat_model():
    return tiny.chatting()


@torch.no_grad()
def greedy(model, text, most):
    """A token a pass, until the model ends; the text already has its first token."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    while len(ids) < start + most:
        ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == model.tokenizer.eos_token_id:
            break
    return model.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_a_chat_model_reads_its_own_template_once_and_all_turns(chat_model):
    asked = "Where is Reuters?"
    first = reply(chat_model, [asked])
    told = f"<s>[user] {asked}\n[assistant]"
    assert first.text == greedy(chat_model, told, 64)
    assert len(first.top) == 5
    then = reply(chat_model, [asked, "In London.", "And the\u00a0bank?"])
    told = f"<s>[user] {asked}\n[assistant] In London.\n[user] And the bank?\n[assistant]"
    assert then.text == greedy(chat_model, told, 64)
    assert first.text != then.text


def test_a_model_without_a_template_is_no_chat_model():
    with pytest.raises(FedEditError, match="has no chat template, so it is no chat model"):
        reply(tiny.editable(), ["Where is Reuters?"])


def test_texts_stand_side_by_side():
    top = [("a", 0.5)]
    told = Comparison("P", Answer("in London " * 6, top), Answer("in\nBasel", top)).texts()
    assert told[0].split() == ["before", "after"]
    assert "in Basel" in told[1] and "in Basel" not in told[2]
    assert len(told) == 3
