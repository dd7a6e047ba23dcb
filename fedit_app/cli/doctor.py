"""`fedit doctor`: what is wrong with a server, a node or this machine, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of a server or node.")
    ] = None,
) -> int:
    """Check a server, a node, or just this machine."""
    from fedit_app.deployment.doctor import examine

    return examine(folder)
