"""The texts of the requests that a ledger fulfils, in a file beside it, and the ids they go by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fedit_app.facts.jsonl import read_requests, write_requests
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.edited_model import TEXTS
from fedit_app.ledger.index import INDEX, read_index
from fedit_app.ledger.ledger import Ledger
from fedit_app.support.errors import FedEditError


def read_texts(folder: Path) -> dict[str, EditRequest]:
    """The requests of a ledger's folder whose texts are there, by their ids; empty without any.

    Raises:
        FedEditError: the file is damaged.
    """
    file = folder / TEXTS
    found = read_requests(file) if file.exists() and file.stat().st_size else []
    return {request.id: request for request in found}


def write_texts(
    folder: Path, texts: Mapping[str, EditRequest], ledger: Ledger
) -> dict[str, EditRequest]:
    """Write the requests that a ledger fulfils into its folder; the others are no longer there.

    Without any there is no file.

    Args:
        folder: of the ledger.
        texts: all requests whose texts are known, by their ids.
        ledger: the ledger.

    Returns:
        What was written, by the ids.
    """
    fulfilled = ledger.fulfilled()
    kept = {id_: request for id_, request in texts.items() if id_ in fulfilled}
    if kept:
        write_requests(folder / TEXTS, list(kept.values()))
    else:
        (folder / TEXTS).unlink(missing_ok=True)
    return kept


def check_new(folder: Path, requests: Sequence[EditRequest]) -> None:
    """Check, before a model is loaded, that new requests have ids of their own in a ledger.

    Args:
        folder: of the ledger.
        requests: those to be edited on top of it.

    Raises:
        FedEditError: see `check_ids`; or the ledger is damaged.
    """
    if (folder / INDEX).exists():
        rows = read_index(folder)["entries"]
        check_ids(requests, read_texts(folder), {id_ for row in rows for id_ in row["requests"]})


def check_ids(
    requests: Sequence[EditRequest], texts: Mapping[str, EditRequest], fulfilled: Collection[str]
) -> None:
    """Check that no id names another fact than before; one with another target is corrected.

    Args:
        requests: new ones.
        texts: the known requests by their ids.
        fulfilled: ids of the requests that the ledger fulfils.

    Raises:
        FedEditError: an id names a fact about another subject or prompt, or one whose text is not
            known. The text that it names is quoted.
    """
    remedy = "give the new one an id of its own, or roll the old one back first"
    for request in requests:
        if request.id not in fulfilled:
            continue
        known = texts.get(request.id)
        if known is None:
            raise FedEditError(
                f"request {request.id!r}: the ledger has a fact of this id, whose text is not in "
                f"its {TEXTS}; {remedy}"
            )
        if (known.subject, known.prompt) != (request.subject, request.prompt):
            raise FedEditError(
                f"request {request.id!r}: this id names another fact of the ledger, "
                f"{known.text!r}; {remedy}"
            )
