"""Which MKVs of the others a node receives: selection policies over cosine similarities."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fedit_app.mkv.record import check_signature
from fedit_app.mkv.similarity import BestFirst, Sieve, cosines, unit_rows
from fedit_app.pool.blocks import SignatureBlock, check_width, stacked
from fedit_app.support.errors import FedEditError

Blocks = Callable[[], Iterable[SignatureBlock]]


def majority(cosine: np.ndarray, threshold: float) -> np.ndarray:
    """Accepts what at least half of the own MKVs exceed `threshold` with; ranks by mean cosine.

    The policy of FedEdit (arXiv 2502.15677, section 4, re-editing stage).
    """
    accepted = 2 * (cosine > threshold).sum(axis=0) >= max(len(cosine), 1)
    return np.where(accepted, _mean(cosine), -np.inf)


def top_k(cosine: np.ndarray, threshold: float) -> np.ndarray:
    """Ranks by the highest cosine with any own MKV; `select` then keeps the `k` best."""
    highest: np.ndarray = cosine.max(axis=0, initial=-np.inf)
    return highest


def everything(cosine: np.ndarray, threshold: float) -> np.ndarray:
    """Accepts every candidate; ranks by mean cosine."""
    return _mean(cosine)


def nothing(cosine: np.ndarray, threshold: float) -> np.ndarray:
    """Accepts no candidate: the node keeps to its own edits."""
    return np.full(cosine.shape[1], -np.inf)


# (cosines (m own, b candidates), threshold) -> scores (b,); -inf: not accepted. No score may fall
# when a cosine rises: candidates are left out by upper bounds of their cosines (see `Sieve`).
POLICIES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "majority": majority,
    "top-k": top_k,
    "all": everything,
    "none": nothing,
}


@dataclass(frozen=True)
class SelectionConfig:
    """How MKVs of others are selected.

    Attributes:
        policy: one of `POLICIES`.
        signature: the vector that is compared: `v_star` (the paper's), `delta` or `key`.
        centred: whether the pool's mean signature is subtracted first. Raw `v_star` share a large
            common direction, so that nearly everything looks similar to everything.
        threshold: the cosine above which `majority` counts two MKVs as similar, -1 to 1.
        k: how many MKVs `top-k` keeps, >= 1.

    Raises:
        FedEditError: a field is out of its range.
    """

    policy: str
    signature: str
    centred: bool
    threshold: float
    k: int

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise FedEditError(
                f"selection policy {self.policy!r} found; it has to be one of {', '.join(POLICIES)}"
            )
        check_signature(self.signature)
        if not -1 <= self.threshold <= 1:
            raise FedEditError(f"selection threshold {self.threshold} found; it is -1 to 1")
        if self.k < 1:
            raise FedEditError(f"selection k {self.k} found; it has to be at least 1")


@dataclass(frozen=True, slots=True)
class Ranked:
    """A selected MKV and its score, by which the ranking is ordered."""

    id: str
    score: float


def select(
    own: Mapping[str, np.ndarray],
    blocks: Blocks,
    config: SelectionConfig,
    exclude_ids: Mapping[str, Collection[str]] | None = None,
) -> dict[str, list[Ranked]]:
    """Ranks the pool's MKVs for every node, best first, ties by id, in one pass over the pool.

    The result depends on the contents of the pool only, not on the order or size of the blocks,
    and is for each node the same as if it were asked alone.

    Args:
        own: node -> `(m, d)`, the raw signatures of its own MKVs. With `m == 0` only the policy
            `all` selects anything, with scores 0.
        blocks: gives a fresh pass over the pool's signatures at each call, as
            `lambda: pool.blocks(config.signature, fingerprint)` does.
        exclude_ids: node -> MKVs that take no part for it, such as those it holds already. What is
            excluded still counts in the pool's mean.

    Returns:
        node -> its ranking.

    Raises:
        FedEditError: an `own` is not as wide as the blocks.
    """
    raw, parts = stacked({node: unit_rows(rows) for node, rows in own.items()})
    mean = _pool_mean(blocks()) if config.centred and len(raw) else None
    if mean is not None:
        check_width(raw, len(mean))
    units = _centred(raw, mean)
    policy, excluded = POLICIES[config.policy], exclude_ids or {}
    best = {node: BestFirst(config.k if config.policy == "top-k" else None) for node in own}
    sieve = Sieve(units)

    def scored(node: str, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = policy(cosine[parts[node]], config.threshold)
        return scores, (scores > -np.inf) & (scores >= best[node].floor)

    def matters(upper: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.any([scored(node, upper)[1] for node in own], axis=0)
        return found

    for block in blocks() if own else ():
        if len(units):
            check_width(units, block.vectors.shape[1])
        for piece in block.pieces(len(units)):
            vectors = _centred(piece.vectors, mean)
            kept = sieve.kept(vectors, matters) if len(units) else np.arange(len(vectors))
            cosine = cosines(units.reshape(-1, vectors.shape[1]), vectors[kept])
            for node in own:
                scores, wanted = scored(node, cosine)
                rows = np.flatnonzero(wanted)
                rows = rows[piece.others(kept[rows], excluded.get(node, ()))]
                best[node].offer([piece.ids[row] for row in kept[rows]], scores[rows])
    return {node: [Ranked(*found) for found in one.ranking()] for node, one in best.items()}


def _mean(cosine: np.ndarray) -> np.ndarray:
    """The mean over the own MKVs `(b,)`, 0 if there are none.

    Adds row by row: `ndarray.sum` picks an order, and so a rounding, that depends on `b`.
    """
    return sum(cosine, start=np.zeros(cosine.shape[1])) / max(len(cosine), 1)


def _pool_mean(blocks: Iterable[SignatureBlock]) -> np.ndarray | None:
    """The mean `(d,)` of all signatures, None of none; its sum is exact (see `similarity`)."""
    total, count = np.zeros(()), 0
    for block in blocks:
        total = total + block.vectors.astype(np.float64).sum(axis=0)
        count += len(block.ids)
    return total / count if count else None


def _centred(units: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    return units if mean is None else unit_rows(units - mean)
