"""The baselines by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from fedit_app.evaluation.scores import Before
from fedit_app.experiments.baselines.fine_tuning import (
    ft_fedavg,
    ft_fedprox,
    ft_m,
    locft_bf,
)
from fedit_app.experiments.baselines.grace import grace
from fedit_app.experiments.baselines.in_context import in_context
from fedit_app.experiments.baselines.lora import lora
from fedit_app.experiments.baselines.lora_fedavg import lora_fedavg, lora_fedprox
from fedit_app.experiments.baselines.mend import mend
from fedit_app.experiments.baselines.training import Lesson
from fedit_app.models.editable import EditableModel

Baseline = Callable[[EditableModel, Lesson], AbstractContextManager[Before]]
"""(model, lesson) -> a block in which the model has learned the lesson's facts; it is given what is
put before each prompt, see `evaluation.scores`."""

BASELINES: dict[str, Baseline] = {
    "ft-m": ft_m,
    "locft-bf": locft_bf,
    "ft-fedavg": ft_fedavg,
    "ft-fedprox": ft_fedprox,
    "lora": lora,
    "lora-fedavg": lora_fedavg,
    "lora-fedprox": lora_fedprox,
    "grace": grace,
    "in-context": in_context,
    "mend": mend,
}
"""To add a baseline, write a module with such a function and name it here."""
