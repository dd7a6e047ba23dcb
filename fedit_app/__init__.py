"""Knowledge editing of language models: of one model, or of many in a federation.

Edit a fact into a model, look at it, write the edited model:

    >>> from fedit_app import Editor, EditRequest
    >>> editor = Editor.from_pretrained("smollm2-135m")
    >>> fact = EditRequest("1", "The Lancet", "The medical journal {} is published in", "Edinburgh")
    >>> print(editor.edit([fact]))
    >>> print(editor.ask("The medical journal The Lancet is published in"))
    >>> editor.save_pretrained("edited")

The same in two lines, with the facts in a file:

    >>> edit("smollm2-135m", "facts.jsonl", "edited")
    >>> ask("edited", "The medical journal The Lancet is published in")

| Name | What it is |
|---|---|
| `EditRequest` | one fact to be corrected: subject, prompt, new target |
| `load_requests` | requests from JSON lines, CSV, CounterFact, zsRE, the Hugging Face hub |
| `Editor` | a model, a method, and the ledger of what was edited |
| `edit`, `ask` | a file of facts into a model folder; what a model says |
| `Ledger` | the set of accepted MKVs: with the base model it is the edited model |
| `MKV` | a mediator knowledge vector: one edit as vectors, without its text |
| `FedEditError` | every error that a user can mend, with its remedy |

Several organisations share MKVs through the command `fedit` (`fedit --help`). The names above are
loaded on first use: `import fedit_app` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedit_app.facts.request import EditRequest
    from fedit_app.facts.sources import load_requests
    from fedit_app.ledger.editor import Editor
    from fedit_app.ledger.ledger import Ledger
    from fedit_app.ledger.one_call import ask, edit
    from fedit_app.mkv import MKV
    from fedit_app.support.errors import FedEditError

__all__ = [
    "MKV",
    "EditRequest",
    "Editor",
    "FedEditError",
    "Ledger",
    "__version__",
    "ask",
    "edit",
    "load_requests",
]

_HOMES = {
    "EditRequest": "fedit_app.facts.request",
    "Editor": "fedit_app.ledger.editor",
    "FedEditError": "fedit_app.support.errors",
    "Ledger": "fedit_app.ledger.ledger",
    "MKV": "fedit_app.mkv",
    "ask": "fedit_app.ledger.one_call",
    "edit": "fedit_app.ledger.one_call",
    "load_requests": "fedit_app.facts.sources",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    try:
        return version("fedit")
    except PackageNotFoundError:  # Flower runs the app from a bundle that is not installed.
        return "unknown"
