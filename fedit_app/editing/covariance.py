"""C_l = E[k k^T], the uncentred covariance of the keys of every edited layer on ordinary text.

Computed once per machine. The cache has one folder per model, text, number of tokens and seed, with
the text as token rows and one file per layer:

    covariance/MODEL-DIGEST/tokens.safetensors
                            layer-4.safetensors, layer-5.safetensors, ...
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from fedit_app.editing.corpus import (
    SAMPLE,
    CovarianceSource,
    read_rows,
    sample_text,
    token_rows,
    write_rows,
)
from fedit_app.editing.statistics import (
    DELETE,
    Origin,
    StatisticsFile,
    is_statistics_name,
    open_statistics,
    write_statistics,
)
from fedit_app.models.editable import EditableModel
from fedit_app.models.partial import projection_inputs, trace
from fedit_app.models.tokens import pad
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import cache_dir

__all__ = [
    "CovarianceSource",
    "collect_covariance",
    "covariance",
    "load_into_cache",
    "missing_layers",
    "origin_of",
    "sample_text",
    "statistics_files",
]

logger = logging.getLogger(__name__)

_TOKENS_PER_DIMENSION = 10
_TOKENS_PER_PASS = 4096


@dataclass(frozen=True)
class Covariances(Mapping[int, Tensor]):
    """layer -> C_l (d_ff, d_ff) float64 on the CPU, read each time that it is asked for.

    Attributes:
        files: layer -> the file that it is read from.
    """

    files: Mapping[int, StatisticsFile]

    def __getitem__(self, layer: int) -> Tensor:
        return self.files[layer].read(layer).double()

    def __iter__(self) -> Iterator[int]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def covariance(
    model: EditableModel, layers: Sequence[int], source: CovarianceSource
) -> Covariances:
    """The covariances of the edited layers, from the cache or computed and stored there.

    Args:
        model: the model, unedited.
        layers: layer numbers.
        source: the text, or a file of finished statistics.

    Raises:
        FedEditError: see `statistics_files`.
    """
    return Covariances(statistics_files(model, layers, source))


def statistics_files(
    model: EditableModel, layers: Sequence[int], source: CovarianceSource
) -> dict[int, StatisticsFile]:
    """The files with the covariances of some layers; missing ones are made.

    Args:
        model: the model, unedited.
        layers: layer numbers.
        source: the text, or a file of finished statistics.

    Returns:
        layer -> its file.

    Raises:
        FedEditError: the text does not exist or is too short, the statistics file is of another
            model or lacks a layer, or a file of the cache is damaged.
    """
    if is_statistics_name(source.name):
        given = open_statistics(Path(source.name).expanduser())
        given.require_model(model.fingerprint, model.d_ff)
        given.require_layers(layers)
        logger.info("covariance: read from %s (%s)", given.path, given.origin.source)
        return dict.fromkeys(layers, given)
    origin = origin_of(model, source)
    if len(_cached(origin, layers)) < len(layers):
        with _alone(_folder(origin)):
            _make_missing(model, layers, source, origin)
    return _cached(origin, layers)


def missing_layers(
    model: EditableModel, layers: Sequence[int], source: CovarianceSource
) -> list[int]:
    """The layers whose covariances would have to be computed first.

    Raises:
        FedEditError: see `statistics_files`.
    """
    if is_statistics_name(source.name):
        return []
    return sorted(set(layers) - _cached(origin_of(model, source), layers).keys())


def load_into_cache(model: EditableModel, given: StatisticsFile) -> dict[int, StatisticsFile]:
    """Copy the layers of a statistics file into the cache, so that they are not computed.

    Args:
        model: the model.
        given: a file of `fedit stats --save`.

    Returns:
        layer -> its file in the cache.

    Raises:
        FedEditError: the file is damaged or of another model.
    """
    given.require_model(model.fingerprint, model.d_ff)
    for layer, counted in given.counted.items():
        file = _layer_file(given.origin, layer)
        write_statistics(file, given.origin, {layer: counted}, {layer: given.read(layer)})
    return _cached(given.origin, sorted(given.counted))


def origin_of(model: EditableModel, source: CovarianceSource) -> Origin:
    """The origin of the covariances of a model on a text.

    Raises:
        FedEditError: the text file does not exist.
    """
    return Origin(
        model=model.fingerprint,
        source=source.label(),
        tokens=source.tokens or _TOKENS_PER_DIMENSION * model.d_ff,
        seed=source.seed if source.name == SAMPLE else 0,
    )


@torch.no_grad()
def collect_covariance(
    model: EditableModel, layers: Sequence[int], rows: Iterable[Sequence[int]]
) -> dict[int, Tensor]:
    """Compute C_l of all layers in one pass over the text, which stops after the last layer.

    Args:
        model: the model, unedited.
        layers: layer numbers.
        rows: token ids, one text a row.

    Returns:
        layer -> C_l (d_ff, d_ff) float64 on the CPU.
    """
    rows = list(rows)
    total = sum(map(len, rows))
    last, counted = max(layers), 0
    sums: dict[int, Tensor] = {}
    for batch in _batches(rows):
        ids, mask = (part.to(model.device) for part in pad(batch, model.pad_token_id))
        with projection_inputs(model, layers) as keys:
            trace(model, last, last, {"input_ids": ids, "attention_mask": mask})
        real = mask.bool()
        for layer in layers:
            found = keys[layer][real.to(keys[layer].device)].double()
            if layer in sums:
                sums[layer].addmm_(found.T, found)
            else:
                sums[layer] = found.T @ found
        counted += sum(map(len, batch))
        if counted < total:
            logger.info("covariance: counted %d of %d tokens", counted, total)
    return {layer: (sums[layer] / total).cpu() for layer in layers}


def _batches(rows: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    batch: list[Sequence[int]] = []
    for row in rows:
        batch.append(row)
        if sum(map(len, batch)) >= _TOKENS_PER_PASS:
            yield batch
            batch = []
    if batch:
        yield batch


def _make_missing(
    model: EditableModel, layers: Sequence[int], source: CovarianceSource, origin: Origin
) -> None:
    missing = missing_layers(model, layers, source)
    if not missing:
        return
    started = time.perf_counter()
    shown = ",".join(map(str, missing))
    logger.info(
        "covariance: computing layers %s from %d tokens, %s; once for this model",
        shown,
        origin.tokens,
        source.name,
    )
    tokens = _folder(origin) / "tokens.safetensors"
    if not tokens.exists():
        write_rows(tokens, token_rows(model, source, origin.tokens))
    rows = read_rows(tokens)
    counted = sum(map(len, rows))
    for layer, found in collect_covariance(model, missing, rows).items():
        write_statistics(_layer_file(origin, layer), origin, {layer: counted}, {layer: found})
    seconds = time.perf_counter() - started
    logger.info("covariance: computed in %.0f s, stored in %s", seconds, tokens.parent)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock a folder; other processes wait and then find the work done."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("covariance: waiting for another process that computes it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _folder(origin: Origin) -> Path:
    text = json.dumps(dataclasses.astuple(origin))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache_dir() / "covariance" / f"{origin.model[:16]}-{digest}"


def _layer_file(origin: Origin, layer: int) -> Path:
    return _folder(origin) / f"layer-{layer}.safetensors"


def _cached(origin: Origin, layers: Iterable[int]) -> dict[int, StatisticsFile]:
    """The files of those layers that are in the cache, in the order of `layers`."""
    files = {}
    for layer in layers:
        path = _layer_file(origin, layer)
        if path.exists():
            file = open_statistics(path, DELETE)
            if file.origin != origin or set(file.counted) != {layer}:
                raise FedEditError(f"{path}: its header names another origin or layer; {DELETE}")
            files[layer] = file
    return files
