"""The folder of a node: its settings, and the places of its files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from fedit_app.config.limits import Limits
from fedit_app.config.model import DEVICE, DEVICE_MAP, DTYPE, Dtype
from fedit_app.config.node_config import NODE_KEYS
from fedit_app.config.policy import Policy, table_of
from fedit_app.config.run_config import ConfigValue
from fedit_app.config.settings import NAME_RULE, Settings, is_name, key
from fedit_app.flower_compat.connection import SuperLink
from fedit_app.protocol.messages import FEDERATION_KEY
from fedit_app.support.addresses import split
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml
from fedit_app.support.formats import typed

NODE_FILE = "node.toml"
PEERS = "peers"
_TABLES = ("policy", "limits")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def _hashes(apps: tuple[str, ...]) -> tuple[str, ...]:
    for app in apps:
        if not _HASH.fullmatch(app):
            raise ValueError("must list hashes such as sha256:0123..., of 64 hex digits")
    return apps


class NodeSettings(Settings):
    """The keys of node.toml, without its policy."""

    name: str = key("", "Name of the node in the federation.")
    superlink: str = key("", "HOST:PORT of the federation's server.")
    ca_cert: str | None = key(
        "ca.crt",
        "Certificate of the authority, from the server's operator.",
        absent="the authorities that this machine trusts",
    )
    node_key: str = key(
        "", "The node's private key, by which the server knows it. It never leaves this machine."
    )
    federation_key: str | None = key(
        "federation.key",
        "The key that all nodes of the federation share, and the server has not: with it they seal "
        "what they send.",
        absent="the node takes part only in runs that are not sealed",
    )
    data_path: str = key(
        "", "Edit requests, a file of JSON lines. No text of them leaves this machine."
    )
    state_dir: str = key(
        "state", "Folder of the node's ledgers: with the base model, its edited models."
    )
    work_cache: str | None = key(
        None,
        "Folder that keeps optimised values for later runs, by hash and without text.",
        absent="no cache",
    )
    ledger: str | None = key(
        None,
        "Folder of an edited model (`fedit edit`): the MKVs of those of its facts that are in the "
        "data are used as they are, if the run has the fingerprint of its ledger.",
        example="/srv/models/corrected",
        absent="every fact is computed, or reused from the pool",
    )
    model: str | None = key(
        None,
        "The model: smollm2-135m (embedded), a Hugging Face folder, or a hub id. The fingerprint "
        "makes sure that all nodes have the same weights.",
        absent="what the run says",
    )
    device: str = DEVICE
    dtype: Dtype = DTYPE
    device_map: str | None = DEVICE_MAP
    runtime_port: int = key(
        0,
        "Loopback TCP port between the SuperNode and its processes; 0: a free one at every start.",
        ge=0,
        le=65535,
    )
    worker_idle_seconds: float | None = key(
        None,
        "How long the node's resident process, which keeps the model in memory, waits for the next "
        "message before it ends; 0: no such process, every message loads the model.",
        example=1800.0,
        ge=0,
    )
    worker_memory_gb: float | None = key(
        None,
        "The resident process ends after a message if it holds more memory than this; without this "
        "line, more than 80 % of the machine's.",
        example=64.0,
        ge=0,
    )
    apps: Annotated[tuple[str, ...], AfterValidator(_hashes)] | None = key(
        None,
        "The app bundles that may run here, by their hashes, as `fedit node allow` adds them; "
        "without this line the server's operator runs any code on this machine.",
        example=(f"sha256:{'0123456789abcdef' * 4}",),
    )
    trusted_entities: str | None = key(
        None,
        "YAML file of the keys whose signed apps may run here (Flower's --trusted-entities).",
        absent="every app that the server's operator starts may run",
    )


@dataclass(frozen=True)
class NodeFolder:
    """A node's folder.

    Attributes:
        folder: its absolute path.
        settings: what its node.toml says.
        policy: the policy that stands there.
        limits: and its limits of what a run may ask for.
    """

    folder: Path
    settings: NodeSettings
    policy: Policy
    limits: Limits

    @staticmethod
    def open(folder: Path) -> NodeFolder:
        """Read a node's folder.

        Raises:
            FedEditError: it is none, or its node.toml is wrong.
        """
        file = folder.expanduser() / NODE_FILE
        if not file.is_file():
            raise FedEditError(
                f"{folder}: no node's folder, it has no {NODE_FILE}; make one with "
                f"`fedit node init {typed(folder)} --name NAME`"
            )
        values = read_toml(file, str(file))
        policy, limits = (table_of(values, name, str(file)) for name in _TABLES)
        settings = NodeSettings.checked(
            {name: value for name, value in values.items() if name not in _TABLES}, str(file)
        )
        missing = [
            name.replace("_", "-")
            for name in ("name", "superlink", "node_key", "data_path", "state_dir")
            if not getattr(settings, name)
        ]
        if missing:
            raise FedEditError(f"{file}: {' and '.join(missing)} must be given")
        check_name(settings.name, str(file))
        split(settings.superlink, f"{file}: superlink")
        absolute = file.parent.absolute()
        return NodeFolder(
            absolute, settings, Policy.parse(*policy, file.parent), Limits.checked(*limits)
        )

    def path(self, value: str) -> Path:
        """The absolute path of a path in node.toml."""
        return self.folder / Path(value).expanduser()

    @property
    def ca_cert(self) -> Path | None:
        """The authority's certificate; None for the authorities that the machine trusts."""
        return self.path(self.settings.ca_cert) if self.settings.ca_cert else None

    @property
    def superlink(self) -> SuperLink:
        """The federation's server."""
        return SuperLink(self.settings.superlink, self.ca_cert)

    @property
    def registration(self) -> Path:
        """JSON file with the id that the server has given the node."""
        return self.home / "registration.json"

    @property
    def node_key(self) -> Path:
        """The node's private key."""
        return self.path(self.settings.node_key)

    @property
    def public_key(self) -> Path:
        """The public key, which the server's operator registers."""
        return self.node_key.with_name(f"{self.settings.name}.pub")

    @property
    def federation_key(self) -> Path | None:
        """The file of the federation key; None if the node is to have none."""
        given = self.settings.federation_key
        return self.path(given) if given else None

    @property
    def peers(self) -> Path:
        """The folder of the public keys of the nodes that this one trusts."""
        return Path(self.policy.peers) if self.policy.peers else self.folder / PEERS

    @property
    def data_path(self) -> Path:
        """The file of edit requests."""
        return self.path(self.settings.data_path)

    @property
    def state_dir(self) -> Path:
        """The folder of the ledgers."""
        return self.path(self.settings.state_dir)

    @property
    def home(self) -> Path:
        """Working directory of the SuperNode; holds no code."""
        return self.folder / "flower"

    def model(self) -> str | None:
        """The model as a run is to load it: a local folder as an absolute path; None: the run's."""
        given = self.settings.model
        local = self.path(given) if given else None
        return str(local) if local is not None and local.is_dir() else given

    def node_config(self) -> dict[str, ConfigValue]:
        """What the app is told of this node: Flower's node configuration."""
        settings = self.settings
        device_map, work_cache = settings.device_map, settings.work_cache
        if device_map and self.path(device_map).is_file():
            device_map = str(self.path(device_map))
        told: dict[str, ConfigValue | None] = {
            "name": settings.name,
            "node-file": str(self.folder / NODE_FILE),
            FEDERATION_KEY: str(self.federation_key) if self.federation_key else None,
            "node-key": str(self.node_key),
            "worker-idle-seconds": settings.worker_idle_seconds,
            "worker-memory-gb": settings.worker_memory_gb,
        }
        told |= {name: getattr(settings, name.replace("-", "_")) or None for name in NODE_KEYS}
        told |= {
            "device-map": device_map,
            "work-cache": str(self.path(work_cache)) if work_cache else None,
            "ledger": str(self.path(settings.ledger)) if settings.ledger else None,
            "model": self.model(),
            "data-path": str(self.data_path),
            "state-dir": str(self.state_dir),
        }
        return {name: value for name, value in told.items() if value is not None}


def check_name(name: str, place: str) -> None:
    """Raises FedEditError for what cannot name a node."""
    if not is_name(name):
        raise FedEditError(f"{place}: name {name!r} must be {NAME_RULE}")
