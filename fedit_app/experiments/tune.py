"""`fedit tune`: edit settings for a model, searched on a small set and written as a preset."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedit_app.config.run_config import RunConfig
from fedit_app.editing.covariance import CovarianceSource, statistics_files
from fedit_app.editing.settings import EditSettings, run_settings
from fedit_app.editing.statistics import is_statistics_name, open_statistics
from fedit_app.editing.workbench import workbench_for
from fedit_app.experiments.search import DEFAULT_GRID, Grid, search, windows
from fedit_app.experiments.trials import Examiner, best_of
from fedit_app.experiments.tune_report import preset_text, preset_values, trial_line, trial_table
from fedit_app.experiments.tune_requests import requests_for
from fedit_app.models.checkpoint import check_checkpoint
from fedit_app.models.loading import read_device_map, resolve_device, resolve_model
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_file
from fedit_app.support.tables import Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """Outcome of a search.

    Attributes:
        candidates: a row per candidate, in the order in which they were tried.
        best: the candidate whose settings the preset has, in one line.
        start: the candidate that the search started from, in one line.
    """

    candidates: Table
    best: str
    start: str


def tune(
    config: RunConfig,
    output: Path,
    data: Path | None = None,
    count: int = 24,
    grid: Grid = DEFAULT_GRID,
) -> Tuned:
    """Search weights, layers and step size for a model and an editor, and write the best.

    The search starts from the settings of the run configuration. Every candidate edits all requests
    in one batch and is scored; see `trials.best_of` for what counts as better.

    Args:
        config: names model, editor, text of the covariance, device and seed; also the data, if no
            file is given.
        output: the preset to write, a TOML file that does not exist yet.
        data: edit requests as JSON lines, or CounterFact records.
        count: how many requests to edit.
        grid: what is tried.

    Raises:
        FedEditError: the configuration, the data or the file cannot be used.
    """
    _check_output(output)
    requests = requests_for(config, data, count)
    start, spans = _choices(config, grid)
    layers = _all_layers(start, spans)
    bench = workbench_for(config)
    bench.model.require_editable(layers)
    source = CovarianceSource(config.covariance_source, config.covariance_tokens, config.seed)
    files = statistics_files(bench.model, layers, source)
    if not any(
        request.neighborhood_prompts and (request.target_true or request.neighborhood_targets)
        for request in requests
    ):
        logger.warning(
            "tune: no request has neighborhood prompts with their right answers, so the score does "
            "not show what an edit damages; among equal scores the smallest change of weights wins"
        )
    trials = search(Examiner(bench, requests, files), start, spans, grid)
    best = best_of(trials)
    if best.merit <= 0:
        logger.warning("tune: no candidate has a score above 0; the preset edits poorly")
    text = preset_text(
        preset_values(config, best),
        best,
        trials[0],
        _data_name(config, data),
        len(requests),
        _device_name(bench.model.device),
    )
    write_file(output, text)
    return Tuned(trial_table(trials), trial_line(best), trial_line(trials[0]))


def _check_output(output: Path) -> None:
    if output.exists():
        raise FedEditError(f"--output {output}: already exists; name another file, or move it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FedEditError(
            f"--output {output}: its folder cannot be created ({error.strerror}); name another"
        ) from None
    if not os.access(output.parent, os.W_OK):
        raise FedEditError(f"--output {output}: its folder is not writable; name another")


def _choices(config: RunConfig, grid: Grid) -> tuple[EditSettings, list[tuple[int, ...]]]:
    """The first settings and the choices of layers; reads the model's shape, not its weights."""
    resolve_device(config.device)
    read_device_map(config.device_map, config.device)
    shape = check_checkpoint(resolve_model(config.model), config.module_names)
    start = run_settings(config, shape.model_type, shape.n_layers, shape.d_model)
    spans = windows(shape.n_layers, len(start.layers), grid.depths)
    if is_statistics_name(config.covariance_source):
        open_statistics(Path(config.covariance_source)).require_layers(_all_layers(start, spans))
    return start, spans


def _all_layers(start: EditSettings, spans: Sequence[tuple[int, ...]]) -> list[int]:
    return sorted({layer for span in (start.layers, *spans) for layer in span})


def _data_name(config: RunConfig, data: Path | None) -> str:
    if data is not None:
        return data.name
    return "the demo" if config.dataset == "demo" else Path(str(config.data_path)).name


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
