"""What the precision of an MKV costs in bytes, and what it costs in score.

CounterFact records are dealt out to clients. Each computes its MKVs on the base model, once; they
are then rounded to each precision and solved jointly, as a node does that accepts everything.
Efficacy, paraphrase, neighborhood and score are CounterFact's. The errors of Delta are relative
(Frobenius norm), against float32. "decodes" is the share of MKVs whose v* says its target when
patched in, which is what a node asks before it reuses one; "lookup cosine" is the smallest between
a rounded lookup key and the same in float32.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from benchmarks.harness import (
    Figures,
    benchmark,
    count,
    counterfact_metrics,
    loaded,
    main,
    option,
    print_figures,
    records,
    workbench,
)
from fedit_app.editing.editors import EDITORS
from fedit_app.editing.workbench import Workbench
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV, PRECISIONS, create, to_bytes
from fedit_app.protocol.messages import content_bytes, pack
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

_EXACT = "float32"
_COLUMNS = {
    "wire bytes/MKV": "wire_bytes_per_mkv",
    "file bytes/MKV": "file_bytes_per_mkv",
    "efficacy": "efficacy",
    "paraphrase": "paraphrase",
    "neighborhood": "neighborhood",
    "score": "score",
    "decodes": "decodes",
    "lookup cosine": "lookup_cosine",
}


@benchmark(
    count("--records", 48, "in all"),
    count("--clients", 3, "that the records are dealt out to"),
    option("--editor", "whose MKVs", choices=EDITORS, default="memit"),
)
def run(options: argparse.Namespace) -> Figures:
    """Edit with MKVs of every precision and print bytes and metrics side by side."""
    if options.clients > options.records:
        raise FedEditError(
            f"--clients: {options.clients} cannot share {options.records} records; ask for more"
        )
    requests = records(options, options.records)
    model = loaded(options)
    bench = workbench(model, options.editor, _EXACT)
    layers = bench.settings.layers
    shares = [requests[client :: options.clients] for client in range(options.clients)]
    uploads = [_compute(bench, share, f"client-{i}") for i, share in enumerate(shares)]
    rounded = {name: [_rounded(upload, name) for upload in uploads] for name in PRECISIONS}
    deltas = {name: _deltas(bench, found) for name, found in rounded.items()}
    decodes = _decodes(bench, shares, rounded)
    found = {"unedited": counterfact_metrics(model, requests)}
    for name in PRECISIONS:
        with model.edited(deltas[name]):
            metrics = counterfact_metrics(model, requests)
        found[name] = (
            _sizes(rounded[name])
            | metrics
            | {"decodes": decodes[name], "lookup_cosine": _lookup_cosine(rounded, name)}
            | {
                f"delta_error_layer_{layer}": _relative_error(delta, deltas[_EXACT][layer])
                for layer, delta in deltas[name].items()
            }
        )
        logger.info("%s: score %.3f", name, found[name]["score"])
    figures = {
        f"wire/{name}/{part}": value
        for name, values in found.items()
        for part, value in values.items()
    }
    lines = {name: f"wire/{name}" for name in found}
    print_figures(f"{options.records} records", _COLUMNS, figures, lines)
    print()
    errors = {f"layer {layer}": f"delta_error_layer_{layer}" for layer in layers}
    print_figures("error of Delta", errors, figures, {name: lines[name] for name in PRECISIONS})
    return figures


def _compute(bench: Workbench, requests: Sequence[EditRequest], client: str) -> list[MKV]:
    return bench.compute(requests, Ledger(bench.fingerprint), client, 1)


def _rounded(mkvs: Sequence[MKV], precision: str) -> list[MKV]:
    """The same MKVs as their author would have made them in another precision."""
    return [
        create(m.node, m.slot, m.fingerprint, m.keys, m.shifts, m.v_star, m.h0, precision)
        for m in mkvs
    ]


def _deltas(bench: Workbench, uploads: Sequence[Sequence[MKV]]) -> dict[int, torch.Tensor]:
    ledger = Ledger(bench.fingerprint)
    for upload in uploads:
        ledger.accept(upload, 1)
    return bench.deltas(ledger)


def _decodes(
    bench: Workbench,
    shares: Sequence[Sequence[EditRequest]],
    rounded: Mapping[str, Sequence[Sequence[MKV]]],
) -> dict[str, float]:
    """Precision -> share of MKVs that say their own target when patched in."""
    hits = dict.fromkeys(rounded, 0)
    for client, requests in enumerate(shares):
        for i, request in enumerate(requests):
            pairs = [(request, uploads[client][i]) for uploads in rounded.values()]
            for name, said in zip(rounded, bench.patched(pairs), strict=True):
                hits[name] += said.decoded
    return {name: count / sum(map(len, shares)) for name, count in hits.items()}


def _sizes(uploads: Sequence[Sequence[MKV]]) -> dict[str, float]:
    """Mean bytes of an MKV in a client's upload, and as a file of the ledger or the pool."""
    mkvs = [mkv for upload in uploads for mkv in upload]
    return {
        "wire_bytes_per_mkv": round(
            sum(content_bytes(pack({}, upload)) for upload in uploads) / len(mkvs)
        ),
        "file_bytes_per_mkv": round(sum(len(to_bytes(mkv)) for mkv in mkvs) / len(mkvs)),
    }


def _lookup_cosine(rounded: Mapping[str, Sequence[Sequence[MKV]]], precision: str) -> float:
    keys, exact = (
        torch.tensor(
            np.stack([mkv.lookup_key for mkv in itertools.chain(*rounded[name])]).astype(float)
        )
        for name in (precision, _EXACT)
    )
    return float(torch.cosine_similarity(keys, exact).min())


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


if __name__ == "__main__":
    main(run)
