"""Optimising v*: what each saving brings, against a plain reference.

The plain reference takes one request at a time with its contexts as one batch, and runs all layers
and positions, all logits and all steps. The savings are then added one by one, on the same records;
the last line is the library as it is, also on more records. "said" is the share of requests whose
target is the argmax in every context once v* is patched in; efficacy is measured after the values
are written into the weights, all of a line in one batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable, Sequence

import torch

from benchmarks.harness import (
    CONTEXTS,
    Figures,
    Measured,
    benchmark,
    count,
    counterfact_metrics,
    loaded,
    main,
    measure,
    print_figures,
    records,
)
from benchmarks.plain import plain_values
from fedit_app.editing.contexts import sample_contexts
from fedit_app.editing.covariance import CovarianceSource, covariance
from fedit_app.editing.editors import editor_named
from fedit_app.editing.memit import value_site
from fedit_app.editing.optimise import Objective, memit_objective, optimise_values
from fedit_app.editing.settings import EditSettings, edit_settings
from fedit_app.editing.values import ValueProblem, Values, key_rows
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.models.editable import EditableModel

logger = logging.getLogger("fedit_app.benchmarks")

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


@benchmark(
    count("--records", 100, "for the library"),
    count("--plain-records", 8, "for every line"),
)
def run(options: argparse.Namespace) -> Figures:
    """Time the reference, each saving and the library."""
    requests = records(options, max(options.records, options.plain_records))
    model = loaded(options)
    settings = edit_settings(model.model.config.model_type, model.n_layers, model.d_model)
    templates = sample_contexts(model, CONTEXTS, seed=0)
    few = requests[: options.plain_records]
    lines = [(name, few, optimise) for name, optimise in _ways(settings).items()]
    lines.append(("library", requests[: options.records], lines[-1][2]))
    optimise_values(model, few[:1], templates, value_site(model, settings), settings)  # warms up
    figures: Figures = {}
    for name, chosen, optimise in lines:
        measured = measure(lambda: optimise(model, chosen, templates), model.device)  # noqa: B023
        figures |= _figures(name, measured, len(chosen))
        figures[f"targets/{name}/said"] = _said(model, chosen, templates, settings, measured.result)
        figures[f"targets/{name}/efficacy"] = _efficacy(
            model, chosen, templates, settings, measured.result
        )
        figures[f"targets/{name}/speedup"] = (
            figures["targets/plain/seconds_per_edit"] / figures[f"targets/{name}/seconds_per_edit"]
        )
        logger.info("%s: %.2f s per edit", name, figures[f"targets/{name}/seconds_per_edit"])
    names = {name: f"targets/{name}" for name, _, _ in lines}
    print_figures("v* of MEMIT", _COLUMNS, figures, names)
    return figures


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


def _figures(name: str, measured: Measured[Values], count: int) -> Figures:
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
        rows = [key_rows(model, [request], templates) for request in requests[part]]
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
        return counterfact_metrics(model, requests)["efficacy"]


if __name__ == "__main__":
    main(run)
