"""What tells that two requests are about the same fact: the measurements behind the thresholds.

Each CounterFact record is asked in two ways, by its prompt and by its first paraphrase prompt that
holds the subject.

1. Vectors that could be looked up, made of the request alone: how many paraphrases are found
   above a threshold (recall), and how many other facts with them, per request.
2. Cosines between two MKVs: of one request on two different ledgers, of a request and its
   paraphrase, and of a prompt with two different targets.
3. What a paraphrase's request gets from the MKV of the prompt, by the cosine of their keys: whether
   the target is said once its value is patched in, whether the model edited with it says it
   (reuse asks for both), and how many passes an own value then takes from there, and from zero.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.harness import (
    Cell,
    Figures,
    benchmark,
    count,
    loaded,
    main,
    paraphrase,
    records,
    table,
    workbench,
)
from fedit_app.editing.contexts import Template
from fedit_app.editing.subjects import SubjectStates, in_texts
from fedit_app.editing.values import Values
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.scores import score_targets
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV, create
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

_THRESHOLDS = (0.98, 0.9, 0.8, 0.7)
_BINS = ((0.98, 1.01), (0.95, 0.98), (0.9, 0.95), (0.8, 0.9), (-1.0, 0.8))


@benchmark(count("--records", 300, "looked up"), count("--edits", 100, "edited"))
def run(options: argparse.Namespace) -> Figures:
    """Print the three tables."""
    bench = workbench(loaded(options))
    found = [(r, paraphrase(r)) for r in records(options, options.records)]
    pairs = [(request, other) for request, other in found if other is not None]
    if len(pairs) < 2:
        raise FedEditError(f"--data: {options.data} has too few paraphrases that hold the subject")
    figures = _vectors(bench, pairs)
    return figures | _edits(bench, pairs[: options.edits])


def _vectors(bench: Workbench, pairs: Sequence[tuple[EditRequest, EditRequest]]) -> Figures:
    """Table 1."""
    requests, others = zip(*pairs, strict=True)
    layers = bench.settings.layers
    candidates = {}
    for layer in layers:
        candidates[f"key, layer {layer}"] = [
            _states(bench, part, bench.templates, layer)[0] for part in (requests, others)
        ]
    first, last = layers[0], layers[-1]
    candidates[f"key, layer {first}, bare prompt"] = [
        _states(bench, part, bench.templates[:1], first)[0] for part in (requests, others)
    ]
    candidates[f"state, layer {last}"] = [
        _states(bench, part, bench.templates, last)[1] for part in (requests, others)
    ]
    figures, rows = {}, []
    for name, (own, other) in candidates.items():
        cosines = _unit(other) @ _unit(own).T
        same = cosines.diag().clone()
        row: list[Cell] = [name]
        for threshold in _THRESHOLDS:
            hits = float((same >= threshold).double().mean())
            false = float((cosines >= threshold).double().sum() / len(same)) - hits
            figures[f"lookup/{name}/{threshold}/recall"] = hits
            figures[f"lookup/{name}/{threshold}/others_per_request"] = false
            row += [hits, false]
        rows.append(row)
    columns = [part for t in _THRESHOLDS for part in (f"recall {t:g}", f"others {t:g}")]
    print(table([f"{len(pairs)} paraphrases", *columns], rows))
    return figures


def _states(
    bench: Workbench, requests: Sequence[EditRequest], templates: Sequence[Template], layer: int
) -> tuple[Tensor, Tensor]:
    """Keys and states (n, width) at one layer of the unedited model."""
    with torch.no_grad():
        places = in_texts(bench.model, requests, templates)
        seen = SubjectStates(bench.model, places, layer, layer).see(layer, layer)
    return seen.key.cpu(), seen.state.double().cpu()


def _edits(bench: Workbench, pairs: Sequence[tuple[EditRequest, EditRequest]]) -> Figures:
    """Tables 2 and 3."""
    requests, others = zip(*pairs, strict=True)
    targets = [request.target_new for request in requests]
    rivals = [
        dataclasses.replace(request, target_new=target)
        for request, target in zip(requests, [*targets[1:], targets[0]], strict=True)
        if target != request.target_new
    ]
    of_rivals = [r for r, t in zip(requests, [*targets[1:], targets[0]], strict=True)]
    of_rivals = [r for r in of_rivals if any(rival.id == r.id for rival in rivals)]
    values, mkvs = _computed(bench, requests, Ledger(bench.fingerprint))
    _, paraphrased = _computed(bench, others, Ledger(bench.fingerprint))
    _, contrary = _computed(bench, rivals, Ledger(bench.fingerprint))
    half = Ledger(bench.fingerprint)
    half.accept(paraphrased[: len(paraphrased) // 2], 1)
    _, elsewhere = _computed(bench, requests, half, values)
    by_request = dict(zip((r.id for r in requests), mkvs, strict=True))
    kinds = {
        "one request, two ledgers": list(zip(mkvs, elsewhere, strict=True)),
        "paraphrases": list(zip(mkvs, paraphrased, strict=True)),
        "one prompt, two targets": [
            (by_request[r.id], mkv) for r, mkv in zip(of_rivals, contrary, strict=True)
        ],
    }
    figures = {}
    rows = []
    for name, twins in kinds.items():
        row: list[Cell] = [name, len(twins)]
        for part in ("key", "value", "shifts"):
            cosines = torch.tensor([_cosine(part, *pair) for pair in twins])
            for quantity, value in (
                ("least", cosines.min()),
                ("median", cosines.median()),
                ("most", cosines.max()),
            ):
                figures[f"lookup/{name}/{part}/{quantity}"] = float(value)
                row.append(float(value))
        rows.append(row)
    columns = [f"{part} {q}" for part in ("key", "value", "shifts") for q in ("min", "med", "max")]
    print("\n" + table(["two MKVs", "pairs", *columns], rows))
    return figures | _reuse(bench, others, mkvs, paraphrased)


def _reuse(
    bench: Workbench,
    others: Sequence[EditRequest],
    mkvs: Sequence[MKV],
    own: Sequence[MKV],
) -> Figures:
    """Table 3."""
    cosines = [_cosine("key", *pair) for pair in zip(mkvs, own, strict=True)]
    patched = [said.decoded for said in bench.patched(list(zip(others, mkvs, strict=True)))]
    edited = _said(bench, others, mkvs)
    alone = _said(bench, others, own)
    zero = _passes(bench, others, [None] * len(others))
    begun = _passes(bench, others, mkvs)
    figures: Figures = {}
    rows = []
    for low, high in _BINS:
        chosen = [i for i, cosine in enumerate(cosines) if low <= cosine < high]
        if not chosen:
            continue
        taken = [i for i in chosen if patched[i]]
        open_ = [i for i in chosen if not (patched[i] and edited[i])]
        name = f"{low:g} to {min(high, 1):g}"
        values = {
            "pairs": len(chosen),
            "patched_share": _mean([patched[i] for i in chosen]),
            "edited_share_of_patched": _mean([edited[i] for i in taken]),
            "reused_share": 1 - len(open_) / len(chosen),
            "own_edited_share": _mean([alone[i] for i in chosen]),
            "passes_from_zero": _mean([zero[i] for i in open_]),
            "passes_from_candidate": _mean([begun[i] for i in open_]),
        }
        figures |= {f"lookup/{name}/{key}": v for key, v in values.items() if v is not None}
        rows.append([name, *values.values()])
    columns = ["pairs", "patched", "edited if so", "reused", "own", "passes, zero", "candidate"]
    print("\n" + table(["cosine of keys", *columns], rows))
    return figures


def _computed(
    bench: Workbench,
    requests: Sequence[EditRequest],
    ledger: Ledger,
    values: Values | None = None,
) -> tuple[Values, list[MKV]]:
    """MKVs on top of a ledger, from values that are given or optimised."""
    model, templates, settings = bench.model, bench.templates, bench.settings
    values = values or bench.editor.values(model, requests, templates, settings)
    kinds = bench.editor.kinds(model, [[one] for one in requests], templates, settings, values)
    found = bench.editor.vectors(model, kinds, bench.solver, bench.pairs(ledger), settings)
    parts = (found.keys[:, :, 0], found.shifts[:, :, 0], found.v_star, found.h0)
    keys, shifts, v_star, h0 = (part.float().cpu().numpy() for part in parts)
    logger.info("%d MKVs computed", len(requests))
    return values, [
        create("benchmark", 1, bench.fingerprint, *vectors, "float32")
        for vectors in zip(keys, shifts, v_star, h0, strict=True)
    ]


def _said(bench: Workbench, requests: Sequence[EditRequest], mkvs: Sequence[MKV]) -> list[bool]:
    """Whether the model edited with all of the MKVs says each request's target."""
    ledger = Ledger(bench.fingerprint)
    ledger.accept(mkvs, 1)
    with bench.edited(ledger) as model:
        scores = score_targets(model, [r.asked_new for r in requests])
    return [score.decoded for score in scores]


def _passes(
    bench: Workbench, requests: Sequence[EditRequest], starts: Sequence[MKV | None]
) -> list[int]:
    begin = [None if mkv is None else torch.from_numpy(mkv.delta) for mkv in starts]
    found = bench.editor.values(bench.model, requests, bench.templates, bench.settings, begin)
    return found.steps.tolist()


def _cosine(part: str, a: MKV, b: MKV) -> float:
    of = {"key": lambda m: m.lookup_key, "value": lambda m: m.delta, "shifts": lambda m: m.shifts}
    one, other = (torch.from_numpy(of[part](mkv)).flatten() for mkv in (a, b))
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


if __name__ == "__main__":
    main(run)
