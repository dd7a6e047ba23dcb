"""Every editor on the same CounterFact records, all of them edited in one batch.

Efficacy, paraphrase, neighborhood, score and accuracy are CounterFact's; KL and perplexity are
measured on ordinary text, which no edit should change. Seconds per edit hold everything that an
edit costs once model and covariance are there: v*, keys and the solve. The last line times the
plain optimisation of v* alone, see `benchmarks.targets`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import (
    COUNTERFACT,
    counterfact_metrics,
    main,
    measure,
    parser,
    positive,
    records,
    report,
    table,
)
from benchmarks.plain import plain_values
from fedit_app.editing.covariance import CovarianceSource
from fedit_app.editing.editors import EDITORS
from fedit_app.editing.settings import edit_settings
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.neutral import neutral_rows, neutral_scores
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.models.editable import EditableModel
from fedit_app.models.loading import load_model
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

_CONTEXTS = 5
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


def run(arguments: Sequence[str] | None = None) -> None:
    """Edit with each editor and print their metrics side by side.

    Args:
        arguments: of the command line; None for those of the process.

    Raises:
        FedEditError: an editor or a file that does not exist.
    """
    options = parser(__doc__)
    options.add_argument("--records", type=positive, default=200, help="edited in one batch")
    options.add_argument("--plain-records", type=positive, default=4, help="for the plain seconds")
    options.add_argument(
        "--editors", default=",".join(EDITORS), help="separated by commas (%(default)s)"
    )
    options.add_argument(
        "--text",
        type=Path,
        default=COUNTERFACT.with_name("wikitext2_raw_test.txt"),
        metavar="FILE",
        help="ordinary text (%(default)s)",
    )
    options.add_argument("--text-rows", type=positive, default=64, help="of 128 tokens each")
    options = options.parse_args(arguments)
    names = options.editors.split(",")
    unknown = [name for name in names if name not in EDITORS]
    if unknown:
        raise FedEditError(f"--editors: {unknown[0]!r} must be one of {', '.join(EDITORS)}")
    requests = records(options, max(options.records, options.plain_records))
    chosen = requests[: options.records]
    model = load_model(options.model, options.device, options.dtype)
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
    bench = _bench(model, "memit")
    plain = measure(
        lambda: plain_values(
            model, requests[: options.plain_records], bench.templates, bench.settings
        ),
        model.device,
    )
    figures["editors/plain v*/seconds_per_edit"] = plain.seconds / options.plain_records
    figures["editors/plain v*/peak_mib"] = plain.peak_mib
    lines = ["unedited", *names, "plain v*"]
    print(
        table(
            [f"{len(chosen)} records", *_COLUMNS],
            [
                [name, *(figures.get(f"editors/{name}/{part}") for part in _COLUMNS.values())]
                for name in lines
            ],
        )
    )
    report(options, figures)


def _bench(model: EditableModel, editor: str) -> Workbench:
    settings = edit_settings(model.model.config.model_type, model.n_layers, model.d_model, editor)
    return Workbench(model, editor, settings, _CONTEXTS, CovarianceSource(), seed=0)


def _edit(
    model: EditableModel,
    editor: str,
    requests: Sequence[EditRequest],
    rows: Sequence[tuple[int, ...]],
) -> dict[str, float]:
    bench = _bench(model, editor)
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
