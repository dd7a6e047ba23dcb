"""What the messages of open and of sealed MKVs have in common, and the checks of it.

Messages come from other organisations: a decoder accepts exactly what its encoder writes and
answers everything else with a FedEditError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict, cast

import numpy as np

from fedit_app.support.errors import FedEditError

MAX_MKVS = 100_000
# Of one MKV as a file: more than the largest vectors (`MAX_ELEMENTS`) and names need.
MAX_MKV_BYTES = 64 * 2**20
COMMON_FIELDS = ("fingerprint", "precision")

Arrays = dict[str, np.ndarray]


class Meta(TypedDict, total=False):
    """What a message says beside its arrays; lists have an entry for every MKV.

    Attributes:
        fingerprint: of all MKVs.
        ids, nodes, slots: of each MKV.
        precision: of all MKVs; open ones only.
        authors: public key and signature, or nothing; only if an open MKV is signed.
        sizes: of the payloads, in bytes; sealed ones only.
    """

    fingerprint: str
    ids: list[str]
    nodes: list[str]
    slots: list[int]
    precision: str
    authors: list[list[str]]
    sizes: list[int]


def check_meta(
    meta: object, wanted: tuple[str, ...], optional: str, is_id: Callable[[object], bool], told: str
) -> Meta:
    """The `Meta` of a message. What single nodes and slots are is not checked here.

    Args:
        meta: as sent.
        wanted: the fields that it has to have.
        optional: a field that it may have.
        is_id: whether something is an id.
        told: how an error begins.

    Raises:
        FedEditError: a field is missing, unknown or no list, the lists differ in length or are
            empty or too long, or an id is none or occurs twice.
    """
    if not isinstance(meta, Mapping) or set(meta) - {optional} != set(wanted):
        raise FedEditError(f"{told}: what is beside the arrays has to be {', '.join(wanted)}")
    lists = [name for name in meta if name not in COMMON_FIELDS]
    if not all(isinstance(meta[name], list) for name in lists):
        raise FedEditError(f"{told}: {', '.join(lists)} have to be lists")
    lengths = {name: len(meta[name]) for name in lists}
    n = lengths["ids"]
    if len(set(lengths.values())) > 1 or not 1 <= n <= MAX_MKVS:
        raise FedEditError(
            f"{told}: lists of lengths {lengths} found; they have to be of one length, 1 to "
            f"{MAX_MKVS}"
        )
    if not all(map(is_id, meta["ids"])) or len(set(meta["ids"])) < n:
        raise FedEditError(f"{told}: the ids have to be 32 hex digits, each of them once")
    return cast(Meta, meta)


def check_types(
    arrays: Mapping[str, np.ndarray], wanted: Mapping[str, np.dtype], told: str
) -> None:
    """Check that a message has the wanted arrays, of the wanted types.

    Args:
        arrays: those of the message.
        wanted: name -> type.
        told: how an error begins.

    Raises:
        FedEditError: one is missing, too much, or of another type.
    """
    if not isinstance(arrays, Mapping) or set(arrays) != set(wanted):
        raise FedEditError(f"{told}: the arrays have to be {', '.join(wanted)}")
    for name, dtype in wanted.items():
        if not isinstance(arrays[name], np.ndarray) or arrays[name].dtype != dtype:
            found = getattr(arrays[name], "dtype", type(arrays[name]).__name__)
            raise FedEditError(f"{told}, array `{name}`: {found} found; it has to be {dtype}")
