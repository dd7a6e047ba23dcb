"""What a node's own policy accepts, as plain decisions; the server has no say in them.

An MKV's origin is the name that its node gave it and the server passed on: to trust a node by name
is to trust the server not to change it, unless the node asks for signatures (`identity`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedit_app.mkv import MKV

if TYPE_CHECKING:  # both need torch
    from fedit_app.evaluation.metrics import RequestScore
    from fedit_app.ledger.entries import LedgerEntry

MOST_TRIALS = 24

_ROUNDING = 1e-9


@dataclass(frozen=True)
class ProbeCheck:
    """What a re-edit did to the node's probes.

    Attributes:
        loss: by what share the probes got worse, 0 .. 1; what others gained does not count.
        spoilt: how many probes got worse.
        count: how many probes there are.
        exceeds: whether the loss exceeds the budget.
    """

    loss: float
    spoilt: int
    count: int
    exceeds: bool


def sift_origins(offered: Sequence[MKV], trusted: Collection[str] | None) -> list[MKV]:
    """The MKVs of trusted nodes.

    Args:
        offered: served MKVs.
        trusted: names of nodes; None trusts every node, an empty collection none.
    """
    return [mkv for mkv in offered if trusted is None or mkv.node in trusted]


def sift_surplus(fitting: Sequence[MKV], most: int | None, accepted: int) -> list[MKV]:
    """As many MKVs as the node still accepts in this slot.

    Args:
        fitting: MKVs that could be accepted, the most similar first.
        most: how many the node accepts per slot; None for any number.
        accepted: how many it has accepted in this slot, see `accepted_from_others`.
    """
    return list(fitting if most is None else fitting[: max(0, most - accepted)])


def sift_spoilers(
    offered: Sequence[MKV], harmless: Callable[[Sequence[MKV]], bool], most: int = MOST_TRIALS
) -> list[MKV]:
    """The MKVs that may be accepted together, found by halving every part that does harm.

    Each part is tried together with all that was found harmless before; one harmful MKV among n
    takes about 2 log2 n trials. MKVs that are undecided after the last trial are left out.

    Args:
        offered: MKVs, the most similar first.
        harmless: whether accepting these keeps the loss on the node's probes within the budget.
        most: how often `harmless` is called.
    """
    kept: list[MKV] = []
    waiting = [list(offered)] if offered else []
    for _ in range(most):
        if not waiting:
            break
        part = waiting.pop(0)
        if harmless([*kept, *part]):
            kept += part
        elif len(part) > 1:
            middle = len(part) // 2
            waiting[:0] = [part[:middle], part[middle:]]
    return kept


def sift_gains(
    offered: Sequence[MKV], measure: Callable[[Sequence[MKV]], float], most: int = MOST_TRIALS
) -> list[MKV]:
    """The MKVs that raise a node's own measure, found by halving every part that does not.

    Each part is tried together with all that was kept before. MKVs that are undecided after the
    last trial are left out.

    Args:
        offered: MKVs, the most similar first.
        measure: of the node's model with these MKVs, see `own_measure`; more is better.
        most: how often a part is tried.
    """
    kept: list[MKV] = []
    best = measure([]) if offered else 0.0
    waiting = [list(offered)] if offered else []
    for _ in range(most):
        if not waiting:
            break
        part = waiting.pop(0)
        found = measure([*kept, *part])
        if found > best:
            kept, best = [*kept, *part], found
        elif len(part) > 1:
            middle = len(part) // 2
            waiting[:0] = [part[:middle], part[middle:]]
    return kept


def own_measure(scores: Sequence[RequestScore]) -> float:
    """How well a model says facts and leaves alone what is beside them: one number, -1 to 1.

    The mean over facts of the mean of their magnitudes (of the prompt, the paraphrases and the
    neighborhood), which shows what the shares do not show yet. Where there is no true target to
    compare with, the shares are taken.

    Args:
        scores: of n facts; 0.0 without any.
    """
    return sum(map(_magnitude, scores)) / len(scores) if scores else 0.0


def accepted_from_others(entries: Iterable[LedgerEntry], slot: int, node: str) -> int:
    """How many MKVs of others a ledger has accepted in a slot's re-edit.

    So a repeated message gets no second allowance. MKVs that fulfil an own request do not count.

    Args:
        entries: the ledger's.
        slot: the time slot.
        node: the ledger's owner.
    """
    return sum(
        entry.slot == slot and entry.mkv.node != node and not entry.requests for entry in entries
    )


def check_probes(
    before: Sequence[RequestScore], after: Sequence[RequestScore], budget: float
) -> ProbeCheck:
    """Decide whether a re-edit exceeds the budget of the node's probes.

    The score of a probe is the mean of its efficacy, paraphrase and neighborhood shares. A probe
    without paraphrase and neighborhood prompts is right or wrong, and the loss then is the share of
    the probes that turned wrong.

    Args:
        before: n scores of the probes without the re-edit.
        after: n scores with it, in the same order.
        budget: the loss that is allowed, 0 .. 1.

    Raises:
        ValueError: the two have different lengths.
    """
    falls = [max(0.0, _worth(old) - _worth(new)) for old, new in zip(before, after, strict=True)]
    loss = sum(falls) / len(falls) if falls else 0.0
    spoilt = sum(fall > _ROUNDING for fall in falls)
    return ProbeCheck(loss, spoilt, len(falls), loss > budget + _ROUNDING)


def _worth(score: RequestScore) -> float:
    return _mean(score.efficacy, score.paraphrase, score.neighborhood)


def _magnitude(score: RequestScore) -> float:
    if score.magnitude is None:
        return _worth(score)
    return _mean(score.magnitude, score.paraphrase_magnitude, score.neighborhood_magnitude)


def _mean(*values: float | None) -> float:
    """The mean of the known ones."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known)
