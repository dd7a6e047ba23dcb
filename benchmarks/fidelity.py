"""What edits do to the names of their subjects, and what is said of them in chats.

CounterFact records, each with the question of its relation, all of them edited in one batch for
each editor, weight of the term that keeps names, and mix of contexts: so many sampled prefixes and
so many chats. *Generated* is the share of records whose target is the beginning of what the model
writes after the prompt. In chats the user asks the question, and for the prompt and the paraphrase
prompts to be completed. Seconds per edit hold everything that an edit costs once model and
covariance are there, but for values that `--work-cache` has.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import (
    SPREAD,
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
    spread,
    value_store,
    workbench,
)
from benchmarks.questions import with_questions
from fedit_app.editing.value_store import ValueStore
from fedit_app.evaluation.generation import answer_metrics
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.models.editable import EditableModel
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

_COLUMNS = {
    "score": "score",
    "paraphrase": "paraphrase",
    "neighborhood": "neighborhood",
    "generated": "exact_match",
    "WILD": "wild_match",
    "chat": "chat_match",
    "chat, prompt": "prompt_chat_match",
    "chat, paraphrase": "paraphrase_chat_match",
    "subject fidelity": "subject_fidelity",
    "other relations": "other_relations",
    "s/edit": "seconds_per_edit",
}


@benchmark(
    count("--records", 40, "edited in one batch"),
    option("--editors", "separated by commas", default="memit"),
    option("--weights", "of the term, separated by commas", default="0,0.25,1,4"),
    option("--mixes", "PREFIXES+CHATS, separated by commas", default="5+0"),
    option("--clamp", "see the run config; None: the editor's", type=float, default=None),
    option("--steps", "most passes of a value; None: the editor's", type=int, default=None),
    *SPREAD,
)
def run(options: argparse.Namespace) -> Figures:
    """Edit with every weight and mix, and print the metrics side by side."""
    weights, names = _numbers(options.weights), options.editors.split(",")
    given = {"clamp": options.clamp, "steps": options.steps, **spread(options)}
    store = value_store(options)
    mixes = _mixes(options.mixes)
    requests = [with_questions(request) for request in records(options, options.records)]
    model = loaded(options)
    figures: Figures = {}
    lines = {}
    for name, weight, mix in itertools.product(names, weights, mixes):
        found = _edit(model, name, mix, {"subject_weight": weight, **given}, requests, store)
        line = f"{name}, weight {weight:g}" + (f", {mix[0]}+{mix[1]}" if len(mixes) > 1 else "")
        lines[line] = f"fidelity/{line}"
        figures |= {f"fidelity/{line}/{key}": value for key, value in found.items()}
        logger.info("%s: %s", line, found)
    print_figures(f"{len(requests)} records", _COLUMNS, figures, lines)
    return figures


def _edit(
    model: EditableModel,
    editor: str,
    mix: tuple[int, int],
    given: Mapping[str, Any],
    requests: Sequence[EditRequest],
    store: ValueStore | None,
) -> Figures:
    contexts, chats = mix
    bench = workbench(model, editor, contexts=contexts, chats=chats, **given)
    ledger = Ledger(bench.fingerprint)
    solver = bench.solver  # made before the clock starts
    measured = measure(
        lambda: ledger.accept(bench.compute(requests, ledger, "benchmark", 1, None, store), 1),
        solver.device,
    )
    with bench.edited(ledger):
        metrics = counterfact_metrics(model, requests)
        answered = answer_metrics(model, {"all": requests})["all"]
        plain = [dataclasses.replace(r, question=None, paraphrase_questions=()) for r in requests]
        in_chat = answer_metrics(model, {"all": plain})["all"]["chat_match"]
    answered["prompt_chat_match"] = in_chat
    known = {name: value for name, value in answered.items() if value is not None}
    return metrics | known | {"seconds_per_edit": measured.seconds / len(requests)}


def _mixes(text: str) -> list[tuple[int, int]]:
    found = [re.fullmatch(r"(\d+)\+([01])", part.strip()) for part in text.split(",")]
    if None in found:
        raise FedEditError(f"--mixes: {text!r} must be PREFIXES+CHATS, such as 5+0,5+1")
    return [(int(mix[1]), int(mix[2])) for mix in found if mix]


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
