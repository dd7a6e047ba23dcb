"""How Flower's node configuration changes a run's: what belongs to the node is the node's."""

from __future__ import annotations

from collections.abc import Mapping

from fedit_app.config.run_config import ConfigValue

# Keys that a node's own configuration gives instead of the run's.
NODE_KEYS = ("model", "data-path", "state-dir", "work-cache", "device", "dtype", "device-map")


def node_run_config(
    run_config: Mapping[str, ConfigValue], node_config: Mapping[str, ConfigValue]
) -> dict[str, ConfigValue]:
    """The run configuration as it holds on one node: what belongs to the node is the node's.

    Model, data, state folder, device and precision are the node's own affair: the fingerprint
    makes sure that all nodes have the same weights, wherever they lie. A work-cache outlives the
    run, so a node has one only if it says so itself.

    Args:
        run_config: Flower's run configuration.
        node_config: Flower's node configuration; in a simulation it changes nothing.
    """
    merged = dict(run_config)
    if is_simulated(node_config):
        return merged
    own = {name: node_config[name] for name in NODE_KEYS if node_config.get(name)}
    if "data-path" in own:
        merged |= {"dataset": "jsonl", "partition": "file"}
    if "device" in own or "device-map" in own:
        merged |= {"device": "auto", "device-map": ""}
    return merged | {"work-cache": ""} | own


def is_simulated(node_config: Mapping[str, ConfigValue]) -> bool:
    """Whether Flower runs this node in its simulation engine."""
    return "partition-id" in node_config and "num-partitions" in node_config
