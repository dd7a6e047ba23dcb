"""Taking MKVs out of a ledger, as if they had never been in it.

For the weights, dropping an MKV is exact (see `Ledger.holding`). Its effects on the other MKVs are
undone here as well: own requests go back to the MKV that fulfilled them before, those that it had
replaced are fulfilled again, and the MKVs that it overruled are settled again among themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from fedit_app.config.run_config import RunConfig
from fedit_app.ledger.conflicts import settle
from fedit_app.ledger.entries import LedgerEntry
from fedit_app.ledger.journal import Record
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv.same_key import SameFact

logger = logging.getLogger(__name__)


def take_out(
    ledger: Ledger,
    ids: Collection[str],
    history: Iterable[Record],
    config: RunConfig,
    refusal: str = "",
    author: str = "",
    replaced: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> None:
    """Take MKVs out of a ledger, inside a step of the ledger.

    Args:
        ledger: the ledger, or a copy of it in memory.
        ids: MKVs of it.
        history: the records of its journal.
        config: the run configuration: how conflicts are settled.
        refusal: why they are not accepted again; "": they may be.
        author: the ledger's node. Its own MKVs are withdrawn if they are refused, with the requests
            that they fulfil; "": none are.
        replaced: id of an MKV that another one has superseded -> the own requests that it fulfilled
            then. It fulfils them again when it holds again.
    """
    gone, entries = set(ids), ledger.entries
    again = _no_longer_superseded(entries, gone) & replaced.keys()
    own = {id_ for id_ in gone if refusal and author and entries[id_].mkv.node == author}
    lost = {request for id_ in gone - own for request in entries[id_].requests}
    older = {old for id_ in again for old in entries[id_].supersedes}
    back = _earlier_holders(history, lost, entries.keys() - gone - older)
    freed = [id_ for id_, entry in entries.items() if entry.overruled_by in gone]
    if refusal:
        ledger.refuse(sorted(gone - own), refusal)
        ledger.refuse(sorted(own), "withdrawn", withdrawn=True)
    else:
        ledger.drop(gone)
    for request, id_ in sorted(back.items()):
        ledger.accept([entries[id_].mkv], entries[id_].slot, {id_: [request]})
    for id_ in sorted(again):
        still_held = ledger.fulfilled()
        asked = [request for request in replaced[id_] if request not in still_held]
        ledger.accept([entries[id_].mkv], entries[id_].slot, {id_: asked})
    changed = [id_ for id_ in [*freed, *back.values(), *again] if id_ in entries]
    settle(ledger, changed, config.conflict_policy, SameFact(same_key=config.same_key_threshold))


def _no_longer_superseded(entries: Mapping[str, LedgerEntry], gone: Collection[str]) -> set[str]:
    """Ids of the MKVs that some of those that go supersede, and none of those that stay."""
    by_gone = {old for id_ in gone for old in entries[id_].supersedes}
    by_rest = {old for id_ in entries.keys() - gone for old in entries[id_].supersedes}
    return by_gone & entries.keys() - by_rest - set(gone)


def _earlier_holders(
    history: Iterable[Record], requests: Collection[str], ids: Collection[str]
) -> dict[str, str]:
    """Request -> id of the one of some MKVs that fulfilled it last."""
    found = {}
    for record in history:
        for request in record["set"].get("requests", ()):
            if request in requests and record["mkv"] in ids:
                found[request] = record["mkv"]
    return found


def take_withdrawn(
    ledger: Ledger,
    node: str,
    withdrawn: Mapping[str, Collection[str]],
    slot: int,
    config: RunConfig,
) -> None:
    """Take out MKVs that their authors have withdrawn; other nodes cannot withdraw them.

    Args:
        ledger: the node's.
        node: its name; MKVs that it has computed itself stay.
        withdrawn: id -> names of the nodes that have withdrawn it, as the server says.
        slot: the time slot.
        config: the run configuration.
    """
    authors: dict[str, list[str]] = {}
    for id_ in sorted(withdrawn.keys() & ledger.entries.keys()):
        author = ledger.entries[id_].mkv.node
        if author == node or author not in withdrawn[id_]:
            names = ", ".join(map(repr, sorted(withdrawn[id_])))
            logger.warning(
                "node %s: MKV %s of node %r is not taken out; withdrawn by %s",
                *(node, id_, author, names),
            )
        else:
            authors.setdefault(author, []).append(id_)
    for author, ids in authors.items():
        history = ledger.history()
        with ledger.step(f"withdrawn by {author}", slot):
            take_out(ledger, ids, history, config)
        logger.info("node %s: took out %d MKVs that %s has withdrawn", node, len(ids), author)
