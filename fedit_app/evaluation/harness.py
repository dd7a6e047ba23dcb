"""General ability by EleutherAI's lm-evaluation-harness, which is no requirement of FedEdit.

Its tasks are published benchmarks, which it fetches by itself. The bundled `cloze` needs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError
from fedit_app.support.tables import Figure, Table

_BATCH = 8


@dataclass(frozen=True)
class Measure:
    """A figure of the harness.

    Attributes:
        value: the figure.
        error: its standard error; None where the harness has none.
    """

    value: float
    error: float | None


Ability = dict[tuple[str, str], Measure]
"""(task, metric) -> its figure."""


def require_harness() -> None:
    """Check that the harness can be used, before any work.

    Raises:
        FedEditError: it is not installed.
    """
    _module("evaluator")


def ability(model: EditableModel, tasks: Sequence[str], limit: int | None = None) -> Ability:
    """What the harness measures on the model in its present state, edited or not.

    Args:
        model: the model.
        tasks: names of tasks or of groups of tasks, such as `hellaswag`.
        limit: examples of a task; None: all.

    Raises:
        FedEditError: the harness is not installed, or refuses the tasks.
    """
    evaluator, models = _module("evaluator"), _module("models.huggingface")
    lm = models.HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=_BATCH)
    try:
        found = evaluator.simple_evaluate(
            model=lm, tasks=list(tasks), limit=limit, log_samples=False
        )
    except (KeyError, ValueError) as error:
        raise FedEditError(
            f"--lm-eval: {error.args[0] if error.args else error}; `lm_eval ls tasks` lists tasks"
        ) from None
    return {
        (task, _label(name)): Measure(float(figure), _error(figures, name))
        for task, figures in found["results"].items()
        for name, figure in figures.items()
        if isinstance(figure, int | float) and "," in name and "_stderr," not in name
    }


def ability_table(before: Ability, after: Ability) -> Table:
    """Task by metric: the unedited and the edited model, and the standard error of the latter."""
    rows = [
        (
            *(task, metric, Figure(old.value, 3)),
            *(Figure(after[task, metric].value, 3), Figure(after[task, metric].error, 3)),
        )
        for (task, metric), old in before.items()
    ]
    columns = ("task", "metric", "unedited", "edited", "standard error")
    return Table(columns, rows, "lm-evaluation-harness")


def _label(name: str) -> str:
    """`acc,none` -> `acc`; `exact_match,strict-match` -> `exact_match (strict-match)`."""
    metric, _, filtered = name.partition(",")
    return metric if filtered == "none" else f"{metric} ({filtered})"


def _error(figures: Mapping[str, Any], name: str) -> float | None:
    """The standard error of a figure, which the harness keeps beside it; "N/A" if there is none."""
    metric, _, filtered = name.partition(",")
    found = figures.get(f"{metric}_stderr,{filtered}")
    return float(found) if isinstance(found, int | float) else None


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"lm_eval.{name}")
    except ImportError as error:
        raise FedEditError(
            f"--lm-eval: the lm-evaluation-harness cannot be used here ({error}); "
            "pip install 'fedit[lm-eval]'"
        ) from None
