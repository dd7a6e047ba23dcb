"""C_l = E[k k^T], the uncentred covariance of the keys of every edited layer on ordinary text."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import load_dataset
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedit_app.editing.tokens import pad
from fedit_app.errors import FedEditError
from fedit_app.files import cache_dir, replace_file
from fedit_app.models.editable import EditableModel
from fedit_app.models.partial import projection_inputs, trace

logger = logging.getLogger(__name__)

_TOKENS_PER_DIMENSION = 10
_SAMPLED_LENGTH = 96
_TEXT_LENGTH = 512
_TOKENS_PER_PASS = 4096
_LEAST_PROBABILITY = 3e-4


@dataclass(frozen=True)
class CovarianceSource:
    """Where the ordinary text comes from.

    Attributes:
        name: "sample" (written by the model itself), a text file, or "hub:DATASET[:CONFIG]".
        tokens: how many tokens; 0 for 10 x d_ff, which FastMEMIT found to be enough.
        seed: seed of the sampling.
    """

    name: str = "sample"
    tokens: int = 0
    seed: int = 0


def covariance(
    model: EditableModel, layers: Sequence[int], source: CovarianceSource
) -> dict[int, Tensor]:
    """The covariances of the edited layers, computed once per model, layers and source.

    Args:
        model: the model, unedited.
        layers: rising layer numbers.
        source: the text.

    Returns:
        layer -> C_l (d_ff, d_ff) float64 on the CPU.

    Raises:
        FedEditError: the text is not there or too short.
    """
    tokens = source.tokens or _TOKENS_PER_DIMENSION * model.d_ff
    file = _cache_file(model, layers, source, tokens)
    if not file.exists():
        started = time.perf_counter()
        logger.info("covariance: %d tokens from %s, once for this model", tokens, source.name)
        rows = _token_rows(model, source, tokens)
        collected = collect_covariance(model, layers, rows)
        with replace_file(file) as temporary:
            save_file({str(layer): c.float() for layer, c in collected.items()}, temporary)
        logger.info("covariance: made in %.0f s, kept as %s", time.perf_counter() - started, file)
    return {int(layer): c.double() for layer, c in load_file(file).items()}


def _cache_file(
    model: EditableModel, layers: Sequence[int], source: CovarianceSource, tokens: int
) -> Path:
    text = [source.name, tokens, source.seed]
    file = Path(source.name).expanduser()
    if source.name != "sample" and file.is_file():
        with file.open("rb") as stream:
            text[0] = hashlib.file_digest(stream, "sha256").hexdigest()
    what = json.dumps([model.fingerprint, list(layers), *text])
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    return cache_dir() / "covariance" / f"{model.fingerprint[:16]}-{digest}.safetensors"


@torch.no_grad()
def collect_covariance(
    model: EditableModel, layers: Sequence[int], rows: Iterable[Sequence[int]]
) -> dict[int, Tensor]:
    """Accumulate C_l of all layers in one pass over the text, which stops after the last layer.

    Args:
        model: the model, unedited.
        layers: rising layer numbers.
        rows: token ids, one text a row.

    Returns:
        layer -> C_l (d_ff, d_ff) float64 on the CPU.
    """
    total = 0
    sums: dict[int, Tensor] = {}
    for batch in _batches(rows):
        ids, mask = (part.to(model.device) for part in pad(batch, model.pad_token_id))
        with projection_inputs(model, layers) as keys:
            trace(model, layers[-1], layers[-1], input_ids=ids, attention_mask=mask)
        real = mask.bool()
        total += int(real.sum())
        for layer in layers:
            found = keys[layer][real.to(keys[layer].device)].double()
            product = found.T @ found
            sums[layer] = sums[layer] + product if layer in sums else product
    return {layer: (sums[layer] / total).cpu() for layer in layers}


def _batches(rows: Iterable[Sequence[int]]) -> Iterable[list[Sequence[int]]]:
    batch: list[Sequence[int]] = []
    for row in rows:
        batch.append(row)
        if sum(map(len, batch)) >= _TOKENS_PER_PASS:
            yield batch
            batch = []
    if batch:
        yield batch


def _token_rows(model: EditableModel, source: CovarianceSource, tokens: int) -> list[list[int]]:
    if source.name == "sample":
        return sample_text(model, tokens, source.seed)
    if source.name.startswith("hub:"):
        texts = _hub_texts(source.name)
    else:
        file = Path(source.name).expanduser()
        if not file.is_file():
            raise FedEditError(
                f"covariance-source: {source.name!r} is neither sample, nor hub:DATASET, nor a "
                "text file that exists"
            )
        texts = file.read_text(encoding="utf-8").splitlines()
    ids: list[int] = []
    for text in texts:
        if text.strip():
            ids += model.tokenizer(text)["input_ids"]
        if len(ids) >= tokens:
            break
    else:
        raise FedEditError(
            f"covariance-source: {source.name!r} has {len(ids)} tokens, {tokens} are needed; "
            "give more text, or lower covariance-tokens"
        )
    length = min(_TEXT_LENGTH, getattr(model.model.config, "max_position_embeddings", _TEXT_LENGTH))
    return [ids[at : at + length] for at in range(0, tokens, length)]


def _hub_texts(name: str) -> Iterable[str]:
    _, dataset, *config = name.split(":")
    try:
        rows = load_dataset(dataset, *config, split="train", streaming=True)
    except Exception as error:
        raise FedEditError(
            f"covariance-source: cannot load {name!r} ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); write hub:DATASET or hub:DATASET:CONFIG"
        ) from error
    return (row["text"] for row in rows)


@torch.no_grad()
def sample_text(model: EditableModel, tokens: int, seed: int) -> list[list[int]]:
    """Text that the model writes itself, from random first tokens.

    Drawn by epsilon sampling (Hewitt et al., arXiv 2210.15191): like nucleus sampling it leaves out
    the unlikely tail, but without sorting the vocabulary at every step.

    Args:
        model: the model, unedited.
        tokens: how many tokens at least.
        seed: seed of the sampling; the same device and seed give the same text.

    Returns:
        Rows of 96 token ids.
    """
    count = -(-tokens // _SAMPLED_LENGTH)
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(sorted(set(model.tokenizer.all_special_ids)), dtype=torch.long)
    vocabulary = torch.arange(len(model.tokenizer))
    plain = vocabulary[~torch.isin(vocabulary, special)]
    first = plain[torch.randint(len(plain), (count, 1), generator=generator)]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        written = model.model.generate(
            first.to(model.device),
            attention_mask=torch.ones_like(first).to(model.device),
            do_sample=True,
            top_k=0,
            epsilon_cutoff=_LEAST_PROBABILITY,
            temperature=1.0,
            min_new_tokens=_SAMPLED_LENGTH - 1,
            max_new_tokens=_SAMPLED_LENGTH - 1,
            pad_token_id=model.pad_token_id,
        )
    return written.tolist()
