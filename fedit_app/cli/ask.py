"""Asking a node's model: what it says before and after the node's edits."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedit_app.cli.places import Place, find_place
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import read_index
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError

_NEW_TOKENS = 12
_TOP = 5
_OWN_FACTS = 3
_WIDTH = 38


@dataclass(frozen=True)
class Answer:
    """What a model says to a prompt.

    Attributes:
        text: greedy continuation.
        top: the likeliest next tokens with their probabilities.
    """

    text: str
    top: list[tuple[str, float]]


def ask(folder: Path, node: str, federation: str, prompt: str | None) -> str:
    """Ask a node's model.

    Args:
        folder: see `find_place`.
        node: see `find_place`; "central" for the ledger of the strategy `central`.
        federation: see `find_place`.
        prompt: the question; None asks some of the node's own facts.

    Returns:
        Text with the answers before and after the edits, side by side.

    Raises:
        FedEditError: no such ledger, or the node's facts cannot be read.
    """
    place = find_place(folder, node, federation)
    index = read_index(place.ledger)
    prompts = [prompt] if prompt else [request.text for request in _own(place, index)]
    ledger = place.open()
    bench = place.workbench(ledger)
    before = [answer(bench.model, text) for text in prompts]
    with bench.edited(ledger) as model:
        after = [answer(model, text) for text in prompts]
    head = f"node {place.node}: {len(ledger)} MKVs in its ledger, model {bench.model.name}\n"
    shown = zip(prompts, before, after, strict=True)
    return head + "".join(_side_by_side(*row) for row in shown)


def _own(place: Place, index: Mapping[str, Any]) -> list[EditRequest]:
    """Some requests of the node that its ledger fulfils."""
    fulfilled = {id_ for row in index["entries"] for id_ in row["requests"]}
    data = place.data()
    if data is None:
        raise FedEditError(f"node {place.node}: its requests are not known here; say what to ask")
    return [request for request in data.read() if request.id in fulfilled][:_OWN_FACTS]


@torch.no_grad()
def answer(model: EditableModel, prompt: str) -> Answer:
    """Continue a prompt greedily.

    Args:
        model: the model, edited or not.
        prompt: the text.
    """
    encoded = model.tokenizer(prompt, return_tensors="pt").to(model.device)
    if not encoded["input_ids"].shape[1]:
        raise FedEditError("the prompt is empty")
    written = model.model.generate(
        encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        max_new_tokens=_NEW_TOKENS,
        do_sample=False,
        pad_token_id=model.pad_token_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = written.logits[0][0].float().softmax(-1).topk(_TOP)
    top = [
        (model.tokenizer.decode([token]), float(probability))
        for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    new = written.sequences[0, encoded["input_ids"].shape[1] :]
    return Answer(model.tokenizer.decode(new, skip_special_tokens=True), top)


def _side_by_side(prompt: str, before: Answer, after: Answer) -> str:
    left, right = (textwrap.wrap(" ".join(a.text.split()), _WIDTH) for a in (before, after))
    lines = [f"\n{prompt} ...", f"  {'before':{_WIDTH}}  after"]
    for first, second in itertools.zip_longest(left, right, fillvalue=""):
        lines.append(f"  {first:{_WIDTH}}  {second}".rstrip())
    lines.append("")
    for (token, p), (new_token, new_p) in zip(before.top, after.top, strict=True):
        first = f"{p:6.1%} {token!r}"
        lines.append(f"  {first:{_WIDTH}}  {new_p:6.1%} {new_token!r}")
    return "\n".join(lines) + "\n"
