"""What a node's operator decides, and not the run: where its files are, and its policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedit_app.config.keys import check_keys, key
from fedit_app.config.run_config import ConfigValue
from fedit_app.facts.partition import is_simulated
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml

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


@dataclass(frozen=True)
class Policy:
    """What a node gives and takes: the table `[policy]` of its node.toml."""

    upload: bool = key(True, "false: the node receives only; its own MKVs stay with it")
    most_accepted_per_slot: int | None = key(
        None,
        "most MKVs of others that the node accepts in one slot, the most similar first; without "
        "this line there is no limit",
        kind=int,
        at_least=0,
        example=50,
    )
    trusted_nodes: tuple[str, ...] | None = key(
        None,
        "names of the nodes whose MKVs are accepted; without this line all are trusted",
        kind=tuple,
        example=("hospital-b", "court"),
    )
    screening: float = key(
        1.0,
        "MKVs that could not be honest ones by their norms and keys are put in quarantine; the "
        "bounds are multiplied by this, 2.0 doubles them, 0 turns them off (docs/security.md)",
        at_least=0,
    )
    probes: str = key(
        "",
        "file of facts that a re-edit may not spoil, in the format of edit requests; the MKVs by "
        "which it would cost more than the budget are left out and reported",
    )
    probe_budget: float = key(
        0.0,
        "share of the probes that a re-edit may spoil: 0 none of them, 0.05 one in twenty",
        at_least=0,
        at_most=1,
    )
    peers: str = key(
        "",
        "folder of the other nodes' public keys, NAME.pub, as `fedit node trust` fills it: MKVs "
        "are accepted only from nodes with a key there, and with their signature; empty: from "
        "all, and signatures are not looked at",
    )
    unsealed: bool = key(
        False,
        "true: the node takes part in runs that are not sealed as well: their server can read its "
        "MKVs, or the change of its weights",
    )

    def require_readable(self, what: str) -> None:
        """Raises FedEditError unless the node lets the server read what it sends.

        Args:
            what: what asks for it.
        """
        if not self.unsealed:
            raise FedEditError(
                f"{what}: the server could read what this node sends, and its policy forbids that; "
                "its operator may set unsealed = true in [policy] of node.toml"
            )

    @staticmethod
    def parse(values: Mapping[str, Any], place: str, folder: Path) -> Policy:
        """Check a policy.

        Args:
            values: key -> value.
            place: where they stand, for errors.
            folder: what a relative path is relative to.

        Raises:
            FedEditError: naming every key that is wrong, or the file or folder that is missing.
        """
        policy = Policy(**check_keys(Policy, values, place))
        if policy.peers:
            peers = folder / Path(policy.peers).expanduser()
            if not peers.is_dir():
                raise FedEditError(
                    f"{place}: peers = {policy.peers!r} is no folder that exists; `fedit node "
                    "trust` makes it"
                )
            policy = Policy(**{**vars(policy), "peers": str(peers)})
        if not policy.probes:
            if policy.probe_budget:
                raise FedEditError(f"{place}: probe-budget is set, but probes names no file")
            return policy
        probes = folder / Path(policy.probes).expanduser()
        if not probes.is_file():
            raise FedEditError(f"{place}: probes = {policy.probes!r} is no file that exists")
        return Policy(**{**vars(policy), "probes": str(probes)})


def site_policy(node_config: Mapping[str, ConfigValue]) -> Policy:
    """The policy of the node that runs this, read anew, so that a change counts at once.

    Args:
        node_config: Flower's node configuration; `node-file` names the node.toml. Without one, as
            in a simulation, the node gives and takes everything.

    Raises:
        FedEditError: the file cannot be read, or its policy is wrong.
    """
    if not node_config.get("node-file"):
        return Policy()
    file = Path(str(node_config["node-file"]))
    table = read_toml(file, f"node file {file.name}").get("policy", {})
    if not isinstance(table, dict):
        raise FedEditError(f"node file {file.name}: policy must be a table, [policy]")
    return Policy.parse(table, f"node file {file.name}, [policy]", file.parent)
