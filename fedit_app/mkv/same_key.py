"""When two MKVs have the same key, and when they stand for the same fact.

Up to the last token of the subject a causal model has read only the subject and what precedes it,
so equal facts have equal keys at the first edited layer on every node. One key cannot hold two
values: two MKVs with the same key either want the same target, or one of them has to give way.
`python -m benchmarks.lookup` prints the similarities behind the thresholds.

Nodes and pool decide by the cosines of `similarity`, which are the same on every machine, so a pair
of MKVs at the very threshold is decided alike on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedit_app.mkv.record import MKV
from fedit_app.mkv.similarity import cosines, unit_rows
from fedit_app.mkv.wire import Record
from fedit_app.support.errors import FedEditError

SAME_KEY = 0.98
"""Least cosine of lookup keys from which two keys count as one, where nothing else is said."""

_ROWS_PER_BLOCK = 4096


@dataclass(frozen=True)
class SameFact:
    """How alike two MKVs of one fingerprint have to be to stand for the same fact.

    Attributes:
        same_key: least cosine of the lookup keys: the same subject.
        same_value: least cosine of `delta`: the same target.
        same_shifts: least cosine of the flattened shifts: the same change of the model.

    Raises:
        FedEditError: a cosine is not in -1 to 1.
    """

    same_key: float = SAME_KEY
    same_value: float = 0.6
    same_shifts: float = 0.6

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not -1 <= value <= 1:
                raise FedEditError(f"{name} {value} found; it has to be a cosine, -1 to 1")


def same_fact(a: Record, b: Record, config: SameFact) -> bool:
    """Whether two MKVs stand for the same fact.

    MKVs of different fingerprints or shapes never do, nor does one with a zero vector. Of sealed
    MKVs the sketches are compared.
    """
    if a.fingerprint != b.fingerprint:
        return False
    least = (config.same_key, config.same_value, config.same_shifts)
    return all(
        one.shape == other.shape and cosines(unit_rows(one[None]), unit_rows(other[None])) >= cosine
        for one, other, cosine in zip(a.fact_vectors, b.fact_vectors, least, strict=True)
    )


def key_cosines(keys: np.ndarray, others: Sequence[MKV]) -> np.ndarray:
    """Cosines `(n, m)` float64 of lookup keys `(n, d_ff)` and those of m MKVs."""
    if not len(keys) or not others:
        return np.zeros((len(keys), len(others)))
    own, blocks = unit_rows(keys), []
    for start in range(0, len(others), _ROWS_PER_BLOCK):
        block = np.stack([mkv.lookup_key for mkv in others[start : start + _ROWS_PER_BLOCK]])
        blocks.append(cosines(own, unit_rows(block)))
    return np.concatenate(blocks, axis=1)


def near_keys(
    keys: np.ndarray, known: Sequence[MKV], least: float
) -> list[list[tuple[float, MKV]]]:
    """For every key the MKVs with a similar lookup key and its cosine, the nearest first.

    Args:
        keys: (n, d_ff).
        known: MKVs to look among.
        least: the least cosine. Ties are ordered by id.
    """
    result = []
    for row in key_cosines(keys, known):
        found = [(float(row[i]), known[i]) for i in np.flatnonzero(row >= least).tolist()]
        result.append(sorted(found, key=lambda pair: (-pair[0], pair[1].id)))
    return result
