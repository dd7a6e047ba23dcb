"""Optimising v*: what each saving brings, against a plain reference.

The plain reference takes one request at a time with its contexts as one batch, and runs all layers
and positions, all logits and all steps. The savings are then added one by one, on the same records;
the last line is the library as it is, also on more records. "said" is the share of requests whose
target is the argmax in every context once v* is patched in; efficacy is measured after the values
are written into the weights, all of a line in one batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness import Measured, main, measure, parser, positive, records, report, table
from benchmarks.plain import plain_values
from fedit_app.editing.contexts import sample_contexts
from fedit_app.editing.covariance import CovarianceSource, covariance
from fedit_app.editing.editors import editor_named
from fedit_app.editing.memit import value_site
from fedit_app.editing.optimise import Objective, memit_objective, optimise_values
from fedit_app.editing.settings import EditSettings, edit_settings
from fedit_app.editing.values import ValueProblem, Values, request_rows
from fedit_app.evaluation.metrics import aggregate
from fedit_app.evaluation.scores import score_requests
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.models.editable import EditableModel
from fedit_app.models.embedded import EMBEDDED_MODEL
from fedit_app.models.loading import load_model, resolve_device, resolve_model

logger = logging.getLogger("fedit_app.benchmarks")

SHAPES = {"gptj-6b": ("gptj", {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64})}
_CONTEXTS = 5
_SAID_AT_ONCE = 16
_COLUMNS = {
    "records": "records",
    "s/edit": "seconds_per_edit",
    "speed-up": "speedup",
    "passes": "passes",
    "peak MiB": "peak_mib",
    "loss": "loss",
    "said": "said",
    "efficacy": "efficacy",
}


def run(arguments: Sequence[str] | None = None) -> None:
    """Time the reference, each saving and the library.

    Args:
        arguments: of the command line; None for those of the process.
    """
    options = parser(__doc__)
    options.add_argument("--records", type=positive, default=100, help="for the library")
    options.add_argument("--plain-records", type=positive, default=8, help="for every line")
    options.add_argument(
        "--shape",
        choices=sorted(SHAPES),
        help="random weights of this shape in bfloat16 instead of a model; no efficacy is measured",
    )
    options = options.parse_args(arguments)
    requests = records(options, max(options.records, options.plain_records))
    if options.shape:
        model = random_model(options.shape, resolve_device(options.device))
    else:
        model = load_model(options.model, options.device, options.dtype)
    settings = edit_settings(model.model.config.model_type, model.n_layers, model.d_model)
    templates = sample_contexts(model, _CONTEXTS, seed=0)
    few = requests[: options.plain_records]
    lines = [(name, few, optimise) for name, optimise in _ways(settings).items()]
    lines.append(("library", requests[: options.records], lines[-1][2]))
    optimise_values(model, few[:1], templates, value_site(model, settings), settings)  # warms up
    figures: dict[str, float] = {}
    for name, chosen, optimise in lines:
        measured = measure(lambda: optimise(model, chosen, templates), model.device)  # noqa: B023
        figures |= _figures(name, measured, len(chosen))
        figures[f"targets/{name}/said"] = _said(model, chosen, templates, settings, measured.result)
        if not options.shape:
            figures[f"targets/{name}/efficacy"] = _efficacy(
                model, chosen, templates, settings, measured.result
            )
        figures[f"targets/{name}/speedup"] = (
            figures["targets/plain/seconds_per_edit"] / figures[f"targets/{name}/seconds_per_edit"]
        )
        logger.info("%s: %.2f s per edit", name, figures[f"targets/{name}/seconds_per_edit"])
    rows = [
        [name, *(figures.get(f"targets/{name}/{part}") for part in _COLUMNS.values())]
        for name, _, _ in lines
    ]
    print(table(["v* of MEMIT", *_COLUMNS], rows))
    report(options, figures)


Optimise = Callable[[EditableModel, Sequence[EditRequest], Sequence[str]], Values]


def _ways(settings: EditSettings) -> dict[str, Optimise]:
    """From the plain reference to the library, one saving more at a time."""
    every_step = dataclasses.replace(settings, stop_after=0)

    def plain(**savings: bool) -> Optimise:
        return lambda model, requests, templates: plain_values(
            model, requests, templates, settings, **savings
        )

    def library(batch: int, chosen: EditSettings, objective: Objective) -> Optimise:
        chosen = dataclasses.replace(chosen, batch=batch)
        return lambda model, requests, templates: optimise_values(
            model, requests, templates, value_site(model, chosen), chosen, objective
        )

    return {
        "plain": plain(),
        "+ logits at targets": plain(logits_at_targets=True),
        "+ lower layers cached": plain(logits_at_targets=True, lower_layers_cached=True),
        "+ prefix cached": library(1, every_step, _never_solved),
        "+ batching": library(0, every_step, _never_solved),
        "+ early stop": library(0, settings, memit_objective),
    }


def _never_solved(outcome, decay, settings):
    loss, solved = memit_objective(outcome, decay, settings)
    return loss, torch.zeros_like(solved)


def _figures(name: str, measured: Measured[Values], count: int) -> dict[str, float]:
    return {
        f"targets/{name}/records": count,
        f"targets/{name}/seconds_per_edit": measured.seconds / count,
        f"targets/{name}/passes": float(measured.result.steps.double().mean()),
        f"targets/{name}/peak_mib": measured.peak_mib,
        f"targets/{name}/loss": float(measured.result.loss.mean()),
    }


def _said(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    settings: EditSettings,
    values: Values,
) -> float:
    """Share of requests whose target every context decodes with v* patched in."""
    change = (values.v_star - values.h0)[:, -1]
    said = 0
    for start in range(0, len(requests), _SAID_AT_ONCE):
        part = slice(start, start + _SAID_AT_ONCE)
        rows = [request_rows(model, request, templates) for request in requests[part]]
        problem = ValueProblem.of(model, rows, value_site(model, settings))
        said += int(problem.patched(change[part]).decoded.sum())
    return said / len(requests)


def _efficacy(
    model: EditableModel,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    settings: EditSettings,
    values: Values,
) -> float:
    """CounterFact's efficacy once the values are written, all in one batch."""
    editor = editor_named("memit")
    found = covariance(model, settings.layers, CovarianceSource())
    solver = editor.solver(found, settings, model.device)
    empty = Ledger("").vectors(len(settings.layers), model.d_ff, model.d_model)
    vectors = editor.vectors(model, requests, templates, solver, empty, settings, values)
    with model.edited(solver.deltas(vectors.keys, vectors.shifts)):
        return aggregate(score_requests(model, requests)).efficacy


def random_model(shape: str, device: torch.device) -> EditableModel:
    """A model of a known shape with random weights in bfloat16 and the embedded model's tokenizer.

    Args:
        shape: a key of `SHAPES`.
        device: where it is made.
    """
    family, sizes = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(EMBEDDED_MODEL))
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **sizes)
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    fingerprint = hashlib.sha256(f"random {shape}".encode()).hexdigest()[:32]
    return EditableModel(model, tokenizer, shape, fingerprint)


if __name__ == "__main__":
    main(run)
