"""What a ledger holds: accepted MKVs, and those that it is not to take again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedit_app.mkv import MKV

_ID = re.compile(r"[0-9a-f]{32}")
_ROW = {"id": str, "node": str, "slot": int, "requests": list, "overruled_by": str, "votes": int}
_ROW |= {"warm_started": bool}
_REFUSAL = {"id": str, "node": str, "reason": str, "withdrawn": bool, "requests": list}


@dataclass(frozen=True)
class LedgerEntry:
    """One accepted MKV.

    Attributes:
        mkv: the vectors.
        slot: time slot in which this node accepted it.
        requests: ids of the node's own requests that it fulfils; empty for what only others asked.
        overruled_by: id of the MKV about the same subject that holds in its stead; empty if this
            one holds.
        votes: how many organisations are known to want it.
        warm_started: whether this node optimised its value from that of another MKV.
    """

    mkv: MKV
    slot: int
    requests: tuple[str, ...] = ()
    overruled_by: str = ""
    votes: int = 1
    warm_started: bool = False

    def fields(self) -> dict[str, Any]:
        """What the index and the journal say of it, besides id and origin node."""
        return {
            "slot": self.slot,
            "requests": list(self.requests),
            "overruled_by": self.overruled_by,
            "votes": self.votes,
            "signature": vars(self.mkv.author) if self.mkv.author else None,
            "warm_started": self.warm_started,
        }

    def row(self) -> dict[str, Any]:
        """Its row in the index."""
        return {"id": self.mkv.id, "node": self.mkv.node, **self.fields()}

    @staticmethod
    def of_row(row: Mapping[str, Any], mkv: MKV) -> LedgerEntry:
        """The entry that a row of the index stands for."""
        return LedgerEntry(
            mkv,
            row["slot"],
            tuple(row["requests"]),
            row["overruled_by"],
            row["votes"],
            row["warm_started"],
        )


@dataclass(frozen=True)
class Refusal:
    """An MKV that was taken out by hand and is not to come back.

    Attributes:
        node: the node that computed it.
        reason: why.
        withdrawn: whether it is the node's own, which all others are to take out as well.
        requests: ids of own requests that stay unfulfilled as long as it is refused.
    """

    node: str
    reason: str
    withdrawn: bool = False
    requests: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """What the index and the journal say of it, besides id and origin node."""
        requests = list(self.requests)
        return {"reason": self.reason, "withdrawn": self.withdrawn, "requests": requests}

    @staticmethod
    def of_row(row: Mapping[str, Any]) -> Refusal:
        """The refusal that a row of the index stands for."""
        return Refusal(row["node"], row["reason"], row["withdrawn"], tuple(row["requests"]))


def are_rows(rows: object) -> bool:
    """Whether something read from a file can be the rows of a ledger's entries."""
    return isinstance(rows, list) and all(
        _has(row, _ROW, "signature") and _is_signature(row["signature"]) for row in rows
    )


def are_refusals(rows: object) -> bool:
    """Whether something read from a file can be the rows of a ledger's refusals."""
    return isinstance(rows, list) and all(_has(row, _REFUSAL) for row in rows)


def _has(row: object, kinds: Mapping[str, type], *more: str) -> bool:
    return (
        isinstance(row, dict)
        and row.keys() == {*kinds, *more}
        and all(type(row[name]) is kind for name, kind in kinds.items())
        and all(isinstance(request, str) for request in row["requests"])
        and bool(_ID.fullmatch(row["id"]))
    )


def _is_signature(value: object) -> bool:
    return value is None or (
        isinstance(value, dict)
        and value.keys() == {"public_key", "signature"}
        and all(isinstance(part, str) for part in value.values())
    )
