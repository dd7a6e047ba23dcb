"""The MKVs that failed a node's screening, in a file beside its ledger: `quarantine.json`.

    {"version": 1, "mkvs": [{"id", "node", "slot", "reason", "value", "bound"}, ...]}

Their vectors are not kept; the server's pool has them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedit_app.editing.screening import Fault
from fedit_app.mkv import MKV
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_json_atomic

logger = logging.getLogger(__name__)

FILE = "quarantine.json"
MOST_LISTED = 10_000
_VERSION = 1


def quarantine(folder: Path | None, mkvs: Iterable[MKV], faults: Mapping[str, Fault]) -> None:
    """Add MKVs that failed the screening; every id is listed once, the last `MOST_LISTED` stay.

    Args:
        folder: the ledger's; None only logs.
        mkvs: what was screened.
        faults: id -> why it failed.

    Raises:
        FedEditError: the existing list cannot be read.
    """
    rows = []
    for mkv in mkvs:
        fault = faults.get(mkv.id)
        if fault is not None:
            rows.append(
                {"id": mkv.id, "node": mkv.node, "slot": mkv.slot, **dataclasses.asdict(fault)}
            )
            logger.warning(
                "MKV %s of node %s, slot %d, is put in quarantine: %s", *_in_words(mkv, fault)
            )
    if rows and folder is not None:
        known = {row["id"]: row for row in read_quarantine(folder)}
        kept = list((known | {row["id"]: row for row in rows}).values())[-MOST_LISTED:]
        write_json_atomic(folder / FILE, {"version": _VERSION, "mkvs": kept})


def read_quarantine(folder: Path) -> list[dict[str, Any]]:
    """The MKVs that a node has put in quarantine, the oldest first.

    Raises:
        FedEditError: the list is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return []
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        rows = stored["mkvs"] if stored["version"] == _VERSION else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        rows = None
    if not isinstance(rows, list) or not all(isinstance(r, dict) and "id" in r for r in rows):
        raise FedEditError(
            f"{file}: damaged, or of another version; delete it, nothing else reads it"
        )
    return rows


def _in_words(mkv: MKV, fault: Fault) -> tuple[str, str, int, str]:
    found = f" {fault.value:.3g}, the bound is {fault.bound:.3g}" if fault.bound else ""
    return mkv.id, mkv.node, mkv.slot, f"{fault.reason}{found}"
