"""The ordinary text for the covariance, as rows of token ids."""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedit_app.editing.statistics import DELETE, write_tensors
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError
from fedit_app.support.hub import PREFIX, load_rows

logger = logging.getLogger(__name__)

SAMPLE = "sample"
_SAMPLED_LENGTH = 96
_TEXT_LENGTH = 512
_LEAST_PROBABILITY = 3e-4
_TIMED_STEPS = 4
# Upper limit of the key/value cache of a batch in generation. A constant and not a share of the
# free memory, because the sampled text depends on the batch size.
_SAMPLING_BYTES = 4 * 2**30


@dataclass(frozen=True)
class CovarianceSource:
    """The source of the ordinary text.

    Attributes:
        name: "sample" (text that the model generates), a text file, "hub:DATASET[:CONFIG[:SPLIT]]"
            (column text), or, instead of text, a `.safetensors` file of finished statistics.
        tokens: number of tokens; None for 10 x d_ff, which FastMEMIT found to be enough.
        seed: seed of the sampling.
    """

    name: str = SAMPLE
    tokens: int | None = None
    seed: int = 0

    def label(self) -> str:
        """The text's name in files: "sample", "hub:...", or the digest of a text file.

        Raises:
            FedEditError: the text file does not exist.
        """
        if self.name == SAMPLE or self.name.startswith(PREFIX):
            return self.name
        with _text_file(self.name).open("rb") as stream:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def token_rows(model: EditableModel, source: CovarianceSource, tokens: int) -> list[list[int]]:
    """The text of a source as token rows.

    Args:
        model: the model, unedited.
        source: the text.
        tokens: least number of tokens; the last row is not truncated.

    Raises:
        FedEditError: the text does not exist, cannot be read or is too short.
    """
    if source.name == SAMPLE:
        return sample_text(model, tokens, source.seed)
    ids: list[int] = []
    for text in _texts(source.name):
        if text.strip():
            ids += model.tokenizer(text)["input_ids"]
        if len(ids) >= tokens:
            break
    else:
        raise FedEditError(
            f"covariance-source: {source.name!r} has {len(ids)} tokens, {tokens} are needed; "
            "give a longer text, or lower covariance-tokens"
        )
    length = _row_length(model, _TEXT_LENGTH)
    return [ids[at : at + length] for at in range(0, tokens, length)]


@torch.no_grad()
def sample_text(model: EditableModel, tokens: int, seed: int) -> list[list[int]]:
    """Text that the model generates from random first tokens.

    By epsilon sampling (Hewitt et al., arXiv 2210.15191), which drops the unlikely tail like
    nucleus sampling, but does not sort the vocabulary at every step.

    Args:
        model: the model, unedited.
        tokens: least number of tokens.
        seed: seed of the sampling; the same device and seed give the same text.

    Returns:
        Rows of 96 token ids.
    """
    length = _row_length(model, _SAMPLED_LENGTH)
    count = -(-tokens // length)
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(sorted(set(model.tokenizer.all_special_ids)), dtype=torch.long)
    vocabulary = torch.arange(len(model.tokenizer))
    plain = vocabulary[~torch.isin(vocabulary, special)]
    first = plain[torch.randint(len(plain), (count, 1), generator=generator)]
    devices = [model.device] if model.device.type == "cuda" else []
    rows: list[list[int]] = []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for start in first.split(_rows_at_once(model, length)):
            rows += _sampled(model, start, length - 1).tolist()
            if len(rows) < count:
                logger.info("text: sampled %d of %d tokens", len(rows) * length, count * length)
    return rows


def _sampled(model: EditableModel, start: Tensor, new_tokens: int) -> Tensor:
    """(rows, 1 + new_tokens) ids after first tokens (rows, 1)."""
    written: Tensor = model.model.generate(
        start.to(model.device),
        attention_mask=torch.ones_like(start).to(model.device),
        do_sample=True,
        epsilon_cutoff=_LEAST_PROBABILITY,
        # Overrides the checkpoint's generation_config.json, which is meant for chat.
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        repetition_penalty=1.0,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=model.pad_token_id,
    )
    return written


@torch.no_grad()
def sampling_seconds(model: EditableModel, tokens: int) -> float:
    """About how long `sample_text` takes, from a few steps of it.

    Args:
        model: the model, unedited.
        tokens: number of tokens.
    """
    length = _row_length(model, _SAMPLED_LENGTH)
    rows = min(_rows_at_once(model, length), -(-tokens // length))
    start = torch.zeros((rows, 1), dtype=torch.long)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        _sampled(model, start, 1)
        began = time.perf_counter()
        _sampled(model, start, 1 + _TIMED_STEPS)
    return (time.perf_counter() - began) / (1 + _TIMED_STEPS) / rows * tokens


def write_rows(file: Path, rows: Sequence[Sequence[int]]) -> None:
    """Write token rows to a file: `tokens` (all ids) and `lengths` (per row), both int32."""
    ids = torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.int32)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    write_tensors(file, {"tokens": ids, "lengths": lengths}, {})


def read_rows(file: Path) -> list[list[int]]:
    """Read token rows from a file of `write_rows`; raises FedEditError if it is damaged."""
    try:
        kept = load_file(file)
        return [row.tolist() for row in kept["tokens"].split(kept["lengths"].tolist())]
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise FedEditError(f"{file}: damaged token rows ({error}); {DELETE}") from None


def _row_length(model: EditableModel, longest: int) -> int:
    positions: int = getattr(model.model.config, "max_position_embeddings", longest)
    return min(longest, positions)


def _rows_at_once(model: EditableModel, length: int) -> int:
    """Number of rows whose keys and values fit; an upper bound for grouped-query models."""
    per_token: int = 2 * model.n_layers * model.d_model * model.model.dtype.itemsize
    return max(1, _SAMPLING_BYTES // (per_token * length))


def _text_file(name: str) -> Path:
    file = Path(name).expanduser()
    if not file.is_file():
        raise FedEditError(
            f"covariance-source: {name!r} is neither sample, nor hub:DATASET, nor an existing text "
            "or statistics file"
        )
    return file


def _texts(name: str) -> Iterable[str]:
    if name.startswith(PREFIX):
        return (row["text"] for row in load_rows("covariance-source", name))
    try:
        return _text_file(name).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FedEditError(
            f"covariance-source: {name!r} is not UTF-8 text (byte {error.start}); "
            "give a plain text file"
        ) from None
