"""The editors by name. To add one, write a module like `memit` and name its method here."""

from __future__ import annotations

from fedit_app.editing.alphaedit import ALPHAEDIT
from fedit_app.editing.memit import MEMIT
from fedit_app.editing.memit_fe import MEMIT_FE
from fedit_app.editing.method import EditingMethod
from fedit_app.editing.pmet import PMET
from fedit_app.support.errors import FedEditError

EDITORS: dict[str, EditingMethod] = {
    "memit": MEMIT,
    "pmet": PMET,
    "alphaedit": ALPHAEDIT,
    "memit-fe": MEMIT_FE,
}


def editor_named(name: str) -> EditingMethod:
    """The editor of a run config.

    Raises:
        FedEditError: there is none of that name.
    """
    if name not in EDITORS:
        raise FedEditError(f"run config: editor = {name!r} must be one of {', '.join(EDITORS)}")
    return EDITORS[name]
