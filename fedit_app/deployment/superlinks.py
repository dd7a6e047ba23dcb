"""The address of a SuperLink, from the name that the user gives."""

from __future__ import annotations

import os
from pathlib import Path

from fedit_app.deployment.server_folder import SERVER_FILE, ServerFolder
from fedit_app.flower_compat.connection import SuperLink
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml


def find_superlink(text: str) -> tuple[SuperLink, ServerFolder | None]:
    """The SuperLink of a server's folder, or of a connection in Flower's configuration.

    Args:
        text: a server's folder on this machine, or a name that stands as `[superlink.NAME]` in
            `$FLWR_HOME/config.toml` (`~/.flwr/config.toml`).

    Returns:
        The SuperLink, and the folder if it is one.

    Raises:
        FedEditError: it is neither.
    """
    folder = Path(text).expanduser()
    if (folder / SERVER_FILE).is_file():
        server = ServerFolder.open(folder)
        return server.superlink, server
    file = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr")) / "config.toml"
    known = read_toml(file, str(file)).get("superlink", {}) if file.is_file() else {}
    found = known.get(text)
    if not isinstance(found, dict):
        names = ", ".join(name for name, value in known.items() if isinstance(value, dict))
        raise FedEditError(
            f"--superlink {text}: neither a server's folder (it would have a {SERVER_FILE}), nor a "
            f"connection in {file} (there are: {names or 'none'})"
        )
    if not isinstance(found.get("address"), str) or found["address"].startswith(":"):
        raise FedEditError(f"--superlink {text}: {file} gives it no address HOST:PORT")
    certificates = found.get("root-certificates")
    return SuperLink(
        found["address"],
        Path(str(certificates)).expanduser() if certificates else None,
        bool(found.get("insecure", False)),
    ), None
