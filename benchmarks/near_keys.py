"""Facts about one subject whose texts before it differ: near keys, by their cosine.

Pairs of CounterFact's facts about one subject, of two relations, with other words before the
subject. For each pair a ledger of its own; the share of facts that the edited model says:

- alone: each fact in a ledger of its own.
- apart: both in one ledger, each with its own value. The joint solve has to keep both.
- joint: both in one ledger with one value, learned for both at the key of the first.

`--plot` draws the shares over the cosine of the keys at the first edited layer.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import (
    Figures,
    benchmark,
    count,
    loaded,
    main,
    option,
    print_figures,
    text_file,
    workbench,
)
from fedit_app.editing.values import Values
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.scores import score_targets
from fedit_app.facts.counterfact import read_counterfact
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV
from fedit_app.mkv.similarity import unit_rows

Pair = tuple[EditRequest, EditRequest]

EDGES = (0.0, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0 + 1e-6)
_WAYS = ("alone", "apart", "joint")
_NEITHER = 1.01
_MOST_CANDIDATES = 900
_KEYS_PER_PASS = 50


def candidates(facts: Sequence[EditRequest], seed: int) -> list[Pair]:
    """Pairs of facts about one subject, of two relations, with other words before the subject."""
    by_subject: dict[str, list[EditRequest]] = defaultdict(list)
    for fact in facts:
        by_subject[fact.subject].append(fact)
    found = [
        (one, other)
        for known in by_subject.values()
        for one, other in itertools.combinations(known, 2)
        if one.relation != other.relation
        and one.prompt.split(SLOT)[0] != other.prompt.split(SLOT)[0]
    ]
    random.Random(seed).shuffle(found)
    return found[:_MOST_CANDIDATES]


def cosines_of(bench: Workbench, pairs: Sequence[Pair]) -> np.ndarray:
    """(n,) cosine of the two lookup keys of every pair."""
    requests = [request for pair in pairs for request in pair]
    keys = [
        bench.lookup_keys(requests[at : at + _KEYS_PER_PASS]).numpy()
        for at in range(0, len(requests), _KEYS_PER_PASS)
    ]
    units = unit_rows(np.concatenate(keys)).reshape(len(pairs), 2, -1)
    found: np.ndarray = (units[:, 0] * units[:, 1]).sum(-1)
    return found


@benchmark(
    text_file("--facts", "counterfact_facts_21919.jsonl", "CounterFact's facts, JSON lines"),
    count("--pairs", 16, "in each band of cosines"),
    count("--seed", 1, "of the choice"),
    option("--plot", "an SVG file to draw", type=Path, default=None),
    data=False,
)
def run(options: argparse.Namespace) -> Figures:
    """Edit the pairs of every band and print a line for each."""
    bench = workbench(loaded(options))
    bench.same_key = _NEITHER  # each request its own value, unless it is asked for
    pairs = candidates(read_counterfact(options.facts), options.seed)
    cosines = cosines_of(bench, pairs)
    figures: Figures = {}
    lines: dict[str, str] = {}
    for low, high in itertools.pairwise(EDGES):
        chosen = np.flatnonzero((low <= cosines) & (cosines < high))[: options.pairs]
        if not len(chosen):
            continue
        name = f"{low:.2f} to {min(high, 1.0):.2f}"
        path = f"near_keys/{low:.2f}"
        lines[name] = path
        figures[f"{path}/pairs"] = len(chosen)
        figures[f"{path}/cosine"] = float(cosines[chosen].mean())
        shares = _shares(bench, [pairs[i] for i in chosen])
        figures |= {f"{path}/{way}": share for way, share in zip(_WAYS, shares, strict=True)}
    columns = {name: name for name in ("pairs", "cosine", *_WAYS)}
    print_figures("cosine of the keys", columns, figures, lines)
    if options.plot is not None:
        _draw(figures, list(lines.values()), options.plot)
    return figures


def _shares(bench: Workbench, pairs: Sequence[Pair]) -> list[float]:
    """Share of the facts that the edited model says: alone, apart, joint."""
    requests = [request for pair in pairs for request in pair]
    model, templates, settings = bench.model, bench.templates, bench.settings
    own = bench.editor.values(model, requests, templates, settings)
    groups = [[2 * i, 2 * i + 1] for i in range(len(pairs))]
    both = bench.editor.values(model, requests, templates, settings, groups=groups)
    said: dict[str, list[bool]] = {way: [] for way in _WAYS}
    for i, pair in enumerate(pairs):
        for side, request in enumerate(pair):
            said["alone"] += _said(bench, _made(bench, [[request]], own, [2 * i + side]), [request])
        said["apart"] += _said(bench, _made(bench, [[one] for one in pair], own, groups[i]), pair)
        said["joint"] += _said(bench, _made(bench, [pair], both, [i]), pair)
    return [float(np.mean(said[way])) for way in _WAYS]


def _made(
    bench: Workbench, groups: Sequence[Sequence[EditRequest]], values: Values, rows: list[int]
) -> list[MKV]:
    v_star, h0 = (part[rows, -1].float().cpu().numpy() for part in (values.v_star, values.h0))
    return bench.write(groups, v_star, h0, Ledger(bench.fingerprint), "node", 1)


def _said(bench: Workbench, mkvs: Sequence[MKV], requests: Sequence[EditRequest]) -> list[bool]:
    ledger = Ledger(bench.fingerprint)
    ledger.accept(mkvs, 1)
    with bench.edited(ledger) as model:
        return [s.decoded for s in score_targets(model, [r.asked_new for r in requests])]


def _draw(figures: Figures, paths: Sequence[str], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    cosines = [figures[f"{path}/cosine"] for path in paths]
    for way, marker in zip(_WAYS, "osD", strict=True):
        axes.plot(cosines, [figures[f"{path}/{way}"] for path in paths], marker=marker, label=way)
    axes.set(xlabel="cosine of the two keys", ylabel="facts that the edited model says")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main(run)
