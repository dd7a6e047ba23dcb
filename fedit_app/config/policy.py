"""What a node's operator allows: the policy of the node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedit_app.config.run_config import ConfigValue
from fedit_app.config.settings import Settings, key
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml


class Policy(Settings):
    """What a node gives and takes: the table `[policy]` of its node.toml."""

    upload: bool = key(True, "false: the node receives only; its own MKVs stay with it.")
    most_accepted_per_slot: int | None = key(
        None,
        "Most MKVs of others that the node accepts in one slot, the most similar first; without "
        "this line there is no limit.",
        example=50,
        ge=0,
    )
    trusted_nodes: tuple[str, ...] | None = key(
        None,
        "Names of the nodes whose MKVs are accepted; without this line all are trusted.",
        example=("hospital-b", "court"),
    )
    screening: float = key(
        1.0,
        "MKVs that could not be honest ones by their norms and keys are put in quarantine; the "
        "bounds are multiplied by this, 2.0 doubles them, 0 turns them off (docs/security.md).",
        ge=0,
    )
    probes: str | None = key(
        None,
        "File of facts that a re-edit may not spoil, in the format of edit requests; the MKVs by "
        "which it would cost more than the budget are left out and reported.",
        absent="no probes",
    )
    probe_budget: float = key(
        0.0,
        "Share of the probes that a re-edit may spoil: 0 none of them, 0.05 one in twenty.",
        ge=0,
        le=1,
    )
    peers: str | None = key(
        None,
        "Folder of the other nodes' public keys, NAME.pub, as `fedit node trust` fills it: MKVs "
        "are accepted only from nodes with a key there, and with their signature.",
        absent="MKVs of all nodes are accepted, and signatures are not checked",
    )
    unsealed: bool = key(
        False,
        "true: the node takes part in runs that are not sealed as well: their server can read its "
        "MKVs, or the change of its weights.",
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

    @classmethod
    def parse(cls, values: Mapping[str, object], place: str, folder: Path) -> Policy:
        """Check a policy.

        Args:
            values: key -> value.
            place: where they stand, for errors.
            folder: what a relative path is relative to.

        Raises:
            FedEditError: names every key that is wrong, or the file or folder that is missing.
        """
        policy = cls.checked(values, place)
        found: dict[str, str] = {}
        if policy.peers is not None:
            peers = folder / Path(policy.peers).expanduser()
            if not peers.is_dir():
                raise FedEditError(
                    f"{place}: peers = {policy.peers!r} is not a folder; `fedit node trust` makes "
                    "it"
                )
            found["peers"] = str(peers)
        if policy.probes is not None:
            probes = folder / Path(policy.probes).expanduser()
            if not probes.is_file():
                raise FedEditError(f"{place}: probes = {policy.probes!r} is not a file")
            found["probes"] = str(probes)
        elif policy.probe_budget:
            raise FedEditError(f"{place}: probe-budget is set, but probes names no file")
        return policy.model_copy(update=found)


def site_policy(node_config: Mapping[str, ConfigValue]) -> Policy:
    """The policy of the node that runs this, read anew, so that a change counts at once.

    Args:
        node_config: Flower's node configuration; `node-file` names the node.toml. Without one, as
            in a simulation, the node gives and takes everything.

    Raises:
        FedEditError: the file cannot be read, or its policy is wrong.
    """
    table = node_table(node_config, "policy")
    if table is None:
        return Policy()
    return Policy.parse(*table, Path(str(node_config["node-file"])).parent)


def node_table(
    node_config: Mapping[str, ConfigValue], name: str
) -> tuple[dict[str, Any], str] | None:
    """A table of a node's node.toml, and where it stands, for errors; None without a node.toml.

    Args:
        node_config: Flower's node configuration; `node-file` names the node.toml.
        name: the table's; one that the file lacks is empty.

    Raises:
        FedEditError: the file cannot be read, or has another thing of that name.
    """
    if not node_config.get("node-file"):
        return None
    file = Path(str(node_config["node-file"]))
    return table_of(read_toml(file, f"node file {file.name}"), name, f"node file {file.name}")


def table_of(values: Mapping[str, Any], name: str, place: str) -> tuple[dict[str, Any], str]:
    """A table of what a node.toml holds, and where it stands; raises FedEditError if it is none."""
    table = values.get(name, {})
    if not isinstance(table, dict):
        raise FedEditError(f"{place}: {name} must be a table, [{name}]")
    return table, f"{place}, [{name}]"
