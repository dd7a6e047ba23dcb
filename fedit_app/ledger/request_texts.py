"""The texts of the requests that a ledger fulfils, in files beside it, and the ids they go by.

    requests.jsonl          what the ledger fulfils
    replaced/ID.jsonl       what an MKV fulfilled that another one has replaced

A replaced MKV stays in the ledger and holds again when the other one is rolled back, with its
requests and their texts. The texts leave the disk with the MKV.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedit_app.facts.jsonl import read_requests, write_requests
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.edited_model import TEXTS
from fedit_app.ledger.index import INDEX, read_index
from fedit_app.ledger.ledger import Ledger
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import make_folder

REPLACED = "replaced"


@dataclass(frozen=True)
class Texts:
    """The texts of the requests of a ledger.

    Attributes:
        known: id -> request, of what the ledger fulfils.
        replaced: id of an MKV that another one has replaced -> the requests that it fulfilled.
    """

    known: Mapping[str, EditRequest] = field(default_factory=dict)
    replaced: Mapping[str, Sequence[EditRequest]] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Texts:
        """Those beside a ledger; empty without any.

        Args:
            folder: of the ledger.

        Raises:
            FedEditError: a file is damaged.
        """
        file = folder / TEXTS
        found = read_requests(file) if file.exists() and file.stat().st_size else []
        return Texts({request.id: request for request in found}, read_replaced(folder))

    @property
    def replaced_ids(self) -> dict[str, list[str]]:
        """Id of a replaced MKV -> ids of the requests that it fulfilled."""
        return {id_: [one.id for one in requests] for id_, requests in self.replaced.items()}

    def after(
        self, held: Mapping[str, str], ledger: Ledger, new: Iterable[EditRequest] = ()
    ) -> Texts:
        """The texts after a change of the ledger.

        Args:
            held: id of each request that the ledger fulfilled before -> id of the MKV that did.
            ledger: the ledger as it is now.
            new: requests that came with the change.
        """
        entries, fulfilled = ledger.entries, ledger.fulfilled()
        again = {
            request.id: request
            for id_, requests in self.replaced.items()
            for request in requests
            if fulfilled.get(request.id) == id_
        }
        known = {**self.known, **again, **{request.id: request for request in new}}
        of_mkv = {id_: list(requests) for id_, requests in self.replaced.items()}
        for request_id, id_ in held.items():
            if request_id in self.known:
                of_mkv.setdefault(id_, []).append(self.known[request_id])
        return Texts(
            {id_: request for id_, request in known.items() if id_ in fulfilled},
            {
                id_: requests
                for id_, requests in of_mkv.items()
                if id_ in entries and not entries[id_].requests
            },
        )

    def write(self, folder: Path) -> None:
        """Write them beside a ledger; texts that are not among them are no longer there.

        Args:
            folder: of the ledger.
        """
        for file in _replaced_files(folder):
            if file.stem not in self.replaced:
                file.unlink()
        for id_, requests in self.replaced.items():
            file = folder / REPLACED / f"{id_}.jsonl"
            if not file.exists():
                make_folder(file.parent)
                write_requests(file, requests)
        if self.known:
            write_requests(folder / TEXTS, list(self.known.values()))
        else:
            (folder / TEXTS).unlink(missing_ok=True)


def read_replaced(folder: Path) -> dict[str, list[EditRequest]]:
    """`Texts.replaced` of what is beside a ledger; raises as `Texts.read`."""
    return {file.stem: read_requests(file) for file in _replaced_files(folder)}


def _replaced_files(folder: Path) -> list[Path]:
    return sorted((folder / REPLACED).glob("*.jsonl"))


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
        fulfilled = {id_ for row in rows for id_ in row["requests"]}
        check_ids(requests, Texts.read(folder), fulfilled)


def check_ids(requests: Sequence[EditRequest], texts: Texts, fulfilled: Collection[str]) -> None:
    """Check that no id names another fact than before; one with another target is corrected.

    Args:
        requests: new ones.
        texts: those of the ledger.
        fulfilled: ids of the requests that the ledger fulfils.

    Raises:
        FedEditError: an id names a fact about another subject or prompt, or one whose text is not
            known. The text that it names is quoted.
    """
    replaced = {one.id: one for group in texts.replaced.values() for one in group}
    for request in requests:
        held = request.id in fulfilled
        known = (texts.known if held else replaced).get(request.id)
        remedy = "give the new one an id of its own"
        if held:
            remedy += ", or roll the old one back first"
        if known is None and held:
            raise FedEditError(
                f"request {request.id!r}: the ledger has a fact of this id, whose text is not in "
                f"its {TEXTS}; {remedy}"
            )
        if known and (known.subject, known.prompt) != (request.subject, request.prompt):
            now = "" if held else ", which a later one has replaced"
            raise FedEditError(
                f"request {request.id!r}: this id names another fact of the ledger, "
                f"{known.text!r}{now}; {remedy}"
            )
