"""Which node edits which requests in which slot.

A node has a file of requests. In a simulation that deals out one data set, the first virtual node
computes the partition and stores it in the run folder, and the others read it:
`RUN/requests/NAME.jsonl` are the nodes' requests with their slots; `RUN/partition.json` records
how they were made and holds no text. The folder of requests can be the data of another run.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from fedit_app.config.node_config import is_simulated
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.facts.clusters import spectral_clusters
from fedit_app.facts.dealing import (
    Dealt,
    by_slot,
    deal_at_random,
    deal_by_cluster,
    deal_by_dirichlet,
    deal_by_relation,
    require_enough,
    similar_relations,
    with_similar,
)
from fedit_app.facts.jsonl import write_requests
from fedit_app.facts.overlap import Copy, Overlap, Slots, require_others, with_overlap
from fedit_app.facts.request import EditRequest
from fedit_app.facts.sources import READERS, in_slots, node_files, node_of, read_data, read_of
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import replace_file, write_json_atomic

logger = logging.getLogger(__name__)

Embed = Callable[[RunConfig, Sequence[str]], np.ndarray]
"""(run configuration, n texts) -> their embeddings (n, width); see `models.embedding.embed`."""

# What the partition depends on. The path of the data is not part of it: a run may be moved.
_KEYS = (
    "model",
    "dataset",
    "partition",
    "embedding-model",
    "dirichlet-alpha",
    "num-slots",
    "requests-per-slot",
    "overlap",
    "overlap-clients",
    "overlap-form",
    "overlap-slot",
    "overlap-conflicts",
    "seed",
)


def is_dealt_out(config: RunConfig) -> bool:
    """Whether the nodes of a simulation receive a partition instead of a file each."""
    return config.partition != "file" or config.overlap > 0


def request_file(run_folder: Path, node: str) -> Path:
    """The file of a node's requests in a partition."""
    return run_folder / "requests" / f"{node}.jsonl"


def no_embeddings(config: RunConfig, texts: Sequence[str]) -> np.ndarray:
    """An `Embed` for callers without a model; always raises FedEditError."""
    raise FedEditError(
        f"partition = {config.partition} needs embeddings, and no model is available"
    )


@dataclass(frozen=True)
class NodeData:
    """A node's name and where its edit requests come from.

    Attributes:
        name: the node's name in the federation.
        file: its file of requests.
        dataset: the file's format, a key of `READERS`.
        slots_given: whether the slots named by the requests take precedence over the run
            configuration.
        skip_bad: whether invalid requests are left out.
    """

    name: str
    file: Path
    dataset: str = "jsonl"
    slots_given: bool = False
    skip_bad: bool = False

    def read(self) -> list[EditRequest]:
        """The node's requests.

        Raises:
            FedEditError: the file cannot be read, or a record in it is invalid.
        """
        return READERS[self.dataset](self.file, skip_bad=self.skip_bad)

    def slots(self, config: RunConfig) -> Slots:
        """The node's requests per slot; requests of later slots are dropped.

        Raises:
            FedEditError: see `read` and `in_slots`.
        """
        if self.slots_given:
            return by_slot(self.read(), config.num_slots, None)
        return in_slots(self.read(), config)


def data_in(file: Path, config: RunConfig, name: str = "") -> NodeData:
    """The data of a node in the format of the run configuration.

    Args:
        file: the node's file of requests.
        config: the run configuration.
        name: the node's name; the file's if none is given.
    """
    skip = config.on_bad_request == "skip"
    return NodeData(name or node_of(file), file, config.dataset, skip_bad=skip)


def simulated_nodes(
    config: RunConfig, count: int, run_folder: Path, embed: Embed = no_embeddings
) -> list[NodeData]:
    """The data of every virtual node, in the order of their partition ids.

    Args:
        config: the run configuration.
        count: number of virtual nodes.
        run_folder: folder of the partition, which the first caller writes.
        embed: called if the partition depends on similarities of texts.

    Raises:
        FedEditError: the data is missing, has too few files, or cannot be partitioned.
    """
    if not is_dealt_out(config):
        return [data_in(file, config) for file in node_files(config, count)]
    names = _partitioned_nodes(config, count, run_folder, embed)
    return [NodeData(name, request_file(run_folder, name), slots_given=True) for name in names]


def finished_node(config: RunConfig, run_folder: Path, name: str) -> NodeData | None:
    """The data of a node of an earlier simulation, by name; None if it no longer exists.

    Raises:
        FedEditError: the data path no longer exists.
    """
    if is_dealt_out(config):
        file = request_file(run_folder, name)
        return NodeData(name, file, slots_given=True) if file.exists() else None
    named = {node_of(file): data_in(file, config) for file in node_files(config)}
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
        embed: see `simulated_nodes`.

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
    return data_in(file, config, str(node_config["name"]))


def _partitioned_nodes(config: RunConfig, count: int, run_folder: Path, embed: Embed) -> list[str]:
    """Names of the nodes of a partition, in the order of their partition ids.

    The first caller computes and writes the partition; the others wait and read it.
    """
    index = run_folder / "partition.json"
    if not index.exists():
        run_folder.mkdir(parents=True, exist_ok=True)
        with FileLock(run_folder / ".partition.lock"):
            if not index.exists():
                _write(config, count, run_folder, index, embed)
    kept = json.loads(index.read_text(encoding="utf-8"))
    made_with = _made_with(config, count)
    other = [key for key, value in made_with.items() if kept["made_with"].get(key) != value]
    if other:
        raise FedEditError(
            f"output-dir: {run_folder} has a partition with another {', '.join(other)}; choose "
            "another folder"
        )
    return [node["name"] for node in kept["nodes"]]


def take_over_partition(config: RunConfig, count: int, source: Path, run_folder: Path) -> bool:
    """Copy the partition of another run, if it is the one that this run would compute.

    Args:
        config: the run configuration; the other run has the same data-path.
        count: number of virtual nodes.
        source: run folder of the other run.
        run_folder: where the copy goes.

    Returns:
        Whether it was copied.
    """
    index = source / "partition.json"
    if not is_dealt_out(config) or not index.exists():
        return False
    if json.loads(index.read_text(encoding="utf-8"))["made_with"] != _made_with(config, count):
        return False
    shutil.copytree(source / "requests", run_folder / "requests", dirs_exist_ok=True)
    with replace_file(run_folder / index.name) as temporary:
        shutil.copyfile(index, temporary)
    return True


def check_partition(config: RunConfig, count: int) -> bool:
    """Check a partition as far as possible without a model.

    Returns:
        Whether the partition needs embeddings of the texts.

    Raises:
        FedEditError: see `simulated_nodes`.
    """
    if config.similar_share:
        deal_by_relation(read_data(config), count)
        return True
    requests = read_data(config) if config.partition in ("cluster", "dirichlet") else []
    if not _needs_clusters(config, requests):
        make_partition(config, count)
        return False
    require_enough(requests, count)
    require_others(_overlap(config), count)
    in_slots(requests, config)
    return True


@dataclass(frozen=True)
class Partition:
    """Which node edits which requests in which slot.

    Attributes:
        nodes: node -> its requests per slot, copies included, in the order of partition ids.
        available: node -> number of its own requests, edited or not.
        copies: the requests that a node has from another node.
    """

    nodes: dict[str, Slots]
    available: dict[str, int]
    copies: list[Copy]

    def as_dict(self) -> dict[str, Any]:
        """The counts and ids that `partition.json` holds, without any text."""
        copies = Counter(copy.node for copy in self.copies)
        taken = {name: sum(map(len, slots)) - copies[name] for name, slots in self.nodes.items()}
        return {
            "nodes": [
                {
                    "name": name,
                    "taken": taken[name],
                    "left_out": self.available[name] - taken[name],
                    "copies": copies[name],
                }
                for name in self.nodes
            ],
            "copies": [dataclasses.asdict(copy) for copy in self.copies],
        }


def make_partition(config: RunConfig, count: int, embed: Embed = no_embeddings) -> Partition:
    """Distribute a data set over nodes and slots, and give copies to other nodes.

    Args:
        config: the run configuration.
        count: number of virtual nodes.
        embed: called if the partition depends on similarities of texts.

    Raises:
        FedEditError: the data cannot be read or partitioned.
    """
    dealt = _dealt(config, count, embed)
    slots = {name: in_slots(part, config) for name, part in dealt.items()}
    for name, own in slots.items():
        taken = sum(map(len, own))
        if not taken:
            raise FedEditError(f"partition: node {name} has no request in {config.num_slots} slots")
        per_slot = config.requests_per_slot
        if per_slot is not None and taken < config.num_slots * per_slot:
            logger.warning(
                "partition: node %s has %d requests, too few for %d slots of %d",
                name,
                taken,
                config.num_slots,
                per_slot,
            )
    nodes, copies = with_overlap(slots, _overlap(config), config.seed)
    return Partition(nodes, {name: len(part) for name, part in dealt.items()}, copies)


def _overlap(config: RunConfig) -> Overlap:
    return Overlap(
        config.overlap,
        config.overlap_clients,
        config.overlap_form,
        config.overlap_slot,
        config.overlap_conflicts,
    )


def _dealt(config: RunConfig, count: int, embed: Embed) -> Dealt:
    if config.partition == "file":
        return {node_of(file): read_of(config, file) for file in node_files(config, count)}
    requests = read_data(config)
    if config.partition == "random":
        return deal_at_random(requests, count, config.seed)
    if config.partition == "relation":
        dealt = deal_by_relation(requests, count)
        if not config.similar_share:
            return dealt
        near = similar_relations(requests, lambda texts: embed(config, texts))
        size = (config.requests_per_slot or 0, config.num_slots)
        return with_similar(dealt, requests, near, config.similar_share, *size, config.seed)
    if not _needs_clusters(config, requests):
        relations = [request.relation or "" for request in requests]
        return deal_by_dirichlet(requests, relations, count, config.dirichlet_alpha, config.seed)
    require_enough(requests, count)
    vectors = embed(config, [request.text for request in requests])
    clusters = spectral_clusters(vectors, count, config.seed)
    if config.partition == "cluster":
        return deal_by_cluster(requests, clusters)
    return deal_by_dirichlet(requests, clusters, count, config.dirichlet_alpha, config.seed)


def _needs_clusters(config: RunConfig, requests: Sequence[EditRequest]) -> bool:
    related = all(request.relation for request in requests)
    return config.partition == "cluster" or (config.partition == "dirichlet" and not related)


def _write(config: RunConfig, count: int, run_folder: Path, index: Path, embed: Embed) -> None:
    partition = make_partition(config, count, embed)
    for name, slots in partition.nodes.items():
        requests = [
            dataclasses.replace(request, slot=slot)
            for slot, requests in enumerate(slots, start=1)
            for request in requests
        ]
        write_requests(request_file(run_folder, name), requests)
    figures = partition.as_dict()
    write_json_atomic(index, {"made_with": _made_with(config, count), **figures})
    for node in figures["nodes"]:
        logger.info(
            "partition: node %s edits %d of its %d requests, and %d copies of others'",
            node["name"],
            node["taken"],
            node["taken"] + node["left_out"],
            node["copies"],
        )


def _made_with(config: RunConfig, count: int) -> dict[str, Any]:
    values = config.as_dict()
    return {
        "nodes": count,
        **{key: values[key] for key in _KEYS},
        "requests-per-slot": config.requests_per_slot or 0,
        # Not in the partitions of older versions.
        **({"similar-share": config.similar_share} if config.similar_share else {}),
    }
