"""Start scripts and systemd units."""

from __future__ import annotations

import getpass
import os
import shlex
from pathlib import Path

from fedit_app.support.files import replace_file
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


def write_services(folder: Path, side: str, name: str, what: str) -> tuple[Path, Path]:
    """Write start.sh and a systemd unit that run `fedit SIDE start FOLDER`.

    Args:
        folder: absolute folder of the server or node.
        side: server or node.
        name: the unit's name.
        what: what it is, in a few words.

    Returns:
        The script and the unit.
    """
    command = f"{shlex.quote(tool('fedit'))} {side} start"
    script = folder / "start.sh"
    with replace_file(script) as temporary:
        temporary.write_text(
            f"#!/bin/sh\n# {what}, in the foreground.\nexec {command} {shlex.quote(str(folder))}\n",
            encoding="utf-8",
        )
        temporary.chmod(0o700)
    unit = folder / f"{name}.service"
    values = {
        "what": what,
        "unit": unit,
        "name": name,
        "user": _user(),
        "folder": _escaped(str(folder)),
        "command": f"{_quoted(tool('fedit'))} {side} start {_quoted(str(folder))}",
    }
    with replace_file(unit) as temporary:
        temporary.write_text(_UNIT.format_map(values), encoding="utf-8")
    return script, unit


def _user() -> str:
    """The user that runs this; in a container a number may be all that is known."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _escaped(text: str) -> str:
    """A path as systemd wants it: % begins a specifier there."""
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    escaped = _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"'
