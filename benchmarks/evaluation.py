"""Scoring of CounterFact prompts in batches, against one text at a time.

Batched is what FedEdit does: rows of similar length together, logits at the target tokens only.
Plain runs one prompt with its target at a time and takes the log-softmax of all its logits. A
prompt counts once per target, the new one and the true one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks.harness import (
    Figures,
    Measured,
    benchmark,
    count,
    loaded,
    main,
    measure,
    print_figures,
    records,
)
from fedit_app.evaluation.scores import TargetScore, score_targets
from fedit_app.facts.request import EditRequest
from fedit_app.models.editable import EditableModel, at_least_float32
from fedit_app.models.tokens import continuation_row

_AGREEMENT = 1e-3
_COLUMNS = {
    "records": "records",
    "prompts": "prompts",
    "seconds": "seconds",
    "prompts/s": "prompts_per_second",
    "peak MiB": "peak_mib",
}


@benchmark(
    count("--records", 50, "scored in batches"),
    count("--plain-records", 5, "scored one by one"),
)
def run(options: argparse.Namespace) -> Figures:
    """Time both ways of scoring and compare their figures."""
    requests = records(options, max(options.records, options.plain_records))
    model = loaded(options)
    pairs = _pairs(requests[: options.records])
    plain_pairs = _pairs(requests[: options.plain_records])
    for score in (score_targets, _plain_scores):  # the first pass sets up threads and kernels
        score(model, pairs[:2])
    batched = measure(lambda: score_targets(model, pairs), model.device)
    plain = measure(lambda: _plain_scores(model, plain_pairs), model.device)
    difference = max(
        abs(one.nll - other.nll)
        for one, other in zip(score_targets(model, plain_pairs), plain.result, strict=True)
    )
    figures = _figures("batched", options.records, batched)
    figures |= _figures("plain", options.plain_records, plain)
    speeds = [figures[f"evaluation/{name}/prompts_per_second"] for name in ("batched", "plain")]
    figures["evaluation/speedup"] = speeds[0] / speeds[1]
    figures["evaluation/largest_nll_difference"] = difference
    _print(figures)
    return figures


def _figures(name: str, count: int, measured: Measured[list[TargetScore]]) -> Figures:
    prompts = len(measured.result)
    return {
        f"evaluation/{name}/records": count,
        f"evaluation/{name}/prompts": prompts,
        f"evaluation/{name}/seconds": measured.seconds,
        f"evaluation/{name}/prompts_per_second": prompts / measured.seconds,
        f"evaluation/{name}/peak_mib": measured.peak_mib,
    }


def _pairs(requests: Sequence[EditRequest]) -> list[tuple[str, str]]:
    """Every prompt of the requests with every target, each once."""
    pairs = [
        (prompt, target)
        for request in requests
        for prompt in (request.text, *request.paraphrase_prompts, *request.neighborhood_prompts)
        for target in (request.target_new, request.target_true)
        if target is not None
    ]
    return list(dict.fromkeys(pairs))


@torch.no_grad()
def _plain_scores(model: EditableModel, pairs: Sequence[tuple[str, str]]) -> list[TargetScore]:
    """The reference: one text a pass, logits and log-softmax of all its positions."""
    scores = []
    for prompt, target in pairs:
        row = continuation_row(model, prompt, target)
        ids = torch.tensor([row.ids], device=model.device)
        log_p = at_least_float32(model.model(input_ids=ids).logits[0]).log_softmax(-1)
        predicted = log_p[row.target - 1 : -1]
        wanted = ids[0, row.target :].to(log_p.device)
        nll = -predicted.gather(1, wanted[:, None]).mean()
        scores.append(
            TargetScore(float(nll), float((predicted.argmax(-1) == wanted).double().mean()))
        )
    return scores


def _print(figures: Figures) -> None:
    lines = {name: f"evaluation/{name}" for name in ("batched", "plain")}
    print_figures("scoring", _COLUMNS, figures, lines)
    difference = figures["evaluation/largest_nll_difference"]
    verdict = "they agree" if difference <= _AGREEMENT else "THEY DISAGREE"
    print(
        f"\nspeed-up: {figures['evaluation/speedup']:.1f}\n"
        f"largest difference of an NLL: {difference:.1e} ({verdict} within {_AGREEMENT:g})"
    )


if __name__ == "__main__":
    main(run)
