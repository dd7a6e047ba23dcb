"""What edits do to the names of their subjects, by the weight of the term that keeps them.

CounterFact records, all of them edited in one batch for each weight and editor. *Generated* is the
share of records whose target is the beginning of what the model writes after the prompt. Seconds
per edit hold everything that an edit costs once model and covariance are there.
"""

from __future__ import annotations

import argparse
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
    workbench,
)
from fedit_app.evaluation.generation import exact_matches
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

_COLUMNS = {
    "score": "score",
    "paraphrase": "paraphrase",
    "neighborhood": "neighborhood",
    "generated": "generated",
    "subject fidelity": "subject_fidelity",
    "other relations": "other_relations",
    "s/edit": "seconds_per_edit",
}


@benchmark(
    count("--records", 40, "edited in one batch"),
    option("--editors", "separated by commas", default="memit"),
    option("--weights", "of the term, separated by commas", default="0,0.25,1,4"),
)
def run(options: argparse.Namespace) -> Figures:
    """Edit with every weight and print the metrics side by side."""
    weights, names = _numbers(options.weights), options.editors.split(",")
    requests, model = records(options, options.records), loaded(options)
    figures: Figures = {}
    lines = {}
    for name in names:
        for weight in weights:
            found = _edit(model, name, weight, requests)
            line = f"{name}, weight {weight:g}"
            lines[line] = f"fidelity/{line}"
            figures |= {f"fidelity/{line}/{key}": value for key, value in found.items()}
            logger.info("%s: %s", line, found)
    print_figures(f"{len(requests)} records", _COLUMNS, figures, lines)
    return figures


def _edit(
    model: EditableModel, editor: str, weight: float, requests: Sequence[EditRequest]
) -> Figures:
    bench = workbench(model, editor, subject_weight=weight)
    ledger = Ledger(bench.fingerprint)
    solver = bench.solver  # made before the clock starts
    measured = measure(
        lambda: ledger.accept(bench.compute(requests, ledger, "benchmark", 1), 1), solver.device
    )
    with bench.edited(ledger):
        metrics = counterfact_metrics(model, requests)
        generated = exact_matches(model, requests)
    return metrics | {
        "generated": sum(generated) / len(generated),
        "seconds_per_edit": measured.seconds / len(requests),
    }


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise FedEditError(f"--weights: {text!r} must be numbers, such as 0,0.25,1") from None
    if min(numbers) < 0:
        raise FedEditError(f"--weights: {min(numbers):g} must be at least 0")
    return numbers


if __name__ == "__main__":
    main(run)
