"""The editors by name. To add one, write a function like `memit` and name it here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from fedit_app.editing.memit import EditVectors, memit
from fedit_app.editing.requests import EditRequest
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.solver import Solver
from fedit_app.errors import FedEditError
from fedit_app.models.editable import EditableModel


class Editor(Protocol):
    """Computes keys and shifts of new requests on top of a ledger; see `memit.memit`."""

    def __call__(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        templates: Sequence[str],
        solver: Solver,
        ledger: tuple[Tensor, Tensor],
        settings: EditSettings,
    ) -> EditVectors: ...


EDITORS: dict[str, Editor] = {"memit": memit}


def editor_named(name: str) -> Editor:
    """The editor of a run config.

    Raises:
        FedEditError: there is none of that name.
    """
    if name not in EDITORS:
        raise FedEditError(f"run config: editor = {name!r} must be one of {', '.join(EDITORS)}")
    return EDITORS[name]
