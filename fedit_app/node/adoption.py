"""Taking over what was edited into a model before its organisation joined a federation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedit_app.facts.jsonl import read_requests
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.edited_model import TEXTS, ledger_in
from fedit_app.ledger.index import read_index
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV
from fedit_app.mkv.same_key import near_keys
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)


def texts_of(folder: Path, place: str) -> Path:
    """The file of the requests of an edited model, which lies in the folder of its ledger.

    Args:
        folder: the edited model's.
        place: where the folder is named, for errors.

    Raises:
        FedEditError: the folder is not one that `fedit edit` has written, with its ledger.
    """
    ledger = ledger_in(folder)
    if ledger is None or not (ledger / TEXTS).is_file():
        raise FedEditError(
            f"{place} {folder}: no edited model with its ledger; give the folder that "
            "`fedit edit MODEL FILE --output DIR` has made"
        )
    return ledger / TEXTS


def adopt(
    folder: Path,
    ledger: Ledger,
    requests: Sequence[EditRequest],
    same_key: float,
    node: str,
    slot: int,
) -> list[MKV]:
    """Accept the MKVs of an edited model that fulfil requests, as the node's own of this slot.

    An MKV whose facts are not all asked for, or whose key the node's ledger holds for requests
    already, is left out: its facts are learned.

    Args:
        folder: the edited model's.
        ledger: the node's, inside a step of it.
        requests: those that nothing fulfils yet.
        same_key: least cosine of two keys that count as one.
        node: the node's name.
        slot: the time slot.

    Raises:
        FedEditError: the folder holds no edited model, or it is damaged.
    """
    if not requests:
        return []
    texts = texts_of(folder, "ledger")
    source = texts.parent
    made_with = read_index(source)["fingerprint"]
    if made_with != ledger.fingerprint:
        logger.warning(
            "node %s: the facts of %s are computed again: its fingerprint is %s, this run's is %s "
            "(another model, or other settings)",
            node,
            folder,
            made_with,
            ledger.fingerprint,
        )
        return []
    facts = {request.id: request.fact for request in read_requests(texts)}
    wanted: dict[tuple[str, str, str], list[str]] = {}
    for request in requests:
        wanted.setdefault(request.fact, []).append(request.id)
    fulfils: dict[str, list[str]] = {}
    fitting: list[MKV] = []
    for id_, entry in sorted(Ledger.open(source, ledger.fingerprint).entries.items()):
        said = {facts.get(request) for request in entry.requests}
        if said and said <= wanted.keys() and not entry.overruled_by:
            fitting.append(dataclasses.replace(entry.mkv, node=node, slot=slot))
            fulfils[id_] = sorted(one for fact in said if fact for one in wanted[fact])
    if not fitting:
        return []
    own = [entry.mkv for entry in ledger.entries.values() if entry.requests]
    taken = near_keys(np.stack([mkv.lookup_key for mkv in fitting]), own, same_key)
    found = [mkv for mkv, near in zip(fitting, taken, strict=True) if not near]
    ledger.accept(found, slot, {mkv.id: fulfils[mkv.id] for mkv in found})
    logger.info("node %s, slot %d: %d MKVs taken over from %s", node, slot, len(found), folder)
    return found
