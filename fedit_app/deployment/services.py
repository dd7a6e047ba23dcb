"""Start scripts and systemd units."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from fedit_app.support.files import write_file
from fedit_app.support.formats import typed
from fedit_app.support.processes import tool

_UNIT = """\
# {what}
# Install: sudo cp {unit} /etc/systemd/system/
#          sudo systemctl daemon-reload && sudo systemctl enable --now {name}
# Log:     journalctl -u {name} -f
[Unit]
Description={what}
Wants=network-online.target
After=network-online.target

[Service]
User={user}
WorkingDirectory={folder}
ExecStart={command}
# The command ends what it has started; what is left after that is killed.
KillMode=mixed
TimeoutStopSec=60
Restart=on-failure
RestartSec=15
UMask=0077
NoNewPrivileges=true
PrivateTmp=true
ProtectSystem=full

[Install]
WantedBy=multi-user.target
"""


def write_services(folder: Path, side: str, name: str, what: str) -> None:
    """Write start.sh and a systemd unit that run `fedit SIDE start FOLDER`.

    Args:
        folder: absolute folder of the server or node.
        side: server or node.
        name: the unit's name.
        what: its description, in a few words.
    """
    command = f"{typed(tool('fedit'))} {side} start"
    write_file(
        folder / "start.sh",
        f"#!/bin/sh\n# {what}, in the foreground.\nexec {command} {typed(folder)}\n",
        0o700,
    )
    unit = folder / f"{name}.service"
    values = {
        "what": what,
        "unit": typed(unit),
        "name": name,
        "user": _user(),
        "folder": _escaped(str(folder)),
        "command": f"{_quoted(tool('fedit'))} {side} start {_quoted(str(folder))}",
    }
    write_file(unit, _UNIT.format_map(values))


def _user() -> str:
    """The name of this user, or the number where it has no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _escaped(text: str) -> str:
    """A path for systemd, where % begins a specifier."""
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    escaped = _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"'
