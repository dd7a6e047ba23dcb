"""The run configuration: all settings of a run, one class per subject, in one flat object.

`pyproject.toml` repeats the defaults under `[tool.flwr.app.config]`, because Flower refuses to
override a key that does not stand there; `python -m fedit_app.config.documentation` writes them,
and a test checks them. Flower's configuration has no null: "" stands there for "not given".
"""

from __future__ import annotations

from collections.abc import Mapping

from fedit_app.config.data import DataSettings
from fedit_app.config.editing import EditingSettings, WorkbenchSettings, layers_text
from fedit_app.config.exchange import ExchangeSettings, SelectionSettings
from fedit_app.config.model import ModelSettings
from fedit_app.config.retired import modernised
from fedit_app.config.run import EvaluationSettings, RunSettings, StorageSettings
from fedit_app.config.settings import Settings, key_name

ConfigValue = str | int | float | bool

# The subjects in the order in which documents list them.
SUBJECTS: tuple[type[Settings], ...] = (
    RunSettings,
    ModelSettings,
    DataSettings,
    EditingSettings,
    SelectionSettings,
    ExchangeSettings,
    EvaluationSettings,
    StorageSettings,
)


class RunConfig(
    WorkbenchSettings,
    RunSettings,
    DataSettings,
    SelectionSettings,
    ExchangeSettings,
    EvaluationSettings,
    StorageSettings,
):
    """One run of the federation. Field `a_b` is the run-config key `a-b`."""

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> RunConfig:
        """Check a run configuration as Flower hands it over, or as a run folder holds it.

        Args:
            values: key -> value; keys that are absent, or "", take their default.

        Raises:
            FedEditError: names every unknown key and every invalid value.
        """
        return cls.checked(modernised(values), "run config")

    def as_dict(self) -> dict[str, ConfigValue]:
        """The configuration as key -> value, with every key; "" for what is not given."""
        return {key_name(field): _plain(getattr(self, field)) for field in field_names()}


def field_names() -> list[str]:
    """All fields in the order of the subjects."""
    return list(dict.fromkeys(field for kind in SUBJECTS for field in kind.model_fields))


def _plain(value: ConfigValue | tuple[int, ...] | None) -> ConfigValue:
    if value is None:
        return ""
    return layers_text(value) if isinstance(value, tuple) else value
