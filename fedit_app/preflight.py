"""Everything that can be found wrong with a simulation before it starts."""

from __future__ import annotations

import logging
from pathlib import Path

from fedit_app.config import RunConfig
from fedit_app.data.partition import default_node_count, simulated_nodes
from fedit_app.data.partitioning import check_partition, is_dealt_out
from fedit_app.editing.editors import editor_named
from fedit_app.editing.settings import run_settings
from fedit_app.editing.statistics import is_statistics_name, open_statistics
from fedit_app.errors import FedEditError
from fedit_app.federation.record import resumable_results
from fedit_app.federation.strategies import strategy_named
from fedit_app.models.loading import (
    model_shape,
    read_device_map,
    resolve_device,
    resolve_model,
)

logger = logging.getLogger(__name__)


def check_simulation(config: RunConfig, nodes: int | None) -> int:
    """Check a run configuration against data, model and device, without loading the model.

    A node whose data file is faulty will be left out of the run; it is warned of here.

    Args:
        config: the run configuration.
        nodes: how many virtual nodes the user wants; None for one per data file, or for as many
            as the run had that is to be resumed.

    Returns:
        The number of virtual nodes.

    Raises:
        FedEditError: what is wrong, and what would be right.
    """
    strategy_named(config.strategy)
    editor_named(config.editor)
    resolve_device(config.device)
    read_device_map(config.device_map, config.device)
    if nodes is not None and nodes < 1:
        raise FedEditError(f"--nodes {nodes} must be at least 1")
    folder = Path(config.output_dir)
    if config.resume and (folder / "results.json").exists():
        nodes = nodes or resumable_results(config, folder)["connected"]
    elif not config.resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FedEditError(f"output-dir: {folder} exists and is not an empty folder; name another")
    _check_source(config.covariance_source)
    count = _check_data(config, nodes)
    _check_layers(config)
    return count


def _check_source(source: str) -> None:
    if source != "sample" and not source.startswith("hub:") and not Path(source).is_file():
        raise FedEditError(
            f"covariance-source: {source!r} is neither sample, nor hub:DATASET, nor a text or "
            "statistics file that exists"
        )


def _check_data(config: RunConfig, nodes: int | None) -> int:
    count = nodes or default_node_count(config)
    if is_dealt_out(config):
        check_partition(config, count)
        return count
    problems = []
    for node in simulated_nodes(config, count, Path(config.output_dir)):
        try:
            node.slots(config)
        except FedEditError as error:
            problems.append(str(error))
            logger.warning("node %s will be left out: %s", node.name, error)
    if len(problems) == count:
        raise FedEditError(problems[0])
    return count


def _check_layers(config: RunConfig) -> None:
    shape = model_shape(resolve_model(config.model), config.module_names)
    settings = run_settings(config, shape.model_type, shape.n_layers, shape.d_model)
    if is_statistics_name(config.covariance_source):
        open_statistics(Path(config.covariance_source)).require_layers(settings.layers)
