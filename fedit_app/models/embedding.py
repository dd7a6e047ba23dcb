"""Texts as vectors, for the partitions that look for similar ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from fedit_app.config.run_config import RunConfig
from fedit_app.models.checkpoint import first_line
from fedit_app.models.editable import EditableModel
from fedit_app.models.loading import load_model, resolve_device, resolve_model
from fedit_app.models.partial import trace
from fedit_app.models.tokens import pad, token_ids
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

_ROWS_PER_PASS = 64


def embed(config: RunConfig, texts: Sequence[str]) -> np.ndarray:
    """Embeddings of texts by the run configuration's `embedding-model`, or by the edited model.

    Args:
        config: the run configuration.
        texts: n texts.

    Returns:
        (n, width) float32.

    Raises:
        FedEditError: the model cannot be loaded.
    """
    started = time.perf_counter()
    if config.embedding_model:
        found = encoder_embeddings(config.embedding_model, config.device, texts)
    else:
        model = load_model(
            config.model, config.device, config.dtype, config.module_names, config.device_map
        )
        found = mean_hidden_states(model, texts)
    seconds = time.perf_counter() - started
    name = config.embedding_model or config.model
    logger.info("embedded %d texts with %s in %.1f s", len(texts), name, seconds)
    return found


def resolve_embedding_model(name: str) -> Path:
    """The local folder of an embedding model, fetched if it is not there yet.

    Raises:
        FedEditError: no such folder, or the hub does not have or give the model.
    """
    try:
        return resolve_model(name)
    except FedEditError as error:
        raise FedEditError(f"embedding-{error}") from None


@torch.no_grad()
def mean_hidden_states(model: EditableModel, texts: Sequence[str]) -> np.ndarray:
    """Mean over a text's tokens of the states after a third of a causal model's layers.

    Later layers are nearer to the next token than to the text: for 614 CounterFact prompts of 8
    relations, 8 clusters of SmolLM2-135M's states agree with the relations by a normalised mutual
    information of 0.62 after a third of the layers, and of 0.46 after the last.

    Args:
        model: the model, unedited.
        texts: n texts.

    Returns:
        (n, d_model) float32.
    """
    layer = model.n_layers // 3

    def states(ids: Tensor, mask: Tensor) -> Tensor:
        ids, mask = ids.to(model.device), mask.to(model.device)
        return trace(model, layer, layer, {"input_ids": ids, "attention_mask": mask}).hidden

    rows = [token_ids(model, text) for text in texts]
    return _mean_states(rows, states, model.pad_token_id)


@torch.no_grad()
def encoder_embeddings(name: str, device: str, texts: Sequence[str]) -> np.ndarray:
    """Mean over a text's tokens of the last states of a model such as a sentence encoder.

    Args:
        name: a Hugging Face folder or hub id.
        device: as in the run config.
        texts: n texts.

    Returns:
        (n, width) float32.

    Raises:
        FedEditError: the model cannot be loaded.
    """
    folder = resolve_embedding_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    except Exception as error:  # whatever damaged files do in transformers
        raise FedEditError(
            f"embedding-model: {name!r} cannot be loaded ({first_line(error)}); download it again"
        ) from None
    model = model.eval().to(resolve_device(device))

    def states(ids: Tensor, mask: Tensor) -> Tensor:
        ids, mask = ids.to(model.device), mask.to(model.device)
        hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden

    positions = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    longest = min(tokenizer.model_max_length, positions)
    rows = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in texts]
    return _mean_states(rows, states, tokenizer.pad_token_id or 0)


def _mean_states(
    rows: Sequence[list[int]], states: Callable[[Tensor, Tensor], Tensor], pad_id: int
) -> np.ndarray:
    means: dict[int, np.ndarray] = {}
    for chosen in _batches(rows):
        ids, mask = pad([rows[number] for number in chosen], pad_id)
        found = states(ids, mask).float().cpu()
        weights = mask.unsqueeze(-1).float()
        mean = (found * weights).sum(1) / weights.sum(1)
        means |= dict(zip(chosen, mean.numpy(), strict=True))
    return np.stack([means[number] for number in range(len(rows))])


def _batches(rows: Sequence[list[int]]) -> Iterator[list[int]]:
    """Numbers of rows of similar length, a pass each."""
    by_length = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    for start in range(0, len(rows), _ROWS_PER_PASS):
        yield by_length[start : start + _ROWS_PER_PASS]
