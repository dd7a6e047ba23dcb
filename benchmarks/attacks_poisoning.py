"""Poison: MKVs that a stranger uploads, and what they do to a node with and without defences."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import counterfact_metrics
from fedit_app.config.policy import Policy
from fedit_app.config.run_config import RunConfig
from fedit_app.editing.covariance import CovarianceSource, covariance
from fedit_app.editing.screening import BOUNDS
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.neutral import neutral_scores
from fedit_app.evaluation.scores import score_targets
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV, create
from fedit_app.node.reedit_stage import ReeditStage
from fedit_app.pool import MKVPool
from fedit_app.server.quorum import receipts

_FLOOD = 64
_EVE = "eve"
_QUORUM = 2
_NEARLY = 0.9 * BOUNDS["shift norm"]
"""Of the usual norms of outputs: a shift that is as large still passes."""


@dataclass
class Node:
    """A node that has accepted honest MKVs.

    Attributes:
        bench: the model and its tools.
        honest: what it has accepted.
        requests: the requests behind them, whose neighborhood prompts tell of damage.
        chosen: facts on which the attacker wants other answers.
        probes: facts that the node's operator listed.
        text: token rows of ordinary text.
    """

    bench: Workbench
    honest: Sequence[MKV]
    requests: Sequence[EditRequest]
    chosen: Sequence[EditRequest]
    probes: Sequence[EditRequest]
    text: Sequence[tuple[int, ...]]
    _measured: dict[tuple[str, ...], dict[str, float]] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def wrong_answers(self) -> list[MKV]:
        """The attacker's MKVs of the chosen facts, honest in everything but the target."""
        return self.bench.compute(self.chosen, Ledger(self.bench.fingerprint), _EVE, 2)

    def ledger(self) -> Ledger:
        """A new ledger with the honest MKVs, in memory."""
        ledger = Ledger(self.bench.fingerprint)
        ledger.accept(self.honest, 1)
        return ledger

    def measure(self, ledger: Ledger) -> dict[str, float]:
        """What the model edited by a ledger does; each set of MKVs is measured once."""
        ids = tuple(mkv.id for mkv in ledger.holding)
        if ids not in self._measured:
            text = neutral_scores(self.bench.model, self.bench.deltas(ledger), self.text)
            with self.bench.edited(ledger) as model:
                said = score_targets(model, [r.asked_new for r in self.chosen])
                shares = counterfact_metrics(model, self.requests)
            self._measured[ids] = {
                "success": sum(one.decoded for one in said) / len(said),
                "neighborhood": shares["neighborhood"],
                "kl": text.kl,
                "perplexity": text.perplexity_after,
            }
        return self._measured[ids]


def poison(node: Node, attack: str) -> dict[str, dict[str, float]]:
    """Offer an attacker's MKVs to a node.

    Args:
        node: the node.
        attack: a key of `ATTACKS`.

    Returns:
        Defence ("" for none) -> offered and accepted MKVs, success and damage.
    """
    offered = ATTACKS[attack](node)
    if not offered:
        return {"": {"offered": 0, "accepted": 0} | node.measure(node.ledger())}
    with tempfile.TemporaryDirectory() as folder:
        probes = Path(folder) / "probes.jsonl"
        rows = [
            dict(
                id=r.id,
                subject=r.subject,
                prompt=r.prompt,
                target_new=r.target_new,
                target_true=r.target_true,
            )
            for r in node.probes
        ]
        probes.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        served = _under_quorum(node, offered, f"{folder}/pool")
        trials = {
            "": (Policy(screening=0), offered),
            "screening": (Policy(), offered),
            "probes": (Policy(screening=0, probes=str(probes)), offered),
            f"quorum of {_QUORUM}": (Policy(screening=0), served),
        }
        return {name: _receive(node, *trial) for name, trial in trials.items()}


def _receive(node: Node, policy: Policy, offered: Sequence[MKV]) -> dict[str, float]:
    ledger = node.ledger()
    stage = ReeditStage("node", node.bench, RunConfig(), policy, [])
    outcome = stage.run(ledger, 2, offered, {})
    accepted = sum(outcome.received_from.values())
    return {"offered": len(offered), "accepted": accepted} | node.measure(ledger)


def _under_quorum(node: Node, offered: Sequence[MKV], uri: str) -> list[MKV]:
    """What a server serves of it that asks for two organisations."""
    pool = MKVPool(uri)
    pool.append(node.honest)
    pool.append(offered)
    found = receipts(pool, [], [mkv.id for mkv in offered])
    return [mkv for mkv in offered if found[mkv.id] >= _QUORUM]


def _made(node: Node, keys: np.ndarray, shifts: np.ndarray, like: MKV) -> MKV:
    return create(
        _EVE, 2, node.bench.fingerprint, keys, shifts, like.v_star, like.h0, like.precision
    )


def _huge(node: Node) -> list[MKV]:
    return [_made(node, mkv.keys, mkv.shifts * 30, mkv) for mkv in node.wrong_answers]


def _directions(rng: np.random.Generator, count: int, like: np.ndarray) -> np.ndarray:
    """(count, n_layers, width) random unit vectors."""
    drawn = rng.standard_normal((count, *like.shape))
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def largest_shifts(
    bench: Workbench, rng: np.random.Generator, like: np.ndarray, count: int
) -> np.ndarray:
    """(count, n_layers, d_model) shifts in random directions, the largest that pass the screening.

    Args:
        bench: of the node that screens.
        rng: draws the directions.
        like: a shift (n_layers, d_model).
        count: how many.
    """
    return _directions(rng, count, like) * _usual_norms(bench)[1][:, None] * _NEARLY


def _usual_norms(bench: Workbench) -> tuple[np.ndarray, np.ndarray]:
    """(n_layers,) norms of keys and of outputs that are usual on ordinary text."""
    scales = bench.scales.values()
    keys = np.array([scale.key_norm for scale in scales])
    return keys, np.array([scale.output_norm for scale in scales])


def _random(node: Node) -> list[MKV]:
    rng, like = np.random.default_rng(0), node.honest[0]
    key_norms, shift_norms = _usual_norms(node.bench)
    keys = _directions(rng, _FLOOD, like.keys) * key_norms[:, None]
    shifts = _directions(rng, _FLOOD, like.shifts) * 4 * shift_norms[:, None]
    return [_made(node, *pair, like) for pair in zip(keys, shifts, strict=True)]


def _common(node: Node) -> list[MKV]:
    """Along what all keys share, with enough noise not to count as one fact."""
    rng, like = np.random.default_rng(0), node.honest[0]
    key_norms, shift_norms = _usual_norms(node.bench)
    found = covariance(node.bench.model, node.bench.settings.layers, CovarianceSource())
    common = np.stack([torch.linalg.eigh(c)[1][:, -1].numpy() for c in found.values()])
    keys = common + 0.2 * _directions(rng, _FLOOD, like.keys)
    keys *= 4 * key_norms[:, None] / np.linalg.norm(keys, axis=-1, keepdims=True)
    one = _directions(rng, 1, like.shifts)[0] * shift_norms[:, None] * _NEARLY
    return [_made(node, key, one, like) for key in keys]


def _within_bounds(node: Node) -> list[MKV]:
    """Honest keys of subjects that the node has not, and the largest shifts that pass."""
    honest = node.wrong_answers
    rng, like = np.random.default_rng(0), honest[0].shifts
    shifts = largest_shifts(node.bench, rng, like, len(honest))
    return [_made(node, m.keys, shift, m) for m, shift in zip(honest, shifts, strict=True)]


def _replays(node: Node) -> list[MKV]:
    """The node's own MKVs again under another name, as they are and nudged."""
    rng = np.random.default_rng(0)
    again = []
    for mkv in node.honest:
        again.append(_made(node, mkv.keys, mkv.shifts, mkv))
        nudge = 1 + 0.01 * rng.standard_normal(mkv.shifts.shape)
        again.append(_made(node, mkv.keys, mkv.shifts * nudge, mkv))
    return again


ATTACKS: dict[str, Callable[[Node], list[MKV]]] = {
    "nothing": lambda node: [],
    "wrong answers": lambda node: node.wrong_answers,
    "huge shifts": _huge,
    "random vectors": _random,
    "common direction": _common,
    "largest that pass": _within_bounds,
    "replays": _replays,
}
