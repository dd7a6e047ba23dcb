"""Selection policies: the MKVs of others that a node receives, by cosine similarity."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fedit_app.mkv.record import check_signature
from fedit_app.mkv.similarity import BestFirst, Sieve, cosines, unit_rows
from fedit_app.pool.blocks import SignatureBlock, check_width, stacked
from fedit_app.support.errors import FedEditError

Blocks = Callable[[], Iterable[SignatureBlock]]


def majority(cosine: np.ndarray, threshold: float) -> np.ndarray:
    """Accept a candidate if its cosine with at least half of the own MKVs exceeds `threshold`.

    The policy of FedEdit (arXiv 2502.15677, section 4, re-editing stage). Ranks by mean cosine.
    """
    accepted = 2 * (cosine > threshold).sum(axis=0) >= max(len(cosine), 1)
    return np.where(accepted, _mean(cosine), -np.inf)


def top_k(cosine: np.ndarray, threshold: float) -> np.ndarray:
    """Rank by the highest cosine with any own MKV; `select` keeps the `k` best."""
    highest: np.ndarray = cosine.max(axis=0, initial=-np.inf)
    return highest


def everything(cosine: np.ndarray, threshold: float) -> np.ndarray:
    """Accept every candidate; rank by mean cosine."""
    return _mean(cosine)


def nothing(cosine: np.ndarray, threshold: float) -> np.ndarray:
    """Accept no candidate: the node has its own edits only."""
    return np.full(cosine.shape[1], -np.inf)


# (cosines (m own, b candidates), threshold) -> scores (b,); -inf: not accepted. A score must not
# fall when a cosine rises, because `Sieve` drops candidates by upper bounds of their cosines.
POLICIES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "majority": majority,
    "top-k": top_k,
    "all": everything,
    "none": nothing,
}


@dataclass(frozen=True)
class SelectionConfig:
    """Settings of the selection of MKVs of others.

    Attributes:
        policy: one of `POLICIES`.
        signature: the compared vector: `v_star` (as in the paper), `delta` or `key`.
        centred: whether the pool's mean signature is subtracted first. Raw `v_star` share a large
            common direction, which makes nearly all of them similar.
        threshold: the cosine above which `majority` counts two MKVs as similar, -1 to 1.
        k: number of MKVs that `top-k` keeps, >= 1.

    Raises:
        FedEditError: a field is out of range.
    """

    policy: str
    signature: str
    centred: bool
    threshold: float
    k: int

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise FedEditError(
                f"selection policy {self.policy!r} is unknown; choose one of {', '.join(POLICIES)}"
            )
        check_signature(self.signature)
        if not -1 <= self.threshold <= 1:
            raise FedEditError(f"selection threshold {self.threshold} must be from -1 to 1")
        if self.k < 1:
            raise FedEditError(f"selection k {self.k} must be at least 1")


@dataclass(frozen=True, slots=True)
class Ranked:
    """A selected MKV and the score that it is ranked by."""

    id: str
    score: float


def select(
    own: Mapping[str, np.ndarray],
    blocks: Blocks,
    config: SelectionConfig,
    exclude_ids: Mapping[str, Collection[str]] | None = None,
) -> dict[str, list[Ranked]]:
    """Rank the pool's MKVs for every node, best first, ties by id, in one pass over the pool.

    The result depends on the contents of the pool only, not on the order or size of the blocks.
    The ranking of a node does not depend on the other nodes.

    Args:
        own: node -> `(m, d)`, the raw signatures of its own MKVs. With `m == 0`, only the policy
            `all` selects MKVs, with score 0.
        blocks: starts a new pass over the pool's signatures at each call, such as
            `lambda: pool.blocks(config.signature, fingerprint)`.
        exclude_ids: node -> MKVs that are not ranked for it, such as those it holds. The pool's
            mean includes them.

    Returns:
        node -> its ranking.

    Raises:
        FedEditError: the width of an `own` differs from that of the blocks.
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

    Adds row by row, because the order of `ndarray.sum`, and so its rounding, depends on `b`.
    """
    return sum(cosine, start=np.zeros(cosine.shape[1])) / max(len(cosine), 1)


def _pool_mean(blocks: Iterable[SignatureBlock]) -> np.ndarray | None:
    """The mean `(d,)` of all signatures, None of none; the sum is exact, see `similarity`."""
    total, count = np.zeros(()), 0
    for block in blocks:
        total = total + block.vectors.astype(np.float64).sum(axis=0)
        count += len(block.ids)
    return total / count if count else None


def _centred(units: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    return units if mean is None else unit_rows(units - mean)
