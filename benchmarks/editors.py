"""Every editor on the same CounterFact records, all of them edited in one batch.

Efficacy, paraphrase, neighborhood, score and accuracy are CounterFact's; KL and perplexity are
measured on ordinary text, which no edit should change. Seconds per edit hold everything that an
edit costs once model and covariance are there: v*, keys and the solve. The last line times the
optimisation of v* alone as `benchmarks.plain` does it, without any saving.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence

from benchmarks.harness import (
    Figures,
    benchmark,
    count,
    counterfact_metrics,
    loaded,
    main,
    measure,
    option,
    print_figures,
    records,
    text_file,
    workbench,
)
from benchmarks.plain import plain_values
from fedit_app.editing.editors import EDITORS
from fedit_app.evaluation.neutral import neutral_rows, neutral_scores
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

_COLUMNS = {
    "efficacy": "efficacy",
    "paraphrase": "paraphrase",
    "neighborhood": "neighborhood",
    "score": "score",
    "accuracy": "accuracy",
    "KL": "kl",
    "perplexity": "perplexity",
    "s/edit": "seconds_per_edit",
    "peak MiB": "peak_mib",
}


@benchmark(
    count("--records", 200, "edited in one batch"),
    count("--plain-records", 4, "for the plain seconds"),
    option("--editors", "separated by commas", default=",".join(EDITORS)),
    text_file("--text", "wikitext2_raw_test.txt", "ordinary text"),
    count("--text-rows", 64, "of 128 tokens each"),
    option("--no-subjects", "learn every record at its prompt's last token", action="store_true"),
)
def run(options: argparse.Namespace) -> Figures:
    """Edit with each editor and print their metrics side by side."""
    names = options.editors.split(",")
    unknown = [name for name in names if name not in EDITORS]
    if unknown:
        raise FedEditError(f"--editors: {unknown[0]!r} must be one of {', '.join(EDITORS)}")
    requests = records(options, max(options.records, options.plain_records))
    if options.no_subjects:
        requests = [dataclasses.replace(one, subject="", prompt=one.text) for one in requests]
    chosen = requests[: options.records]
    model = loaded(options)
    rows = neutral_rows(model, options.text, options.text_rows)
    figures = {
        f"editors/unedited/{key}": value
        for key, value in counterfact_metrics(model, chosen).items()
    }
    for name in names:
        found = _edit(model, name, chosen, rows)
        figures["editors/unedited/perplexity"] = found.pop("perplexity_before")
        figures |= {f"editors/{name}/{key}": value for key, value in found.items()}
        logger.info(
            "%s: score %.3f, %.2f s per edit", name, found["score"], found["seconds_per_edit"]
        )
    bench = workbench(model)
    plain = measure(
        lambda: plain_values(
            model, requests[: options.plain_records], bench.templates, bench.settings
        ),
        model.device,
    )
    figures["editors/plain v*/seconds_per_edit"] = plain.seconds / options.plain_records
    figures["editors/plain v*/peak_mib"] = plain.peak_mib
    lines = {name: f"editors/{name}" for name in ("unedited", *names, "plain v*")}
    print_figures(f"{len(chosen)} records", _COLUMNS, figures, lines)
    return figures


def _edit(
    model: EditableModel,
    editor: str,
    requests: Sequence[EditRequest],
    rows: Sequence[tuple[int, ...]],
) -> Figures:
    bench = workbench(model, editor)
    ledger = Ledger(bench.fingerprint)
    solver = bench.solver  # made before the clock starts
    measured = measure(
        lambda: ledger.accept(bench.compute(requests, ledger, "benchmark", 1), 1), solver.device
    )
    neutral = neutral_scores(model, bench.deltas(ledger), rows)
    with bench.edited(ledger):
        metrics = counterfact_metrics(model, requests)
    return metrics | {
        "kl": neutral.kl,
        "perplexity_before": neutral.perplexity_before,
        "perplexity": neutral.perplexity_after,
        "seconds_per_edit": measured.seconds / len(requests),
        "peak_mib": measured.peak_mib,
    }


if __name__ == "__main__":
    main(run)
