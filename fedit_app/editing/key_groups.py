"""Which requests have one key, and so share one value."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from fedit_app.mkv.similarity import cosines, unit_rows


def key_groups(keys: np.ndarray, same_key: float) -> list[list[int]]:
    """Numbers of the requests of each key, connected by near-equal lookup keys.

    Args:
        keys: (n, d_ff) lookup keys.
        same_key: least cosine from which two keys count as one.

    Returns:
        The groups in the order of their first requests, each in rising order.
    """
    if not len(keys):
        return []
    units = unit_rows(keys)
    near = csr_array(cosines(units, units) >= same_key)
    _, labels = connected_components(near, directed=False)
    groups: dict[int, list[int]] = {}
    for number, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(number)
    return list(groups.values())
