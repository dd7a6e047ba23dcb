"""Counts of what a pool holds, and how similar its facts are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from fedit_app.mkv import SIGNATURES, SealedMKV
from fedit_app.mkv.similarity import cosines, unit_rows
from fedit_app.pool.pool import MKVPool

_SAMPLE = 1000
_EDGES = np.linspace(-1, 1, 21)


@dataclass
class Overview:
    """Numbers of MKVs and facts in a pool. A fact is counted by its canonical MKV.

    Attributes:
        slots: node -> slot -> number of MKVs.
        facts: node -> number of facts.
        mkvs_by_fingerprint: fingerprint -> number of MKVs.
        facts_by_fingerprint: fingerprint -> number of facts.
        shared: number of MKVs that more than one node has uploaded.
    """

    slots: dict[str, Counter[int]] = field(default_factory=dict)
    facts: Counter[str] = field(default_factory=Counter)
    mkvs_by_fingerprint: Counter[str] = field(default_factory=Counter)
    facts_by_fingerprint: Counter[str] = field(default_factory=Counter)
    shared: int = 0


def overview(pool: MKVPool) -> Overview:
    """Count what a pool holds, in one pass that reads no payload."""
    found = Overview()
    for row in pool.rows(["id", "node", "nodes", "slot", "fingerprint", "fact"]):
        canonical = row["id"] == row["fact"]
        found.slots.setdefault(row["node"], Counter())[row["slot"]] += 1
        found.facts[row["node"]] += canonical
        found.mkvs_by_fingerprint[row["fingerprint"]] += 1
        found.facts_by_fingerprint[row["fingerprint"]] += canonical
        found.shared += len(row["nodes"]) > 1
    return found


@dataclass(frozen=True)
class CosineHistogram:
    """The cosines between the facts of one fingerprint, as a histogram.

    Attributes:
        facts: number of facts.
        drawn: number of facts of which all pairs were compared.
        bins: lower and upper edge of each bin, from the first to the last that is not empty.
        shares: signature -> share of the pairs in each bin.
        error: standard error of a cosine of sketches; 0 if the MKVs are not sealed.
    """

    facts: int
    drawn: int
    bins: list[tuple[float, float]]
    shares: dict[str, list[float]]
    error: float


def cosine_histogram(pool: MKVPool, fingerprint: str, seed: int) -> CosineHistogram | None:
    """Compare the canonical MKVs of a fingerprint, all or a sample of 1,000.

    Args:
        pool: the pool.
        fingerprint: the fingerprint; MKVs of different ones cannot be compared.
        seed: seed of the sample.

    Returns:
        The histogram, or None if there are fewer than two MKVs.
    """
    ids = sorted(
        row["id"]
        for row in pool.rows(["id", "fact", "fingerprint"])
        if row["fact"] == row["id"] and row["fingerprint"] == fingerprint
    )
    if len(ids) < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(ids))[:_SAMPLE]
    mkvs = pool.fetch([ids[i] for i in order])
    shares = {}
    for kind in SIGNATURES:
        units = unit_rows(np.array([mkv.signature(kind) for mkv in mkvs]))
        values = np.clip(cosines(units, units)[np.triu_indices(len(units), 1)], -1, 1)
        shares[kind] = np.histogram(values, _EDGES)[0] / len(values)
    used = np.flatnonzero(sum(shares.values()))
    bins = slice(used[0], used[-1] + 1)
    return CosineHistogram(
        facts=len(ids),
        drawn=len(mkvs),
        bins=list(zip(_EDGES[:-1][bins].tolist(), _EDGES[1:][bins].tolist(), strict=True)),
        shares={kind: found[bins].tolist() for kind, found in shares.items()},
        error=units.shape[1] ** -0.5 if isinstance(mkvs[0], SealedMKV) else 0.0,
    )


def sealed_count(pool: MKVPool) -> int:
    """Number of sealed MKVs in a pool without damage. All MKVs of a fingerprint are, or none."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for row in pool.rows(["id", "fingerprint"]):
        counts[row["fingerprint"]] += 1
        first.setdefault(row["fingerprint"], row["id"])
    found = pool.fetch(list(first.values()))
    return sum(counts[mkv.fingerprint] for mkv in found if isinstance(mkv, SealedMKV))
