"""`fedit ledger verify`: whether a ledger is what its journal says that it became."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedit_app.cli.places import Place
from fedit_app.ledger import journal
from fedit_app.ledger.journal import Head, Record
from fedit_app.ledger.ledger import JOURNAL, read_index, read_mkv
from fedit_app.mkv.authorship import is_signed_by
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import byte_size, plural, printable

_MOST_DAMAGES = 20


def verify(place: Place, known_head: str = "") -> tuple[str, bool]:
    """Check all of a ledger: what is to be said, and whether it is sound.

    Args:
        place: where the ledger is.
        known_head: a hash that was the journal's head before; the chain has to contain it.
    """
    index = read_index(place.ledger)
    damages = [printable(text) for text in _damages(place.ledger, index, known_head)]
    counts = f"{plural(len(index['entries']), 'MKV')}, {index['journal']['records']:,} records"
    lines = damages[:_MOST_DAMAGES]
    if len(damages) > _MOST_DAMAGES:
        lines.append(f"... and {len(damages) - _MOST_DAMAGES:,} more")
    left = journal.surplus(place.ledger / JOURNAL, Head(**index["journal"]))
    if left:
        lines.append(
            f"note: {byte_size(left)} in the journal lie behind the head that the index names: a "
            "change that was interrupted (the next one cuts it off), or an index from before"
        )
    if damages:
        lines.append(
            f"the ledger is damaged: {plural(len(damages), 'finding')}; take a copy from before "
            "back"
        )
    else:
        lines.append(f"{counts} checked: the ledger is sound\nhead {index['journal']['hash']}")
    return "\n".join(lines) + "\n", not damages


def _damages(folder: Path, index: Mapping[str, Any], known_head: str) -> Iterator[str]:
    records: list[Record] = []
    for found in journal.examined(folder / JOURNAL, Head(**index["journal"]), index["fingerprint"]):
        if isinstance(found, str):
            yield found
        else:
            records.append(found)
    hashes = {record["hash"] for record in records}
    if known_head and known_head not in hashes:
        yield (
            f"--head {known_head}: no record of the journal has this hash; the journal is not a "
            "continuation of the one that had"
        )
    yield from _against_journal(index, records)
    for row in index["entries"]:
        yield from _against_file(folder, row, index["fingerprint"])


def _against_journal(index: Mapping[str, Any], records: list[Record]) -> Iterator[str]:
    try:
        replayed = journal.replay(records)
    except (KeyError, TypeError) as error:
        yield f"ledger journal: it changes MKV {error}, which it has not accepted"
        return
    for part, expected in zip(("entries", "refused"), replayed, strict=True):
        found = {row["id"]: row for row in index[part]}
        if len(found) < len(index[part]):
            yield f"ledger index: an id stands twice in {part}"
        for id_ in sorted(found.keys() | expected.keys()):
            if id_ not in expected:
                yield f"MKV {id_}: in the index ({part}), but not by the journal"
            elif id_ not in found:
                yield f"MKV {id_}: by the journal in the index ({part}), but not there"
            elif found[id_] != expected[id_]:
                fields = found[id_].keys() | expected[id_].keys()
                differ = [f for f in sorted(fields) if found[id_].get(f) != expected[id_].get(f)]
                yield f"MKV {id_}: the index has another {', '.join(differ)} than the journal"


def _against_file(folder: Path, row: Mapping[str, Any], fingerprint: str) -> Iterator[str]:
    """The file decodes, its content has the hash that is its id, and it is of the same node."""
    try:
        mkv = read_mkv(folder, row["id"])
    except FedEditError as error:
        yield f"MKV {row['id']}: {error}"
        return
    if mkv.fingerprint != fingerprint:
        yield f"MKV {row['id']}: its file is of another fingerprint, {mkv.fingerprint}"
    if mkv.node != row["node"]:
        yield f"MKV {row['id']}: its file names node {mkv.node!r}, the index {row['node']!r}"
    if (vars(mkv.author) if mkv.author else None) != row["signature"]:
        yield f"MKV {row['id']}: its file has another signature than the index"
    if mkv.author and not is_signed_by(mkv, [mkv.author.public_key]):
        yield f"MKV {row['id']}: what it carries is not a signature of this MKV"
