"""A model that computes next to nothing, and facts for it, where all else is measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fedit_app.models.loading import resolve_model

# The family of the embedded model.
_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "tie_word_embeddings": True,
}
TINY_RUN = {
    "layers": "1-2",
    "contexts": 1,
    "value-steps": 2,
    "covariance-tokens": 1000,
    "covariance-weight": 1.0,
    "requests-per-slot": 1,
}
_TARGETS = ("Basel", "London", "Paris", "Vienna", "Rome")


def tiny_model(tokenizer_of: str, folder: Path) -> Path:
    """A model that computes next to nothing, with a model's tokenizer, in a new folder."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(tokenizer_of))
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **_TINY)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def requests(folder: Path, name: str, count: int) -> Path:
    """A file with so many requests of a node."""
    fact = {"prompt": "{} was born in", "target_new": "Basel"}
    lines = [
        json.dumps({"id": f"fact-{i}", "subject": f"Person {i} of {name}", **fact})
        for i in range(count)
    ]
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def distinct_requests(folder: Path, name: str, count: int) -> Path:
    """A file with requests about subjects whose last words differ."""
    lines = []
    for number in range(count):
        word = hashlib.sha256(f"{name} {number}".encode()).hexdigest()[:8]
        target = _TARGETS[number % len(_TARGETS)]
        fact = {"prompt": "{} was born in", "subject": f"Person {word}", "target_new": target}
        lines.append(json.dumps({"id": f"fact-{number}", **fact}))
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file
