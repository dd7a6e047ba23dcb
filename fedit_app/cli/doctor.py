"""`fedit doctor`: checks of a server, a node or this machine, with remedies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedit_app.cli.output import Format, FormatOption, write
from fedit_app.support.tables import Table


def doctor(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of a server or node.")
    ] = None,
    form: FormatOption = Format.AUTO,
) -> int:
    """Check a server, a node, or just this machine."""
    from fedit_app.deployment.doctor import examine
    from fedit_app.deployment.findings import FAIL

    findings = examine(folder)
    rows = [(finding.level, finding.topic, finding.text) for finding in findings]
    write({"findings": Table(("level", "topic", "finding"), rows)}, form)
    return int(any(finding.level == FAIL for finding in findings))
