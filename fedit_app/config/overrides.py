"""A run configuration from a preset file and KEY=VALUE overrides."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from fedit_app.config.retired import modernised
from fedit_app.config.run_config import ConfigValue
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml


def read_run_config(file: Path | None, overrides: Sequence[str]) -> dict[str, ConfigValue]:
    """Run-config values of a preset and of the command line, which wins.

    Args:
        file: TOML file of keys and values, or None.
        overrides: KEY=VALUE; a value that is not TOML is taken as a string.

    Raises:
        FedEditError: the file cannot be read, or an override has no "=".
    """
    values: dict[str, ConfigValue] = {}
    if file is not None:
        values |= modernised(read_toml(file, f"--config {file}"))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise FedEditError(f"-c {override}: write KEY=VALUE")
        values[key.strip()] = toml_value(text)
    for key in ("data-path", "state-dir", "output-dir", "pool-uri", "work-cache"):
        if values.get(key) and not re.match(r"hub:|\w+://", str(values[key])):
            values[key] = str(Path(str(values[key])).expanduser().absolute())
    for key in ("model", "embedding-model", "covariance-source"):
        if Path(str(values.get(key, ""))).exists() and values.get(key):
            values[key] = str(Path(str(values[key])).absolute())
    return values


def toml_value(text: str) -> ConfigValue:
    """A value as TOML writes it; what is not TOML is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
