"""`fedit tune`: edit settings for a model, searched and written as a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedit_app.cli.options import ConfigFile, Overrides, run_config
from fedit_app.cli.output import Format, FormatOption, write


def tune(
    output: Annotated[Path, typer.Option(metavar="PRESET.toml", help="File to write.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Edit requests or CounterFact records; default: the run config's data, the demo.",
        ),
    ] = None,
    requests: Annotated[int, typer.Option(metavar="N", help="How many to edit.")] = 24,
    form: FormatOption = Format.AUTO,
) -> None:
    """Search layers, weights and step size for a model, write a preset."""
    from fedit_app.config.run_config import RunConfig
    from fedit_app.experiments.tune import tune

    tuned = tune(RunConfig.parse(run_config(config, overrides)), output, data, requests)
    outcome = {"best": tuned.best, "start": tuned.start, "preset": str(output)}
    write({"candidates": tuned.candidates, "outcome": outcome}, form)
