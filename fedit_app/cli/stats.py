"""The covariances of a model: made or read, shown, given away and taken over."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from fedit_app.config.run_config import RunConfig, parse_layers
from fedit_app.editing.covariance import (
    CovarianceSource,
    load_into_cache,
    origin_of,
    statistics_files,
)
from fedit_app.editing.settings import run_settings
from fedit_app.editing.statistics import (
    SUFFIX,
    StatisticsFile,
    is_statistics_name,
    open_statistics,
    write_statistics,
)
from fedit_app.models.editable import EditableModel
from fedit_app.models.loading import load_model, resolve_device
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

_COLUMNS = ("layer", "tokens", "d_ff", "trace / d_ff", "largest", "smallest", "condition", "file")


def stats(config: RunConfig, save: Path | None = None, load: Path | None = None) -> str:
    """Make or read the covariances of a run configuration.

    Args:
        config: names model, layers, text, device and seed.
        save: `.safetensors` file to write the covariances to, to be given away.
        load: file of `save` whose covariances are put into the cache instead of being computed.

    Returns:
        A Markdown table with a line per layer.

    Raises:
        FedEditError: what is wrong with the configuration or a file, and what would be right.
    """
    if save is not None and (save.suffix != SUFFIX or save.is_dir()):
        raise FedEditError(f"--save {save}: name a file that ends in {SUFFIX}")
    given = open_statistics(load) if load is not None else None
    layers = parse_layers(config.layers) if config.layers else ()
    model = load_model(
        config.model, config.device, config.dtype, config.module_names, config.device_map
    )
    files = _made(model, config) if given is None else _loaded(model, config, layers, given)
    table = _table(files, resolve_device(config.device))
    if save is None:
        return f"{table}\n"
    _save(save, files)
    return f"{table}\n\nsaved: {save}\n"


def _made(model: EditableModel, config: RunConfig) -> dict[int, StatisticsFile]:
    settings = run_settings(config, model.model.config.model_type, model.n_layers, model.d_model)
    return statistics_files(model, settings.layers, _source(config))


def _loaded(
    model: EditableModel, config: RunConfig, layers: tuple[int, ...], given: StatisticsFile
) -> dict[int, StatisticsFile]:
    given.require_layers(layers)
    files = load_into_cache(model, given)
    used = not is_statistics_name(config.covariance_source) and (
        origin_of(model, _source(config)) == given.origin
    )
    if not used:
        logger.warning(
            "%s is of %s, %d tokens, seed %d, and the run config asks for other statistics: runs "
            "will not use it, unless they name the file itself as covariance-source",
            given.path,
            given.origin.source,
            given.origin.tokens,
            given.origin.seed,
        )
    return {layer: files[layer] for layer in layers or files}


def _source(config: RunConfig) -> CovarianceSource:
    return CovarianceSource(config.covariance_source, config.covariance_tokens, config.seed)


def _save(path: Path, files: Mapping[int, StatisticsFile]) -> None:
    origin = next(iter(files.values())).origin
    counted = {layer: file.counted[layer] for layer, file in files.items()}
    covariances = {layer: file.read(layer) for layer, file in files.items()}
    write_statistics(path, origin, counted, covariances)


def _table(files: Mapping[int, StatisticsFile], device: torch.device) -> str:
    lines = [_COLUMNS, ("---:",) * (len(_COLUMNS) - 1) + ("---",)]
    lines += [_row(layer, file, device) for layer, file in files.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(layer: int, file: StatisticsFile, device: torch.device) -> tuple[str, ...]:
    values = torch.linalg.eigvalsh(file.read(layer).to(device, torch.float64))
    smallest, largest = float(values[0]), float(values[-1])
    # A matrix of fewer tokens than its width is singular; rounding makes that a little negative.
    condition = f"{largest / smallest:.4g}" if smallest > 0 else "singular"
    figures = (f"{value:.4g}" for value in (float(values.mean()), largest, smallest))
    whole = (str(layer), str(file.counted[layer]), str(file.d_ff))
    return (*whole, *figures, condition, str(file.path))
