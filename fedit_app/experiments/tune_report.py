"""Output of a search: a log line per candidate, the table of candidates, and the preset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import date

import tomli_w

from fedit_app.config.editing import layers_text
from fedit_app.config.model import ModuleNames
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.editing.settings import EditSettings
from fedit_app.experiments.trials import Trial
from fedit_app.protocol.metrics import SCORE_PARTS
from fedit_app.report.figures import words
from fedit_app.support.formats import plural, printable
from fedit_app.support.tables import Cell, Figure, Table

_PARTS = ("score", *SCORE_PARTS, "other_relations")
# The scores depend on these as well: the preset holds those that were given.
_KEPT = {
    *(f"module-{field.name.replace('_', '-')}" for field in dataclasses.fields(ModuleNames)),
    "value-steps",
    "stop-after",
    "weight-decay",
    "kl-weight",
    "clamp",
    "norm-guard",
    "max-condition",
    "contexts",
    "covariance-source",
    "covariance-tokens",
}


def trial_line(trial: Trial, null_space: bool) -> str:
    """A trial in one line of the log.

    Args:
        trial: the trial.
        null_space: whether its weights are l2 and the threshold, not lambda.
    """
    names = ("l2", "threshold") if null_space else ("lambda",)
    weights = zip(names, _weights(trial.settings, null_space), strict=True)
    candidate = ", ".join(
        [
            f"layers {layers_text(trial.settings.layers)}",
            *(f"{name} {value:g}" for name, value in weights),
            f"step size {trial.settings.learning_rate:g}",
        ]
    )
    if trial.metrics is None:
        return f"{trial.stage}: {candidate}: not possible: {trial.problem}"
    score, *parts = (
        f"{words(name)} {Figure(trial.metrics.value(name), digits=3)}" for name in _PARTS
    )
    return (
        f"{trial.stage}: {candidate}: {score} ({', '.join(parts)}), "
        f"{trial.mean_steps:.1f} steps, |Delta|/|W| {trial.change:.4f}"
    )


def trial_table(trials: Sequence[Trial], null_space: bool) -> Table:
    """A table of trials in the given order.

    Args:
        trials: the trials.
        null_space: as for `trial_line`.
    """
    weights = ("l2", "threshold") if null_space else ("lambda",)
    columns = (
        "stage",
        "layers",
        *weights,
        "step size",
        *map(words, _PARTS),
        "steps",
        "|Delta|/|W|",
    )
    return Table(columns, [_row(trial, null_space) for trial in trials])


def preset_values(
    config: RunConfig, settings: EditSettings, null_space: bool
) -> dict[str, ConfigValue]:
    """The run-config keys that reproduce these settings.

    Args:
        config: the run configuration of the search.
        settings: the best settings.
        null_space: as for `trial_line`.
    """
    given, defaults = config.as_dict(), RunConfig().as_dict()
    kept = {key: given[key] for key in given if key in _KEPT and given[key] != defaults[key]}
    keys = ("l2", "null-space-threshold") if null_space else ("covariance-weight",)
    return {
        "model": config.model,
        "editor": config.editor,
        "layers": layers_text(settings.layers),
        **dict(zip(keys, _weights(settings, null_space), strict=True)),
        "learning-rate": settings.learning_rate,
        **kept,
    }


def preset_text(
    values: dict[str, ConfigValue], best: Trial, start: Trial, data: str, count: int, device: str
) -> str:
    """The text of the preset file: the keys, below comments on their origin.

    Args:
        values: run-config keys.
        best: the trial with these values.
        start: the first trial: the run config, and the model's defaults for the rest.
        data: name of the data.
        count: how many requests were edited.
        device: name of the device.
    """
    return (
        f"# Written by `fedit tune` on {date.today().isoformat()}, {printable(device)}.\n"
        f"# {plural(count, 'request')} of {printable(data)}, edited in one batch: "
        f"score {_score(best)}.\n"
        "# The search started from its run config and the model's defaults: "
        f"score {_score(start)}.\n"
        f"{tomli_w.dumps(values)}"
    )


def _row(trial: Trial, null_space: bool) -> list[Cell]:
    metrics = trial.metrics
    return [
        trial.stage,
        layers_text(trial.settings.layers),
        *(f"{value:g}" for value in _weights(trial.settings, null_space)),
        f"{trial.settings.learning_rate:g}",
        *(Figure(metrics.value(name) if metrics else None, digits=3) for name in _PARTS),
        Figure(trial.mean_steps, digits=1),
        Figure(trial.change, digits=4),
    ]


def _weights(settings: EditSettings, null_space: bool) -> tuple[float, ...]:
    if null_space:
        return settings.l2, settings.null_space_threshold
    return (settings.covariance_weight,)


def _score(trial: Trial) -> str:
    return f"{Figure(trial.metrics.score, digits=3)}" if trial.metrics else "not possible"
