"""When two MKVs stand for the same fact."""

from dataclasses import dataclass

import numpy as np

from fedit_app.mkv.record import MKV


@dataclass(frozen=True)
class SameFact:
    """Least cosines between two MKVs of one fact.

    Attributes:
        same_key: of the lookup keys (the keys at the first edited layer).
        same_value: of `delta` = v* - h0.
        same_shifts: of the shifts of all layers.
    """

    same_key: float = 0.98
    same_value: float = 0.6
    same_shifts: float = 0.6


def same_fact(a: MKV, b: MKV, same: SameFact) -> bool:
    """Whether two MKVs of one fingerprint have near-equal keys, values and shifts."""
    return (
        _cosine(a.lookup_key, b.lookup_key) >= same.same_key
        and _cosine(a.delta, b.delta) >= same.same_value
        and _cosine(a.shifts.ravel(), b.shifts.ravel()) >= same.same_shifts
    )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return round(float(a @ b) / norms, 4) if norms else 0.0
