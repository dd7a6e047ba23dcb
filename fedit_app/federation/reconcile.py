"""Which MKVs are about the same subject, and what a node makes of that.

Up to the subject's last token a causal model has read only the subject and what stands before it,
so equal facts have equal keys at the first edited layer on every node. Measured on the demo's 60
requests (SmolLM2-135M): equal facts have key cosine 1.00, different ones at most 0.77; equal
subjects with the same target have a cosine of v* - h0 of 1.00, with another target 0.19 and 0.28.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedit_app.editing.ledger import Ledger
from fedit_app.mkv import MKV

SAME_VALUE = 0.6


@dataclass(frozen=True)
class Conflict:
    """Two MKVs about one subject that want different targets.

    Attributes:
        own: id of the one that holds (or of the request that it is for).
        other: id of the one that gave way.
    """

    own: str
    other: str


@dataclass(frozen=True)
class Verdict:
    """Why a served MKV is not accepted.

    Attributes:
        reason: known (in the ledger already), duplicate (same subject, same value), conflict
            (same subject, another value) or shape.
        conflict: the two ids, for a conflict.
    """

    reason: str
    conflict: Conflict | None = None


def near_keys(keys: np.ndarray, known: Sequence[MKV], threshold: float) -> list[list[MKV]]:
    """For every key the MKVs whose lookup key is about the same, the nearest first, ties by id.

    Args:
        keys: (n, d_ff).
        known: MKVs to look among.
        threshold: least cosine.
    """
    if not known:
        return [[] for _ in keys]
    cosines = _unit(keys) @ _unit(np.stack([mkv.lookup_key for mkv in known])).T
    result = []
    for row in cosines:
        near = [
            (-round(float(row[i]), 4), known[i].id, i) for i in np.flatnonzero(row >= threshold)
        ]
        result.append([known[i] for _, _, i in sorted(near)])
    return result


def judge(
    offered: Sequence[MKV], ledger: Ledger, shapes: tuple[int, int, int], threshold: float
) -> list[Verdict | None]:
    """Decide on every served MKV in turn; None accepts it.

    Args:
        offered: MKVs, the most similar first.
        ledger: what the node has accepted so far.
        shapes: number of edited layers, d_ff and d_model of this model.
        threshold: cosine of lookup keys from which two MKVs are about the same subject.
    """
    known = [entry.mkv for entry in ledger.entries.values()]
    fitting = [mkv for mkv in offered if _shapes(mkv) == shapes]
    mkvs = {mkv.id: mkv for mkv in [*known, *fitting]}
    place = {id_: number for number, id_ in enumerate(mkvs)}
    keys = _unit(np.array([mkv.lookup_key for mkv in mkvs.values()], np.float32))
    held = np.zeros(len(mkvs), bool)
    held[: len(known)] = True
    verdicts: list[Verdict | None] = []
    for mkv in offered:
        if _shapes(mkv) != shapes:
            verdicts.append(Verdict("shape"))
            continue
        own = place[mkv.id]
        near = [] if held[own] else np.flatnonzero(held & (keys @ keys[own] >= threshold))
        if held[own]:
            verdicts.append(Verdict("known"))
        elif len(near):
            verdicts.append(_compare(mkv, [list(mkvs.values())[i] for i in near]))
        else:
            verdicts.append(None)
            held[own] = True
    return verdicts


def _compare(mkv: MKV, near: Sequence[MKV]) -> Verdict:
    """What an MKV is beside those about the same subject: a duplicate of one, or in conflict."""
    delta = _unit(mkv.delta)
    if any(float(delta @ _unit(other.delta)) >= SAME_VALUE for other in near):
        return Verdict("duplicate")
    return Verdict("conflict", Conflict(min(other.id for other in near), mkv.id))


def _shapes(mkv: MKV) -> tuple[int, int, int]:
    return (*mkv.keys.shape, mkv.shifts.shape[1])


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
