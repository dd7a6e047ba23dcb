"""Where a run keeps what it writes. Server and nodes of a simulation work it out alike."""

from __future__ import annotations

from pathlib import Path

from fedit_app.config.run import StorageSettings
from fedit_app.support.files import cache_dir


def run_folder(config: StorageSettings, run_id: int) -> Path:
    """The run folder: `output-dir`, or ~/fedit-runs/RUN-ID."""
    if config.output_dir:
        return Path(config.output_dir).expanduser()
    return Path.home() / "fedit-runs" / str(run_id)


def node_folder(config: StorageSettings, run_id: int, node: str) -> Path:
    """A node's own folder: `state-dir`/NODE/FEDERATION on its own disk, or nodes/ of the run."""
    return (
        _nodes_root(config, run_id) / node / (config.federation or "" if config.state_dir else "")
    )


def nodes_with_ledger(config: StorageSettings, run_id: int) -> list[str]:
    """Names of the nodes that have a ledger on this machine."""
    root = _nodes_root(config, run_id)
    return sorted(
        folder.name
        for folder in root.glob("*")
        if ledger_folder(config, run_id, folder.name).is_dir()
    )


def _nodes_root(config: StorageSettings, run_id: int) -> Path:
    if config.state_dir:
        return Path(config.state_dir).expanduser()
    return run_folder(config, run_id) / "nodes"


def ledger_folder(config: StorageSettings, run_id: int, node: str) -> Path:
    """Where a node keeps its ledger."""
    return node_folder(config, run_id, node) / "ledger"


def scores_file(run_folder: Path, node: str) -> Path:
    """Where a virtual node keeps the last scores of the federation's facts, one by one."""
    return run_folder / "facts" / f"{node}.json"


def simulated_key_file(config: StorageSettings, run_id: int) -> Path:
    """Where the nodes of a simulation keep their federation key, beside their ledgers."""
    return _nodes_root(config, run_id) / "federation.key"


def worker_folder(state_dir: str | None, node: str) -> Path:
    """Where a real node's resident process lives, run after run: `worker` under `state-dir`/NODE.

    Without a `state-dir` it lies in the cache: the next run would not look into this one's folder.
    """
    root = Path(state_dir).expanduser() if state_dir else cache_dir() / "nodes"
    return (root / node / "worker").resolve()


def pool_location(config: StorageSettings, run_id: int) -> str:
    """URI of the MKV pool: `pool-uri`, or pool/ of the run folder."""
    return config.pool_uri or str(run_folder(config, run_id) / "pool")
