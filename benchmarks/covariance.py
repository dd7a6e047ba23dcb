"""The covariance of the keys: writing the text, collecting, and reading it from the cache.

The whole first call is timed, and its two stages by themselves. Plain collects on a few of the same
texts: one at a time, all layers of the model and the logits of all positions, with hooks on the
edited layers and one float64 product per text and layer. A temporary cache is used: the user's
covariances are neither read nor written.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.harness import (
    Figures,
    Measured,
    benchmark,
    count,
    loaded,
    main,
    measure,
    print_figures,
)
from fedit_app.editing.covariance import (
    CovarianceSource,
    collect_covariance,
    covariance,
    origin_of,
    sample_text,
)
from fedit_app.editing.settings import edit_settings
from fedit_app.models.editable import EditableModel

_STAGES = {
    "first_call": "first call: all of it",
    "second_call": "second call: from the cache",
    "sampling": "sampling the text",
    "collecting": "collecting",
    "plain_collecting": "plain collecting",
}
_COLUMNS = {
    "tokens": "tokens",
    "seconds": "seconds",
    "tokens/s": "tokens_per_second",
    "peak MiB": "peak_mib",
}


@benchmark(
    count("--tokens", None, "how many; by default 10 x d_ff"),
    count("--plain-texts", 4, "texts for the reference"),
    data=False,
)
def run(options: argparse.Namespace) -> Figures:
    """Time the stages and the whole, and compare with the plain reference."""
    model = loaded(options)
    layers = edit_settings(model.model.config.model_type, model.n_layers, model.d_model).layers
    source = CovarianceSource(tokens=options.tokens or 0)
    tokens = origin_of(model, source).tokens

    with _own_cache():
        first = measure(lambda: covariance(model, layers, source), model.device)
        second = measure(lambda: covariance(model, layers, source), model.device)
    sampling = measure(lambda: sample_text(model, tokens, source.seed), model.device)
    rows = sampling.result
    collecting = measure(lambda: collect_covariance(model, layers, rows), model.device)
    few = rows[: options.plain_texts]
    plain = measure(lambda: _plain_covariance(model, layers, few), model.device)

    figures = (
        _figures("first_call", first, tokens)
        | _figures("second_call", second, None)
        | _figures("sampling", sampling, _length(rows))
        | _figures("collecting", collecting, _length(rows))
        | _figures("plain_collecting", plain, _length(few))
    )
    speeds = [
        figures[f"covariance/{name}/tokens_per_second"]
        for name in ("collecting", "plain_collecting")
    ]
    figures["covariance/collecting/speedup"] = speeds[0] / speeds[1]
    difference = _difference(collect_covariance(model, layers, few), plain.result)
    figures["covariance/relative_difference"] = difference
    _print(figures, layers)
    return figures


@contextmanager
def _own_cache() -> Iterator[None]:
    """An empty cache folder for the block."""
    users = os.environ.get("FEDIT_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEDIT_CACHE"] = folder
        try:
            yield
        finally:
            if users is None:
                del os.environ["FEDIT_CACHE"]
            else:
                os.environ["FEDIT_CACHE"] = users


@torch.no_grad()
def _plain_covariance(
    model: EditableModel, layers: Sequence[int], rows: Sequence[Sequence[int]]
) -> dict[int, Tensor]:
    """The reference: C_l = sum_texts K K^T / tokens, one full forward pass a text."""
    keys: dict[int, Tensor] = {}
    sums = {layer: torch.zeros(model.d_ff, model.d_ff, dtype=torch.float64) for layer in layers}
    handles = [
        model.mlp_output(layer).register_forward_pre_hook(
            lambda _, inputs, layer=layer: keys.__setitem__(layer, inputs[0])
        )
        for layer in layers
    ]
    try:
        for row in rows:
            model.model(input_ids=torch.tensor([row], device=model.device))
            for layer in layers:
                found = keys[layer].reshape(-1, model.d_ff).double()
                sums[layer] = sums[layer].to(found.device) + found.T @ found
    finally:
        for handle in handles:
            handle.remove()
    return {layer: sums[layer].cpu() / _length(rows) for layer in layers}


def _length(rows: Sequence[Sequence[int]]) -> int:
    return sum(map(len, rows))


def _difference(one: dict[int, Tensor], other: dict[int, Tensor]) -> float:
    """Largest relative difference in norm over the layers."""
    return max(
        float(torch.linalg.norm(one[layer] - other[layer]) / torch.linalg.norm(other[layer]))
        for layer in other
    )


def _figures(name: str, measured: Measured[object], tokens: int | None) -> Figures:
    figures = {"seconds": measured.seconds, "peak_mib": measured.peak_mib}
    if tokens is not None:
        figures |= {"tokens": tokens, "tokens_per_second": tokens / measured.seconds}
    return {f"covariance/{name}/{part}": value for part, value in figures.items()}


def _print(figures: Figures, layers: Sequence[int]) -> None:
    lines = {label: f"covariance/{name}" for name, label in _STAGES.items()}
    print_figures("stage", _COLUMNS, figures, lines)
    print(
        f"\nlayers: {', '.join(map(str, layers))}\n"
        f"collecting, speed-up per token: {figures['covariance/collecting/speedup']:.1f}\n"
        f"relative difference to plain: {figures['covariance/relative_difference']:.1e}"
    )


if __name__ == "__main__":
    main(run)
