"""`fedit table`: finished runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedit_app.cli.output import Format, FormatOption, write


def table(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Run folders.")],
    form: FormatOption = Format.AUTO,
) -> None:
    """Show finished runs side by side."""
    from fedit_app.report import load_results, runs_table

    runs = [(folder.name, load_results(folder / "results.json")) for folder in run_dirs]
    write({"runs": runs_table(runs)}, form)
