"""Checks of a run before it starts."""

from __future__ import annotations

import logging
from pathlib import Path

from fedit_app.config.run_config import RunConfig
from fedit_app.editing.editors import editor_named
from fedit_app.editing.settings import run_settings
from fedit_app.editing.statistics import is_statistics_name, open_statistics
from fedit_app.facts.partition import (
    check_partition,
    default_node_count,
    is_dealt_out,
    simulated_nodes,
)
from fedit_app.flower_compat.connection import SuperLink
from fedit_app.flower_compat.registry import ONLINE, registered_nodes
from fedit_app.models.checkpoint import check_checkpoint
from fedit_app.models.embedding import resolve_embedding_model
from fedit_app.models.loading import read_device_map, resolve_device, resolve_model
from fedit_app.server.record import resumable_results
from fedit_app.server.strategies import strategy_named
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)


def check_simulation(config: RunConfig, nodes: int | None, app: Path | None = None) -> int:
    """Check a run configuration against data, model and device, without loading the model.

    A node whose data file is invalid will be left out of the run; a warning names it.

    Args:
        config: the run configuration.
        nodes: how many virtual nodes the user wants; None for one per data file, or for those of
            the run to be resumed.
        app: folder of an app with code of its own, which may know other strategies and editors;
            None: it has the code that is running here.

    Returns:
        The number of virtual nodes.

    Raises:
        FedEditError: what is wrong, and what would be right.
    """
    _check_names(config, nodes, app)
    resolve_device(config.device)
    read_device_map(config.device_map, config.device)
    nodes = nodes or _check_output(config)
    _check_source(config.covariance_source)
    count = _check_data(config, nodes)
    _check_layers(config)
    return count


def check_deployment(
    config: RunConfig,
    superlink: SuperLink,
    nodes: int | None,
    here: bool,
    app: Path | None = None,
) -> None:
    """Check what can be checked of a run on real nodes from the server's side.

    Model, data and device are the nodes' own. They are checked there (`fedit doctor`), and the run
    leaves out a node with an error and names it.

    Args:
        config: the run configuration.
        superlink: the server that will run it.
        nodes: how many nodes must be online; None for at least one.
        here: whether the run folder will be on this machine.
        app: see `check_simulation`.

    Raises:
        FedEditError: what is wrong, and what would be right.
    """
    _check_names(config, nodes, app)
    if config.strategy == "central":
        raise FedEditError(
            "run config: strategy = central needs everybody's data and runs in simulation only"
        )
    if here:
        _check_output(config)
    found = registered_nodes(superlink)
    online = [node.name for node in found if node.status == ONLINE]
    offline = [node.name for node in found if node.status != ONLINE]
    if offline:
        logger.warning("not in this run, as they are not online: %s", ", ".join(offline))
    if len(online) < (nodes or 1):
        raise FedEditError(
            f"--nodes: {nodes or 1} must be online; online: {', '.join(online) or 'none'}, "
            f"offline: {', '.join(offline) or 'none'}; start them with fedit node start"
        )


def _check_names(config: RunConfig, nodes: int | None, app: Path | None) -> None:
    try:
        strategy_named(config.strategy)
        editor_named(config.editor)
    except FedEditError as error:
        if app is None:
            raise
        logger.warning(
            "the app in %s has code of its own, and its run will tell whether it knows what the "
            "FedEdit of this command does not: %s",
            *(app, error),
        )
    if nodes is not None and nodes < 1:
        raise FedEditError(f"--nodes {nodes} must be at least 1")


def _check_output(config: RunConfig) -> int | None:
    """The number of nodes of the run to be resumed; None for a new run."""
    folder = Path(config.output_dir or "")
    if config.resume and (folder / "results.json").exists():
        return resumable_results(config, folder).connected
    begun = config.resume and (folder / "config.toml").exists()
    if not begun and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FedEditError(f"output-dir: {folder} exists and is not an empty folder; name another")
    return None


def _check_source(source: str) -> None:
    if source != "sample" and not source.startswith("hub:") and not Path(source).is_file():
        raise FedEditError(
            f"covariance-source: {source!r} is neither sample, nor hub:DATASET, nor a text or "
            "statistics file that exists"
        )


def _check_data(config: RunConfig, nodes: int | None) -> int:
    count = nodes or default_node_count(config)
    if is_dealt_out(config):
        if check_partition(config, count) and config.embedding_model:
            resolve_embedding_model(config.embedding_model)
        return count
    problems = []
    for node in simulated_nodes(config, count, Path(config.output_dir or "")):
        try:
            node.slots(config)
        except FedEditError as error:
            problems.append(str(error))
            logger.warning("node %s will be left out: %s", node.name, error)
    if len(problems) == count:
        raise FedEditError(problems[0])
    return count


def _check_layers(config: RunConfig) -> None:
    shape = check_checkpoint(resolve_model(config.model), config.module_names)
    settings = run_settings(config, shape.model_type, shape.n_layers, shape.d_model)
    if is_statistics_name(config.covariance_source):
        open_statistics(Path(config.covariance_source)).require_layers(settings.layers)
