"""What a ledger holds: accepted MKVs, and those that it does not accept again."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from fedit_app.mkv import MKV

AS_WRITTEN = ConfigDict(extra="forbid", strict=True)
"""How rows are read: every field is there, of its very type, and no other."""

MKVId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


@with_config(AS_WRITTEN)
class SignatureFields(TypedDict):
    """The signature under an MKV, see `mkv.record.Authorship`."""

    public_key: str
    signature: str


class EntryFields(TypedDict):
    """What index and journal say of an entry besides id and origin node, see `LedgerEntry`."""

    slot: int
    requests: list[str]
    overruled_by: str
    votes: int
    signature: SignatureFields | None
    warm_started: bool
    supersedes: NotRequired[list[str]]


@with_config(AS_WRITTEN)
class EntryRow(EntryFields):
    """An entry's row in the index."""

    id: MKVId
    node: str


class RefusalFields(TypedDict):
    """What index and journal say of a refusal besides id and origin node, see `Refusal`."""

    reason: str
    withdrawn: bool
    requests: list[str]


@with_config(AS_WRITTEN)
class RefusalRow(RefusalFields):
    """A refusal's row in the index."""

    id: MKVId
    node: str


@dataclass(frozen=True)
class LedgerEntry:
    """One accepted MKV.

    Attributes:
        mkv: the vectors.
        slot: time slot in which this node accepted it.
        requests: ids of the node's own requests that it fulfils; empty for what only others asked.
        overruled_by: id of the MKV about the same subject that holds in its place; empty if this
            one holds.
        votes: how many organisations are known to want it.
        warm_started: whether this node optimised its value from that of another MKV.
        supersedes: ids of the MKVs of the same key whose facts its value says as well; it holds in
            their place.
    """

    mkv: MKV
    slot: int
    requests: tuple[str, ...] = ()
    overruled_by: str = ""
    votes: int = 1
    warm_started: bool = False
    supersedes: tuple[str, ...] = ()

    def fields(self) -> EntryFields:
        """What index and journal say of it, besides id and origin node."""
        author = self.mkv.author
        signature: SignatureFields | None = None
        if author is not None:
            signature = {"public_key": author.public_key, "signature": author.signature}
        fields: EntryFields = {
            "slot": self.slot,
            "requests": list(self.requests),
            "overruled_by": self.overruled_by,
            "votes": self.votes,
            "signature": signature,
            "warm_started": self.warm_started,
        }
        if self.supersedes:
            fields["supersedes"] = list(self.supersedes)
        return fields

    @functools.cached_property
    def row(self) -> EntryRow:
        """Its row in the index: not to be changed."""
        return {"id": self.mkv.id, "node": self.mkv.node, **self.fields()}

    @staticmethod
    def of_row(row: EntryRow, mkv: MKV) -> LedgerEntry:
        """The entry of a row of the index."""
        entry = LedgerEntry(
            mkv,
            row["slot"],
            tuple(row["requests"]),
            row["overruled_by"],
            row["votes"],
            row["warm_started"],
            tuple(row.get("supersedes", ())),
        )
        vars(entry)["row"] = row
        return entry


@dataclass(frozen=True)
class Refusal:
    """An MKV that was taken out by hand and is not accepted again.

    Attributes:
        node: the node that computed it.
        reason: why.
        withdrawn: whether it is the node's own, which all others have to take out as well.
        requests: ids of own requests that stay unfulfilled as long as it is refused.
    """

    node: str
    reason: str
    withdrawn: bool = False
    requests: tuple[str, ...] = ()

    def fields(self) -> RefusalFields:
        """What index and journal say of it, besides id and origin node."""
        requests = list(self.requests)
        return {"reason": self.reason, "withdrawn": self.withdrawn, "requests": requests}

    def row(self, id_: str) -> RefusalRow:
        """Its row in the index."""
        return {"id": id_, "node": self.node, **self.fields()}

    @staticmethod
    def of_row(row: RefusalRow) -> Refusal:
        """The refusal of a row of the index."""
        return Refusal(row["node"], row["reason"], row["withdrawn"], tuple(row["requests"]))
