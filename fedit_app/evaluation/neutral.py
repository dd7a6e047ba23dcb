"""What an edit does to ordinary text: divergence from the unedited model, and perplexity.

The text is a file's (benchmarks), or the model's own (runs), which needs no download.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedit_app.editing.corpus import read_rows, sample_text, write_rows
from fedit_app.evaluation.scores import last_states
from fedit_app.models.editable import EditableModel
from fedit_app.models.tokens import pad
from fedit_app.protocol.metrics import Neutral
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import cache_dir

_TOKENS_PER_PASS = 2048
_POSITIONS_PER_PASS = 128
_TOP = 10
_OWN_TOKENS = 384
# Not a seed that runs commonly have: their covariance comes from text that is sampled like this.
_OWN_SEED = 20250222


def own_text(model: EditableModel) -> list[list[int]]:
    """Four rows of 96 tokens that the unedited model has written itself; always the same.

    They are sampled once for a model (`corpus.sample_text`) and kept in the cache.

    Args:
        model: the model, unedited.

    Raises:
        FedEditError: the file in the cache is damaged.
    """
    file = cache_dir() / "neutral" / f"{model.fingerprint[:16]}-{_OWN_TOKENS}.safetensors"
    if not file.exists():
        write_rows(file, sample_text(model, _OWN_TOKENS, _OWN_SEED))
    return read_rows(file)


def neutral_rows(
    model: EditableModel, file: Path, count: int, length: int = 128
) -> list[tuple[int, ...]]:
    """Token rows from the beginning of a text file, for `neutral_scores`.

    Blank lines are left out. Every row begins with the BOS token if the tokenizer adds one, as
    models that were trained with it need it.

    Args:
        model: the model whose tokenizer is used.
        file: UTF-8 text, for example WikiText-2.
        count: how many rows.
        length: tokens a row.

    Raises:
        FedEditError: the file cannot be read or is too short, or the model takes no such rows.
    """
    longest = getattr(model.model.config, "max_position_embeddings", length)
    if not 2 <= length <= longest:
        raise FedEditError(
            f"neutral text: rows of {length} tokens asked for; this model takes 2 to {longest}"
        )
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8: {error.reason}"
        raise FedEditError(f"neutral text: {file} cannot be read ({reason})") from None
    start = model.tokenizer("")["input_ids"][:1]
    start = start if start == [model.tokenizer.bos_token_id] else []
    step = length - len(start)
    ids: list[int] = []
    for line in filter(str.strip, lines):
        if len(ids) >= count * step:
            break
        ids += model.tokenizer(line, add_special_tokens=False)["input_ids"]
    if len(ids) < count * step:
        raise FedEditError(
            f"neutral text: {file} has {len(ids)} tokens, {count} rows of {length} need "
            f"{count * step}; give more text or ask for fewer rows"
        )
    return [tuple(start + ids[at : at + step]) for at in range(0, count * step, step)]


@torch.no_grad()
def neutral_scores(
    model: EditableModel, deltas: Mapping[int, Tensor], rows: Sequence[Sequence[int]]
) -> Neutral:
    """Compare the model with and without an edit on token rows.

    With p_t and q_t the next-token distributions of the unedited and the edited model after the
    tokens before t of a row:

        kl = mean_t sum_v p_t(v) log(p_t(v) / q_t(v)),   perplexity = exp(-mean_t log p_t(x_t))
        top10_overlap = mean_t |top10(p_t) & top10(q_t)| / 10

    The first token of a row has nothing before it and is not predicted. Both models take the rows
    chunk by chunk in turn, with the logits of a bounded number of positions at a time.

    Args:
        model: the model, unedited; it is put back as it was.
        deltas: layer -> Delta_l (d_model, d_ff), the edit.
        rows: token ids, one text a row.

    Raises:
        FedEditError: no row has two tokens, so there is nothing to predict; or the model's
            predictions are not finite.
    """
    tokens = 0
    sums = torch.zeros(4, dtype=torch.float64)  # KL, NLL before, NLL after, overlap
    for chunk in _chunks([tuple(row) for row in rows if len(row) > 1]):
        ids, mask = (part.to(model.device) for part in pad(chunk, model.pad_token_id))
        before = last_states(model, ids, mask)
        with model.edited(deltas):
            after = last_states(model, ids, mask)
        predicted = mask[:, 1:].bool()
        wanted = ids[:, 1:][predicted]
        kept = predicted.to(before.device)
        parts = (before[:, :-1][kept], after[:, :-1][kept], wanted)
        for piece in zip(*(part.split(_POSITIONS_PER_PASS) for part in parts), strict=True):
            sums += _sums(model, *piece)
        tokens += len(wanted)
    if not tokens:
        raise FedEditError("neutral text: no row has two tokens; give longer rows")
    kl, nll_before, nll_after, overlap = sums / tokens
    found = {
        "kl": float(kl),
        "perplexity_before": float(nll_before.exp()),
        "perplexity_after": float(nll_after.exp()),
        "top10_overlap": float(overlap),
    }
    if not all(map(math.isfinite, found.values())):
        raise FedEditError(
            "neutral text: a perplexity or the divergence is not finite; the edit has destroyed "
            "the model: edit with a smaller change of the weights"
        )
    return Neutral(**found, tokens=tokens)


def _sums(model: EditableModel, before: Tensor, after: Tensor, wanted: Tensor) -> Tensor:
    """KL, both NLLs and the overlap of the likeliest tokens, summed over positions.

    Args:
        model: the model whose head is used; edits leave it alone.
        before: (n, d_model) last-layer states of the unedited model.
        after: (n, d_model) those of the edited model.
        wanted: (n,) the tokens that follow.

    Returns:
        (4,) float64 on the CPU.
    """
    log_p, log_q = model.log_probabilities(before), model.log_probabilities(after)
    wanted = wanted.to(log_p.device)[:, None]
    top_p, top_q = (log.topk(_TOP).indices for log in (log_p, log_q))
    shared = (top_p[:, :, None] == top_q[:, None, :]).any(2).double().mean(1)
    values = (
        *(log_p.exp() * (log_p - log_q), -log_p.gather(1, wanted), -log_q.gather(1, wanted)),
        shared,
    )
    return torch.stack([value.sum(dtype=torch.float64) for value in values]).cpu()


def _chunks(rows: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Cut rows into chunks of a bounded number of padded tokens."""
    chunk: list[tuple[int, ...]] = []
    for row in rows:
        longest = max(map(len, (*chunk, row)))
        if chunk and longest * (len(chunk) + 1) > _TOKENS_PER_PASS:
            yield chunk
            chunk = []
        chunk.append(row)
    if chunk:
        yield chunk
