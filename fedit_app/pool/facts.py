"""The canonical MKV among the MKVs of the same fact.

Several nodes may compute an MKV for one fact independently. The pool serves one of them, the
canonical one; the others are folded under it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from fedit_app.mkv.same_key import SameFact, same_fact
from fedit_app.mkv.similarity import unit_rows
from fedit_app.mkv.wire import Record
from fedit_app.pool.blocks import MOST_ROWS, SignatureBlock
from fedit_app.pool.nearest import Match, nearest


def near_keys(
    mkvs: Sequence[Record], blocks: Iterable[SignatureBlock], same_key: float
) -> list[list[Match]]:
    """For every MKV the candidates with a key cosine of at least `same_key`, the nearest first."""
    keys = {"": np.stack([mkv.signature("key") for mkv in mkvs])}
    return nearest(keys, blocks, same_key, None)[""]


def assign_facts(
    new: Sequence[Record],
    pooled: Sequence[Sequence[Match]],
    canonical: Mapping[str, Record],
    config: SameFact,
) -> dict[str, str]:
    """The id of the MKV that stands for the fact of each new MKV.

    Args:
        new: MKVs of one fingerprint that the pool does not hold.
        pooled: per new MKV the canonical MKVs of the pool with near lookup keys, from `near_keys`.
        canonical: these pooled MKVs by id.
        config: when two MKVs are the same fact.

    Returns:
        id -> the id of the most similar canonical MKV (by lookup key, ties by id) of the same
        fact, or its own. New MKVs are processed by (slot, id), not in the order of `new`.
    """
    known, facts = dict(canonical), {}
    near = {
        mkv.id: sorted([*in_pool, *in_batch], key=lambda match: (-match.cosine, match.id))
        for mkv, in_pool, in_batch in zip(
            new, pooled, near_keys(new, _as_blocks(new), config.same_key), strict=True
        )
    }
    for mkv in sorted(new, key=lambda mkv: (mkv.slot, mkv.id)):
        candidates = (known[match.id] for match in near[mkv.id] if match.id in known)
        same = (other.id for other in candidates if same_fact(mkv, other, config))
        facts[mkv.id] = next(same, mkv.id)
        if facts[mkv.id] == mkv.id:
            known[mkv.id] = mkv
    return facts


def _as_blocks(mkvs: Sequence[Record]) -> Iterator[SignatureBlock]:
    for start in range(0, len(mkvs), MOST_ROWS):
        part = mkvs[start : start + MOST_ROWS]
        yield SignatureBlock(
            ids=[mkv.id for mkv in part],
            nodes=[mkv.node for mkv in part],
            slots=[mkv.slot for mkv in part],
            vectors=unit_rows(np.stack([mkv.signature("key") for mkv in part])),
        )
