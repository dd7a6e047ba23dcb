"""A run configuration from a preset file and KEY=VALUE overrides."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from fedit_app.config.retired import modernised
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.config.settings import about
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import read_toml

_URI = re.compile(r"hub:|\w+://")


def read_run_config(file: Path | None, overrides: Sequence[str]) -> dict[str, ConfigValue]:
    """Run-config values of a preset and of the command line, which wins.

    Args:
        file: TOML file of keys and values, or None.
        overrides: KEY=VALUE; a value that is not TOML is taken as a string.

    Raises:
        FedEditError: the file cannot be read, or an override has no "=".
    """
    values: dict[str, object] = {}
    if file is not None:
        values |= modernised(read_toml(file, f"--config {file}"))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise FedEditError(f"-c {override}: write KEY=VALUE")
        values[key.strip()] = toml_value(text)
    return {key: _plain(key, value) for key, value in values.items()}


def _plain(key: str, value: object) -> ConfigValue:
    """A value as Flower takes it; paths are absolute, since Flower runs the app elsewhere."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    field = RunConfig.model_fields.get(key.replace("-", "_"))
    kind = about(field, "path") if field and value else ""
    path = Path(str(value)).expanduser()
    if (kind == "always" and not _URI.match(str(value))) or (kind == "existing" and path.exists()):
        return str(path.absolute())
    return value  # type: ignore[return-value]  # RunConfig.parse refuses what is of no known type


def toml_value(text: str) -> ConfigValue:
    """A value as TOML writes it; what is not TOML is a string."""
    try:
        value: ConfigValue = tomllib.loads(f"value = {text}")["value"]
        return value
    except tomllib.TOMLDecodeError:
        return text
