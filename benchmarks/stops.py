"""When a value is done: what the rule that stops its optimisation costs and gives.

Every value is optimised once, to the last pass, and each rule takes it as it was in the pass in
which the rule would have stopped it. The values of a rule are written in one batch. The rules:

- `held=K`: the target was the argmax in every context for K passes beyond the first
  (`stop_after`), or the loss is below 0.05;
- `p=P`: the target's probability is at least P, the geometric mean over its tokens and contexts;
- `loss=L`: the loss is below L, as in MEMIT's code with 0.05;
- `never`: the last pass.

"lead" is P(new) - P(true) after the prompt and after paraphrases of it, "generated" the share of
facts with which the model's own text begins. Seconds are the passes of a rule times those that a
pass took a value, with all of the batch in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.harness import (
    Figures,
    benchmark,
    count,
    counterfact_metrics,
    different_subjects,
    loaded,
    main,
    option,
    print_figures,
    workbench,
)
from fedit_app.editing.optimise import (
    SOLVED,
    batch_that_fits,
    memit_objective,
    minimise,
    reach_of,
)
from fedit_app.editing.settings import EditSettings
from fedit_app.editing.values import Outcome, ValueProblem, key_rows
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.generation import matches
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

_COLUMNS = {
    "passes": "passes",
    "s/value": "seconds_per_value",
    "longest": "at_clamp",
    "generated": "exact_match",
    "accuracy": "accuracy",
    "lead": "magnitude",
    "paraphrase": "paraphrase",
    "paraphrase lead": "paraphrase_magnitude",
    "neighborhood": "neighborhood",
    "score": "score",
    "subject fidelity": "subject_fidelity",
}
_RULES = "held=1,held=2,held=4,held=8,p=0.5,p=0.9,loss=0.05,never"


@dataclass(frozen=True)
class _Watched(ValueProblem):
    """A problem that remembers of every pass delta, the NLL and whether the target was decoded."""

    seen: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def evaluate(self, delta: Tensor) -> Outcome:
        outcome = super().evaluate(delta)
        last, nll, decoded = (
            part.detach().clone().cpu() for part in (delta[:, -1], outcome.nll, outcome.decoded)
        )
        self.seen.append((last, nll, decoded))
        return outcome


@dataclass(frozen=True)
class Passes:
    """All passes of n values.

    Attributes:
        delta: (passes, n, d_model) v - h0.
        held: (passes, n) in how many passes in a row, up to this one, the target was the argmax.
        probability: (passes, n) of the target.
        loss: (passes, n).
        h0: (n, d_model).
        reach: (n,) the largest |v - h0|.
        seconds: what a pass of a value took.
    """

    delta: Tensor
    held: Tensor
    probability: Tensor
    loss: Tensor
    h0: Tensor
    reach: Tensor
    seconds: float

    def stopped(self, rule: str) -> Tensor:
        """(n,) number of the pass in which a rule stops each value."""
        name, _, number = rule.partition("=")
        found = torch.zeros_like(self.held, dtype=torch.bool)
        if name == "held":
            found = (self.held > int(number)) | (self.loss < SOLVED)
        elif name == "p":
            found = self.probability >= float(number)
        elif name == "loss":
            found = self.loss < float(number)
        found[-1] = True
        return found.int().argmax(0)


@benchmark(
    count("--records", 200, "facts of different subjects, edited in one batch"),
    option("--rules", "separated by commas", default=_RULES),
)
def run(options: argparse.Namespace) -> Figures:
    """Optimise the values once, and write them as every rule would leave them."""
    rules = options.rules.split(",")
    for rule in rules:
        _require_rule(rule)
    facts = different_subjects(options, options.records)
    bench = workbench(loaded(options), subject_weight=1.0)
    passes = optimised(bench, facts)
    figures: Figures = {}
    for rule in rules:
        found = _measured(bench, facts, passes, rule)
        figures |= {f"stops/{rule}/{key}": value for key, value in found.items()}
        logger.info("%s: %s", rule, found)
    print_figures(f"{len(facts)} records", _COLUMNS, figures, {r: f"stops/{r}" for r in rules})
    return figures


def _require_rule(rule: str) -> None:
    name, _, number = rule.partition("=")
    try:
        known = rule == "never" or (name == "held" and int(number) >= 0)
        known = known or (name in ("p", "loss") and float(number) > 0)
    except ValueError:
        known = False
    if not known:
        raise FedEditError(f"--rules: {rule!r} must be held=K, p=P, loss=L or never")


def optimised(bench: Workbench, facts: Sequence[EditRequest]) -> Passes:
    """All passes of the values of facts of different keys, which no rule stops."""
    model, settings = bench.model, dataclasses.replace(bench.settings, stop_after=0)
    site = bench.editor.site(model, settings)
    rows = [key_rows(model, [fact], bench.templates, with_copy=True) for fact in facts]
    order = sorted(range(len(rows)), key=lambda i: rows[i].width)
    size = batch_that_fits(model, rows, site.first)
    found: list[Passes] = []
    for begin in range(0, len(order), size):
        problem = ValueProblem.of(model, [rows[i] for i in order[begin : begin + size]], site)
        found.append(_batch(problem, settings))
        logger.info("%d of %d values", min(begin + size, len(order)), len(order))
    place = torch.tensor(order).argsort()

    def joined(name: str, axis: int) -> Tensor:
        return torch.cat([getattr(one, name) for one in found], axis).index_select(axis, place)

    return Passes(
        delta=joined("delta", 1),
        held=joined("held", 1),
        probability=joined("probability", 1),
        loss=joined("loss", 1),
        h0=joined("h0", 0),
        reach=joined("reach", 0),
        seconds=sum(one.seconds * len(one.h0) for one in found) / len(rows),
    )


def _batch(problem: ValueProblem, settings: EditSettings) -> Passes:
    watched = _Watched(
        **{one.name: getattr(problem, one.name) for one in dataclasses.fields(problem)}
    )
    losses = []

    def objective(outcome: Outcome, decay: Tensor, settings: EditSettings) -> tuple[Tensor, Tensor]:
        loss, solved = memit_objective(outcome, decay, settings)
        losses.append(loss.detach())
        return loss, torch.zeros_like(solved)

    n = len(problem.h0)
    started = time.perf_counter()
    minimise(watched, settings, objective, [None] * n, lambda *_: None)
    seconds = (time.perf_counter() - started) / (n * settings.steps)
    delta, nll, decoded = map(torch.stack, zip(*watched.seen, strict=True))
    held = torch.zeros(decoded.shape, dtype=torch.long)
    for number, row in enumerate(decoded):
        held[number] = torch.where(row, held[number - 1] + 1, 0) if number else row
    return Passes(
        delta=delta,
        held=held,
        probability=nll.neg().exp(),
        loss=torch.stack(losses).cpu(),
        h0=problem.h0[:, -1].cpu(),
        reach=reach_of(problem, settings)[:, -1, 0].cpu(),
        seconds=seconds,
    )


def _measured(bench: Workbench, facts: Sequence[EditRequest], passes: Passes, rule: str) -> Figures:
    stopped = passes.stopped(rule)
    delta = passes.delta[stopped, torch.arange(len(facts))]
    values, h0 = ((passes.h0 + delta).numpy(), passes.h0.numpy())
    ledger = Ledger(bench.fingerprint)
    ledger.accept(bench.write([[f] for f in facts], values, h0, ledger, "benchmark", 1), 1)
    with bench.edited(ledger) as model:
        metrics = counterfact_metrics(model, facts)
        generated = [float(match.exact) for match in matches(model, facts)]
    mean_passes = float((stopped + 1).double().mean())
    return metrics | {
        "passes": mean_passes,
        "seconds_per_value": mean_passes * passes.seconds,
        "at_clamp": float((delta.norm(dim=1) > 0.999 * passes.reach).double().mean()),
        "exact_match": sum(generated) / len(generated),
    }


if __name__ == "__main__":
    main(run)
