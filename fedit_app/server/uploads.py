"""Checks of what a node uploads."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fedit_app.mkv import Record
from fedit_app.support.errors import FedEditError


def check_amount(count: int, most: int) -> None:
    """Raises FedEditError for an upload of more MKVs than a node may make in a slot."""
    if count > most:
        raise FedEditError(
            f"uploaded {count} MKVs, the run takes {most} from a node in a slot, so it takes none "
            "of them; lower requests-per-slot, or raise max-uploads-per-slot"
        )


def check_again(again: Collection[str], asked: Collection[str]) -> None:
    """Raises FedEditError for MKVs of earlier slots that a node was not asked for."""
    unasked = set(again).difference(asked)
    if unasked:
        raise FedEditError(f"uploaded MKV {min(unasked)} again, which it was not asked for")


def check_origin(name: str, slot: int, mkvs: Sequence[Record], again: Collection[str] = ()) -> None:
    """Raises FedEditError for an upload that is not a node's own, or of a slot to come."""
    for mkv in mkvs:
        if mkv.node != name or (mkv.slot > slot and mkv.id not in again):
            raise FedEditError(
                f"uploaded MKV {mkv.id} says it is of node {mkv.node!r}, slot {mkv.slot}"
            )
