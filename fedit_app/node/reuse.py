"""Compute each fact once: what a node takes from existing MKVs before it optimises its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedit_app.config.run_config import RunConfig
from fedit_app.editing.workbench import Patched, Workbench
from fedit_app.evaluation.scores import score_targets
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV
from fedit_app.mkv.same_key import near_keys

_MOST_TRIED = 8


@dataclass(frozen=True)
class ReuseRule:
    """Which MKVs may fulfil a request.

    Attributes:
        least: least cosine of lookup keys from which an MKV may fulfil a request; infinite: none.
        same_key: least cosine from which two keys count as one.
        take_rivals: whether candidates with the key of a request that want another target enter
            the ledger; not where a quorum decides what others' facts are worth.
    """

    least: float
    same_key: float
    take_rivals: bool

    @staticmethod
    def of(config: RunConfig) -> ReuseRule:
        """The rule of a run configuration."""
        least = config.reuse_threshold or math.inf
        return ReuseRule(least, config.same_key_threshold, config.accept_quorum == 1)


@dataclass(frozen=True)
class Found:
    """What trying MKVs on requests has shown.

    Attributes:
        starts: request id -> MKV from whose value its own is best optimised.
        rivals: ids of MKVs with the key of a request that want another target.
    """

    starts: dict[str, MKV] = field(default_factory=dict)
    rivals: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Trial:
    """An MKV near a request: the cosine of their keys, and what its value says."""

    mkv: MKV
    cosine: float
    said: Patched


@dataclass(frozen=True)
class _Tried:
    """A request with the trials of its nearest MKVs, and what the unedited model says."""

    request: EditRequest
    unedited: Patched
    trials: list[_Trial]

    def fulfilling(self, least: float) -> _Trial | None:
        """The nearest MKV that may fulfil the request and says its target in every context."""
        fitting = (t for t in self.trials if t.cosine >= least and t.said.decoded)
        return next(fitting, None)

    @property
    def start(self) -> MKV | None:
        """The MKV whose value makes the target likeliest, if likelier than without it."""
        best = min(self.trials, key=lambda trial: (trial.said.nll, trial.mkv.id))
        return best.mkv if best.said.nll < self.unedited.nll else None


def reuse(
    bench: Workbench,
    requests: Sequence[EditRequest],
    candidates: Sequence[MKV],
    ledger: Ledger,
    slot: int,
    rule: ReuseRule,
) -> Found:
    """Let MKVs fulfil requests whose target they say in every context, the nearest first.

    One with another key (a paraphrase of the request) has to do so in the edited model, too.
    Candidates with the very key of a request that say something else enter the ledger, so that it
    can be settled which of the two holds.

    Args:
        bench: the model and its tools.
        requests: n requests that nothing fulfils.
        candidates: MKVs of the pool with similar lookup keys; those of the ledger are tried too.
        ledger: the node's ledger.
        slot: the time slot.
        rule: which MKVs may fulfil a request.
    """
    found = Found()
    held = [entry.mkv for entry in ledger.entries.values()]
    known = list({mkv.id: mkv for mkv in [*held, *candidates]}.values())
    rephrased: dict[str, tuple[EditRequest, MKV]] = {}
    for tried in _tried(bench, requests, known, min(rule.least, rule.same_key)):
        request, fulfilling = tried.request, tried.fulfilling(rule.least)
        if fulfilling is not None:
            ledger.accept([fulfilling.mkv], slot, {fulfilling.mkv.id: [request.id]})
            if fulfilling.cosine < rule.same_key:
                rephrased[request.id] = request, fulfilling.mkv
            continue
        if math.isfinite(rule.least) and tried.start is not None:
            found.starts[request.id] = tried.start
        rivals = _rivals(tried, ledger, rule)
        ledger.accept(rivals, slot)
        found.rivals.update(mkv.id for mkv in rivals)
    for id_ in _without_effect(bench, [request for request, _ in rephrased.values()], ledger):
        found.starts[id_] = rephrased[id_][1]
        ledger.release([id_])
    return found


def _tried(
    bench: Workbench, requests: Sequence[EditRequest], known: Sequence[MKV], least: float
) -> list[_Tried]:
    """Try the nearest MKVs on every request; requests without any MKV near them are left out."""
    if not requests or not known:
        return []
    found = near_keys(bench.lookup_keys(requests).numpy(), known, least)
    rows = [(r, near[:_MOST_TRIED]) for r, near in zip(requests, found, strict=True) if near]
    said = iter(
        bench.patched(
            [(request, mkv) for request, near in rows for mkv in [None, *(m for _, m in near)]]
        )
    )
    return [
        _Tried(request, next(said), [_Trial(mkv, cosine, next(said)) for cosine, mkv in near])
        for request, near in rows
    ]


def _rivals(tried: _Tried, ledger: Ledger, rule: ReuseRule) -> list[MKV]:
    """MKVs with the key of a request that want another target and fulfil no own request."""
    entries = ledger.entries
    same_key = [trial.mkv for trial in tried.trials if trial.cosine >= rule.same_key]
    return [
        mkv
        for mkv in same_key
        if (not entries[mkv.id].requests if mkv.id in entries else rule.take_rivals)
    ]


def _without_effect(bench: Workbench, requests: Sequence[EditRequest], ledger: Ledger) -> list[str]:
    """Ids of those requests whose target the model edited by the ledger does not say.

    An MKV has the key of the words in which it was asked for. In other words about the same fact
    its value may say the target when it is patched in, while the edited model does not reach it.
    """
    if not requests:
        return []
    with bench.edited(ledger) as model:
        scores = score_targets(model, [r.asked_new for r in requests])
    return [r.id for r, score in zip(requests, scores, strict=True) if not score.decoded]


def saying_own_targets(
    bench: Workbench,
    requests: Sequence[EditRequest],
    offered: Sequence[MKV],
    ledger: Ledger,
    same_key: float,
) -> dict[str, str]:
    """Which offered MKVs want what an own one with the same key wants.

    Args:
        bench: the model and its tools.
        requests: all of the node's own that are known. One that the ledger fulfils may have left
            the node's file; its MKV cannot be compared then.
        offered: MKVs of the ledger's fingerprint and shapes.
        ledger: the node's ledger.
        same_key: least cosine from which two keys count as one.

    Returns:
        Id of an offered MKV -> id of the own one, of those that say, patched in, the targets of all
        requests that the own one fulfils.
    """
    by_id = {request.id: request for request in requests}
    own = [
        entry.mkv
        for entry in ledger.entries.values()
        if entry.requests and by_id.keys() >= set(entry.requests)
    ]
    keys = np.array([mkv.lookup_key for mkv in offered])
    trials = [
        (mkv, twin, by_id[request])
        for mkv, near in zip(offered, near_keys(keys, own, same_key), strict=True)
        for _, twin in [pair for pair in near if pair[1].id != mkv.id][:1]
        for request in ledger.entries[twin.id].requests
    ]
    said = bench.patched([(request, mkv) for mkv, _, request in trials])
    silent = {mkv.id for (mkv, *_), one in zip(trials, said, strict=True) if not one.decoded}
    return {mkv.id: twin.id for mkv, twin, _ in trials if mkv.id not in silent}
