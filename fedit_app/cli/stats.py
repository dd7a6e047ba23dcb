"""`fedit stats`: the covariances of a model, made or read, shown, given away and taken over."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedit_app.cli.options import ConfigFile, Overrides, run_config
from fedit_app.cli.output import Format, FormatOption, Part, write
from fedit_app.support.errors import FedEditError
from fedit_app.support.tables import Cell, Shown, Table

if TYPE_CHECKING:
    import torch

    from fedit_app.config.run_config import RunConfig
    from fedit_app.editing.covariance import CovarianceSource
    from fedit_app.editing.statistics import StatisticsFile
    from fedit_app.models.editable import EditableModel

logger = logging.getLogger(__name__)

_COLUMNS = ("layer", "tokens", "d_ff", "trace / d_ff", "largest", "smallest", "condition", "file")


def stats(
    config: ConfigFile = None,
    overrides: Overrides = None,
    layers: Annotated[
        str | None, typer.Option(metavar="3-9", help="Default: the run config's.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write them to a .safetensors file.")
    ] = None,
    load: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Take them from such a file instead of computing them."),
    ] = None,
    form: FormatOption = Format.AUTO,
) -> None:
    """Make, show, give away or take over the covariances of a model."""
    from fedit_app.config.run_config import RunConfig
    from fedit_app.editing.statistics import SUFFIX, open_statistics
    from fedit_app.models.loading import load_model, resolve_device

    values = run_config(config, overrides)
    if layers is not None:
        values["layers"] = layers
    settings = RunConfig.parse(values)
    if save is not None and (save.suffix != SUFFIX or save.is_dir()):
        raise FedEditError(f"--save {save}: name a file that ends in {SUFFIX}")
    given = open_statistics(load) if load is not None else None
    model = load_model(
        settings.model,
        settings.device,
        settings.dtype,
        settings.module_names,
        settings.device_map,
    )
    files = _loaded(model, settings, given) if given else _made(model, settings)
    device = resolve_device(settings.device)
    rows = [_row(layer, file, device) for layer, file in files.items()]
    parts: dict[str, Part] = {"layers": Table(_COLUMNS, rows, code=("file",))}
    if save is not None:
        _save(save, files)
        parts["saved"] = {"saved": str(save)}
    write(parts, form)


def _made(model: EditableModel, config: RunConfig) -> dict[int, StatisticsFile]:
    from fedit_app.editing.covariance import statistics_files
    from fedit_app.editing.settings import run_settings

    settings = run_settings(config, model.model.config.model_type, model.n_layers, model.d_model)
    return statistics_files(model, settings.layers, _source(config))


def _loaded(
    model: EditableModel, config: RunConfig, given: StatisticsFile
) -> dict[int, StatisticsFile]:
    """Put the covariances of a file into the cache; those of the layers that are asked for."""
    from fedit_app.editing.covariance import load_into_cache, origin_of
    from fedit_app.editing.statistics import is_statistics_name

    layers = config.layers or ()
    given.require_layers(layers)
    files = load_into_cache(model, given)
    if (
        is_statistics_name(config.covariance_source)
        or origin_of(model, _source(config)) != given.origin
    ):
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
    from fedit_app.editing.covariance import CovarianceSource

    return CovarianceSource(config.covariance_source, config.covariance_tokens, config.seed)


def _save(path: Path, files: Mapping[int, StatisticsFile]) -> None:
    from fedit_app.editing.statistics import write_statistics

    origin = next(iter(files.values())).origin
    counted = {layer: file.counted[layer] for layer, file in files.items()}
    covariances = {layer: file.read(layer) for layer, file in files.items()}
    write_statistics(path, origin, counted, covariances)


def _row(layer: int, file: StatisticsFile, device: torch.device) -> tuple[Cell, ...]:
    import torch

    values = torch.linalg.eigvalsh(file.read(layer).to(device, torch.float64))
    smallest, largest = float(values[0]), float(values[-1])
    # A matrix of fewer tokens than its width is singular; rounding makes that a little negative.
    condition = largest / smallest if smallest > 0 else None
    return (
        *(layer, file.counted[layer], file.d_ff),
        *(Shown(value, f"{value:.4g}") for value in (float(values.mean()), largest, smallest)),
        Shown(condition, "singular" if condition is None else f"{condition:.4g}"),
        str(file.path),
    )
