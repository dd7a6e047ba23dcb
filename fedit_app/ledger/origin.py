"""Model and settings of a ledger, kept beside it, so that its edited model can be rebuilt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml, write_file

ORIGIN = "origin.toml"
_HEAD = "# What this ledger was last used with: fedit ask, export and rollback read it.\n"


@dataclass(frozen=True)
class Origin:
    """Whose a ledger is, and with what it was last used.

    Attributes:
        node: the name of its node.
        simulated: whether that was a virtual one.
        run: the run configuration as it held on the node, key -> value.
    """

    node: str
    simulated: bool
    run: dict[str, ConfigValue]


def write_origin(folder: Path, node: str, simulated: bool, config: RunConfig) -> None:
    """Record the settings with which a ledger is used.

    Args:
        folder: of the ledger.
        node: the name of its node.
        simulated: whether it is a virtual one.
        config: the run configuration as it holds on the node.
    """
    values: dict[str, Any] = {"node": node, "simulated": simulated, "run": config.as_dict()}
    text = _HEAD + tomli_w.dumps(values)
    file = folder / ORIGIN
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        write_file(file, text)


def read_origin(folder: Path) -> Origin | None:
    """What `write_origin` has recorded; None if no run has used the ledger.

    Raises:
        FedEditError: it cannot be read.
    """
    file = folder / ORIGIN
    if not file.exists():
        return None
    values = read_toml(file, str(file))
    kinds = {"node": str, "simulated": bool, "run": dict}
    if values.keys() != kinds.keys() or any(
        not isinstance(values[name], kind) for name, kind in kinds.items()
    ):
        raise FedEditError(
            f"{file}: must hold node, simulated and the table run; delete it, the next run writes "
            "a new one"
        )
    return Origin(**values)
