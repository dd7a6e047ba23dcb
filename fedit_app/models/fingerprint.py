"""Which model is this: a hash of the stored weights and the tokenizer.

Computed from the files of the checkpoint, tensor by tensor in the order of their names, so that
it depends neither on the folder, nor on how the weights are split over files, nor on the dtype
and device into which a node loads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedit_app.models.checkpoint import weight_files
from fedit_app.support.files import write_json_atomic

_IGNORED_CONFIG = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}


def model_fingerprint(folder: Path, cache_file: Path | None = None) -> str:
    """Hash a checkpoint folder.

    Args:
        folder: Hugging Face folder with config.json, tokenizer.json and safetensors weights. Of
            several files only those count that transformers loads.
        cache_file: JSON file that remembers the result per folder state (path, size, time).

    Returns:
        32 hex digits.

    Raises:
        FedEditError: see `weight_files`.
    """
    weights = weight_files(folder)
    hashed = [*weights, folder / "config.json", folder / "tokenizer.json"]
    state = [
        [file.name, file.stat().st_size, file.stat().st_mtime_ns]
        for file in hashed
        if file.exists()
    ]
    entry = f"{folder.resolve()}:{json.dumps(state)}"
    known = _read_cache(cache_file)
    if entry not in known:
        known[entry] = _hash_folder(folder, weights)
        if cache_file is not None:
            write_json_atomic(cache_file, known)
    return known[entry]


def _read_cache(cache_file: Path | None) -> dict[str, str]:
    if cache_file is None or not cache_file.exists():
        return {}
    known: dict[str, str] = json.loads(cache_file.read_text())
    return known


def memory_fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash a model in memory. The hash is another than that of the folder it was loaded from.

    Args:
        model: the model, unedited.
        tokenizer: its fast tokenizer.

    Returns:
        32 hex digits.
    """
    config = json.loads(model.config.to_json_string(use_diff=False))
    tensors = sorted(model.state_dict().items())
    return _digest(config, tokenizer.backend_tokenizer.to_str().encode(), tensors)


def _hash_folder(folder: Path, weights: list[Path]) -> str:
    config = json.loads((folder / "config.json").read_text())
    tokenizer = folder / "tokenizer.json"
    where = {}
    for file in weights:
        with safe_open(file, "pt") as tensors:
            where.update(dict.fromkeys(tensors.keys(), file))
    return _digest(config, tokenizer.read_bytes() if tokenizer.exists() else None, _stored(where))


def _stored(where: Mapping[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint by name, one at a time in memory."""
    for name in sorted(where):
        with safe_open(where[name], "pt") as tensors:
            yield name, tensors.get_tensor(name)


def _digest(
    config: Mapping[str, Any], tokenizer: bytes | None, tensors: Iterable[tuple[str, Tensor]]
) -> str:
    digest = hashlib.sha256()
    kept = {key: value for key, value in config.items() if key not in _IGNORED_CONFIG}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    if tokenizer is not None:
        digest.update(hashlib.sha256(tokenizer).digest())
    for name, tensor in tensors:
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(dtype=torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
