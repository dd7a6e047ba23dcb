"""Output of a search: a log line per candidate, the table of candidates, and the preset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import date

import tomli_w

from fedit_app.config.editing import layers_text
from fedit_app.config.model import ModuleNames
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.experiments.trials import Trial
from fedit_app.protocol.metrics import SCORE_PARTS
from fedit_app.report.figures import words
from fedit_app.support.formats import plural, printable
from fedit_app.support.tables import Cell, Figure, Table

_PARTS = ("score", *SCORE_PARTS, "other_relations", "subject_fidelity")
# The scores depend on these as well: the preset holds those that were given.
_KEPT = {
    *(f"module-{field.name.replace('_', '-')}" for field in dataclasses.fields(ModuleNames)),
    "value-steps",
    "stop-after",
    "weight-decay",
    "kl-weight",
    "subject-weight",
    "clamp",
    "norm-guard",
    "max-condition",
    "contexts",
    "chat-contexts",
    "covariance-source",
    "covariance-tokens",
}


def trial_line(trial: Trial) -> str:
    """A trial in one line of the log."""
    weights = "".join(f"{_named(key)} {value:g}, " for key, value in trial.weights.items())
    candidate = (
        f"layers {layers_text(trial.settings.layers)}, {weights}"
        f"step size {trial.settings.learning_rate:g}"
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


def trial_table(trials: Sequence[Trial]) -> Table:
    """A table of one or more trials in the given order."""
    weights = map(_named, trials[0].weights)
    columns = ("stage", "layers", *weights, "step size", *_PARTS, "steps", "|Delta|/|W|")
    return Table(columns, [_row(trial) for trial in trials])


def preset_values(config: RunConfig, best: Trial) -> dict[str, ConfigValue]:
    """The run-config keys that reproduce a trial.

    Args:
        config: the run configuration of the search.
        best: the trial.
    """
    given, defaults = config.as_dict(), RunConfig().as_dict()
    kept = {key: given[key] for key in given if key in _KEPT and given[key] != defaults[key]}
    return {
        "model": config.model,
        "editor": config.editor,
        "layers": layers_text(best.settings.layers),
        **best.weights,
        "learning-rate": best.settings.learning_rate,
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


def _row(trial: Trial) -> list[Cell]:
    metrics = trial.metrics
    return [
        trial.stage,
        layers_text(trial.settings.layers),
        *(f"{value:g}" for value in trial.weights.values()),
        f"{trial.settings.learning_rate:g}",
        *(Figure(metrics.value(name) if metrics else None, digits=3) for name in _PARTS),
        Figure(trial.mean_steps, digits=1),
        Figure(trial.change, digits=4),
    ]


def _named(key: str) -> str:
    """A weight's name in tables, for its run-config key."""
    return {"covariance-weight": "lambda", "null-space-threshold": "threshold"}.get(key, key)


def _score(trial: Trial) -> str:
    return f"{Figure(trial.metrics.score, digits=3)}" if trial.metrics else "not possible"
