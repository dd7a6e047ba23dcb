"""Which node edits which requests in which slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedit_app.config import ConfigValue, RunConfig
from fedit_app.data.dealing import deal_at_random, node_names
from fedit_app.data.jsonl import read_requests
from fedit_app.editing.requests import EditRequest
from fedit_app.errors import FedEditError

_DEMO = Path(__file__).parent / "demo"


@dataclass(frozen=True)
class NodeData:
    """A node's name and where its edit requests come from.

    Attributes:
        name: the node's name, by which everybody knows it.
        file: its file of requests.
        share: (k, n) if the node gets the k-th of n shuffled parts of the file; None: all of it.
    """

    name: str
    file: Path
    share: tuple[int, int] | None = None

    def read(self, seed: int) -> list[EditRequest]:
        """The node's requests.

        Args:
            seed: seed of the shuffle, if the node gets a share.

        Raises:
            FedEditError: see `read_requests`; or there are fewer requests than nodes.
        """
        requests = read_requests(self.file)
        if self.share is None:
            return requests
        number, count = self.share
        return list(deal_at_random(requests, count, seed).values())[number]


def simulated_nodes(config: RunConfig, count: int) -> list[NodeData]:
    """The data of every virtual node, in the order of their partition ids.

    Args:
        config: the run configuration.
        count: number of virtual nodes.

    Raises:
        FedEditError: the data path does not fit the partition, or has too few files.
    """
    path = _DEMO if config.dataset == "demo" else Path(config.data_path).expanduser()
    if not path.exists():
        raise FedEditError(f"data-path: {path} does not exist")
    if config.partition == "random":
        if path.is_dir():
            raise FedEditError(f"data-path: {path} is a folder; partition = random needs one file")
        return [
            NodeData(name, path, (number, count)) for number, name in enumerate(node_names(count))
        ]
    files = available_files(path)
    if len(files) < count:
        raise FedEditError(
            f"data-path: {path} has {len(files)} *.jsonl files, too few for {count} nodes; start "
            f"{len(files)} nodes, or use partition = random with one file"
        )
    return [NodeData(file.stem, file) for file in files[:count]]


def available_files(path: Path) -> list[Path]:
    """The data files of a folder in the order of their names; of a file, itself."""
    return sorted(path.glob("*.jsonl")) if path.is_dir() else [path]


def default_node_count(config: RunConfig) -> int:
    """How many nodes a simulation has if the user does not say: one per data file, else four."""
    if config.dataset == "jsonl" and config.partition == "random":
        return 4
    path = _DEMO if config.dataset == "demo" else Path(config.data_path).expanduser()
    return max(1, len(available_files(path)))


def own_data(config: RunConfig, node_config: Mapping[str, ConfigValue]) -> NodeData:
    """The data of the node that runs this.

    Args:
        config: the run configuration.
        node_config: Flower's node configuration: partition-id and num-partitions in a simulation,
            name and data-path on a real node.

    Raises:
        FedEditError: a real node without name or data path; see `simulated_nodes`.
    """
    if is_simulated(node_config):
        count = int(node_config["num-partitions"])
        return simulated_nodes(config, count)[int(node_config["partition-id"])]
    missing = [key for key in ("name", "data-path") if not node_config.get(key)]
    if missing:
        raise FedEditError(
            f"node config: {' and '.join(missing)} missing; start the SuperNode with --node-config "
            '\'name="NAME" data-path="/path/to/requests.jsonl"\''
        )
    return NodeData(str(node_config["name"]), Path(str(node_config["data-path"])).expanduser())


def is_simulated(node_config: Mapping[str, ConfigValue]) -> bool:
    """Whether Flower runs this node in its simulation engine."""
    return "partition-id" in node_config and "num-partitions" in node_config
