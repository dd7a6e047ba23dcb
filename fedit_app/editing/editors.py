"""The editors by name."""

from __future__ import annotations

from importlib import import_module

from fedit_app.editing.method import EditingMethod
from fedit_app.support.errors import FedEditError

# To add an editor, write a module like `memit` and name it here. The module's method has the name
# of the module in capitals; the editor's name has hyphens where the module's has underscores.
_MODULES = (
    "memit",
    "pmet",
    "alphaedit",
    "memit_fe",
    "blue",
    "encore",
    "betaedit",
)

EDITORS: dict[str, EditingMethod] = {
    name.replace("_", "-"): getattr(import_module(f"fedit_app.editing.{name}"), name.upper())
    for name in _MODULES
}


def editor_named(name: str) -> EditingMethod:
    """The editor of a run config.

    Raises:
        FedEditError: there is none of that name.
    """
    if name not in EDITORS:
        raise FedEditError(f"run config: editor = {name!r} must be one of {', '.join(EDITORS)}")
    return EDITORS[name]
