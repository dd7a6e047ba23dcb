"""The ordinary text behind the covariance, as rows of token ids."""

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
from transformers.generation.streamers import BaseStreamer

from fedit_app.editing.statistics import DELETE, write_tensors
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError
from fedit_app.support.hub import PREFIX, load_rows

logger = logging.getLogger(__name__)

SAMPLE = "sample"
_SAMPLED_LENGTH = 96
_TEXT_LENGTH = 512
_LEAST_PROBABILITY = 3e-4
# Bounds the key/value cache of a batch that is being written. A constant and not a share of the
# free memory, because the batch size decides which text is drawn.
_SAMPLING_BYTES = 4 * 2**30
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class CovarianceSource:
    """Where the ordinary text comes from.

    Attributes:
        name: "sample" (written by the model itself), a text file, "hub:DATASET[:CONFIG[:SPLIT]]"
            (column text), or instead of text a `.safetensors` file of finished statistics.
        tokens: how many tokens; None for 10 x d_ff, which FastMEMIT found to be enough.
        seed: seed of the sampling.
    """

    name: str = SAMPLE
    tokens: int | None = None
    seed: int = 0

    def label(self) -> str:
        """What stands for the text in files: "sample", "hub:...", or the digest of a text file.

        Raises:
            FedEditError: the text file is not there.
        """
        if self.name == SAMPLE or self.name.startswith(PREFIX):
            return self.name
        with _text_file(self.name).open("rb") as stream:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


class TokenProgress:
    """Says in the log, every ten seconds, how far a long count of tokens is.

    Args:
        doing: what is done with the tokens.
        total: how many there are.
    """

    def __init__(self, doing: str, total: int) -> None:
        self._doing, self._total, self._done = doing, total, 0
        self._started = self._told = time.perf_counter()

    def add(self, tokens: int) -> None:
        """So many more tokens are done."""
        self._done += tokens
        now = time.perf_counter()
        if now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            speed = self._done / max(now - self._started, 1e-9)
            logger.info(
                "covariance: %s %d of %d tokens, %.0f tokens/s",
                self._doing,
                self._done,
                self._total,
                speed,
            )


def token_rows(model: EditableModel, source: CovarianceSource, tokens: int) -> list[list[int]]:
    """The text of a source as token rows.

    Args:
        model: the model, unedited.
        source: the text.
        tokens: how many tokens at least; the last row is not cut short.

    Raises:
        FedEditError: the text is not there, cannot be read or is too short.
    """
    if source.name == SAMPLE:
        return sample_text(model, tokens, source.seed)
    ids: list[int] = []
    progress = TokenProgress("read", tokens)
    for text in _texts(source.name):
        if text.strip():
            new = model.tokenizer(text)["input_ids"]
            ids += new
            progress.add(len(new))
        if len(ids) >= tokens:
            break
    else:
        raise FedEditError(
            f"covariance-source: {source.name!r} has {len(ids)} tokens, {tokens} are needed; "
            "give more text, or lower covariance-tokens"
        )
    length = _row_length(model, _TEXT_LENGTH)
    return [ids[at : at + length] for at in range(0, tokens, length)]


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
    length = _row_length(model, _SAMPLED_LENGTH)
    count = -(-tokens // length)
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(sorted(set(model.tokenizer.all_special_ids)), dtype=torch.long)
    vocabulary = torch.arange(len(model.tokenizer))
    plain = vocabulary[~torch.isin(vocabulary, special)]
    first = plain[torch.randint(len(plain), (count, 1), generator=generator)]
    devices = [model.device] if model.device.type == "cuda" else []
    counter = _Counter(TokenProgress("sampled", count * length))
    rows: list[list[int]] = []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for start in first.split(_rows_at_once(model, length)):
            written = model.model.generate(
                start.to(model.device),
                attention_mask=torch.ones_like(start).to(model.device),
                streamer=counter,
                do_sample=True,
                epsilon_cutoff=_LEAST_PROBABILITY,
                # Not those of the checkpoint's generation_config.json, which are for chatting.
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                repetition_penalty=1.0,
                min_new_tokens=length - 1,
                max_new_tokens=length - 1,
                pad_token_id=model.pad_token_id,
            )
            rows += written.tolist()
    return rows


def write_rows(file: Path, rows: Sequence[Sequence[int]]) -> None:
    """Keep token rows: `tokens` (all ids) and `lengths` (per row), both int32."""
    ids = torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.int32)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    write_tensors(file, {"tokens": ids, "lengths": lengths}, {})


def read_rows(file: Path) -> list[list[int]]:
    """Token rows of a file of `write_rows`.

    Raises:
        FedEditError: the file is damaged.
    """
    try:
        kept = load_file(file)
        return [row.tolist() for row in kept["tokens"].split(kept["lengths"].tolist())]
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise FedEditError(f"{file}: damaged token rows ({error}); {DELETE}") from None


class _Counter(BaseStreamer):
    """Counts the tokens that a model writes."""

    def __init__(self, progress: TokenProgress) -> None:
        self._progress = progress

    def put(self, value: Tensor) -> None:
        self._progress.add(value.numel())

    def end(self) -> None:
        """Nothing is left to be written."""


def _row_length(model: EditableModel, longest: int) -> int:
    positions: int = getattr(model.model.config, "max_position_embeddings", longest)
    return min(longest, positions)


def _rows_at_once(model: EditableModel, length: int) -> int:
    """Rows whose keys and values surely fit; grouped-query models need less than reckoned here."""
    per_token: int = 2 * model.n_layers * model.d_model * model.model.dtype.itemsize
    return max(1, _SAMPLING_BYTES // (per_token * length))


def _text_file(name: str) -> Path:
    file = Path(name).expanduser()
    if not file.is_file():
        raise FedEditError(
            f"covariance-source: {name!r} is neither sample, nor hub:DATASET, nor a text or "
            "statistics file that exists"
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
            "name a plain text file"
        ) from None
