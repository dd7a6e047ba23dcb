"""The edit requests of each node in each slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedit_app.config.node_config import is_simulated
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.facts.dealing import by_slot
from fedit_app.facts.overlap import Slots
from fedit_app.facts.partitioning import (
    Embed,
    is_dealt_out,
    no_embeddings,
    partitioned_nodes,
    request_file,
)
from fedit_app.facts.request import EditRequest
from fedit_app.facts.sources import READERS, in_slots, node_files
from fedit_app.support.errors import FedEditError


@dataclass(frozen=True)
class NodeData:
    """A node's name and where its edit requests come from.

    Attributes:
        name: the node's name in the federation.
        file: its file of requests.
        dataset: the file's format, a key of `READERS`.
        slots_given: whether the slots named by the requests take precedence over the run
            configuration.
    """

    name: str
    file: Path
    dataset: str = "jsonl"
    slots_given: bool = False

    def read(self) -> list[EditRequest]:
        """The node's requests.

        Raises:
            FedEditError: the file cannot be read, or a record in it is invalid.
        """
        return READERS[self.dataset](self.file)

    def slots(self, config: RunConfig) -> Slots:
        """The node's requests per slot; requests of later slots are dropped.

        Raises:
            FedEditError: see `read` and `in_slots`.
        """
        if self.slots_given:
            return by_slot(self.read(), config.num_slots, None)
        return in_slots(self.read(), config)


def simulated_nodes(
    config: RunConfig, count: int, run_folder: Path, embed: Embed = no_embeddings
) -> list[NodeData]:
    """The data of every virtual node, in the order of their partition ids.

    Args:
        config: the run configuration.
        count: number of virtual nodes.
        run_folder: folder of the partition, which the first caller writes.
        embed: see `partitioned_nodes`.

    Raises:
        FedEditError: the data is missing, has too few files, or cannot be partitioned.
    """
    if not is_dealt_out(config):
        return [NodeData(file.stem, file, config.dataset) for file in node_files(config, count)]
    names = partitioned_nodes(config, count, run_folder, embed)
    return [NodeData(name, request_file(run_folder, name), slots_given=True) for name in names]


def finished_node(config: RunConfig, run_folder: Path, name: str) -> NodeData | None:
    """The data of a node of an earlier simulation, by name; None if it no longer exists.

    Raises:
        FedEditError: the data path no longer exists.
    """
    if is_dealt_out(config):
        file = request_file(run_folder, name)
        return NodeData(name, file, slots_given=True) if file.exists() else None
    named = {file.stem: NodeData(name, file, config.dataset) for file in node_files(config)}
    return named.get(name)


def default_node_count(config: RunConfig) -> int:
    """The default number of nodes of a simulation: one per data file, otherwise four.

    Raises:
        FedEditError: see `node_files`.
    """
    return len(node_files(config)) if config.partition == "file" else 4


def own_data(
    config: RunConfig,
    node_config: Mapping[str, ConfigValue],
    run_folder: Path,
    embed: Embed = no_embeddings,
) -> NodeData:
    """The data of the node of this process.

    Args:
        config: the run configuration; its `dataset` is also the format of a real node's file.
        node_config: Flower's node configuration: partition-id and num-partitions in a simulation,
            name and data-path on a real node.
        run_folder: the run folder.
        embed: see `partitioned_nodes`.

    Raises:
        FedEditError: a real node without name or data path; see `simulated_nodes`.
    """
    if is_simulated(node_config):
        count = int(node_config["num-partitions"])
        return simulated_nodes(config, count, run_folder, embed)[int(node_config["partition-id"])]
    missing = [key for key in ("name", "data-path") if not node_config.get(key)]
    if missing:
        raise FedEditError(
            f"node config: {' and '.join(missing)} missing; start the SuperNode with --node-config "
            '\'name="NAME" data-path="/path/to/requests.jsonl"\''
        )
    file = Path(str(node_config["data-path"])).expanduser()
    return NodeData(str(node_config["name"]), file, config.dataset)
