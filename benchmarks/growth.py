"""One node's ledger that grows slot by slot: what the model still says of all its facts.

CounterFact records of different subjects, edited in slots. "accuracy" is the share of all facts so
far that are the model's answer, "first slot" the same of the oldest, the other metrics are those of
a sample of all ("generated": the text that the model writes begins with the target), and the
perplexity on ordinary text. With upkeep, after each slot own MKVs are written anew whose facts are
not said.
`--work-cache` keeps the values, which are the same with and without, also for the next call.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Sequence

from benchmarks.harness import (
    SPREAD,
    Figures,
    benchmark,
    count,
    counterfact_metrics,
    counts,
    different_subjects,
    loaded,
    main,
    option,
    print_figures,
    spread,
    text_file,
    value_store,
    workbench,
)
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.generation import matches
from fedit_app.evaluation.neutral import neutral_rows, neutral_scores
from fedit_app.evaluation.scores import score_targets
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.conflicts import settle
from fedit_app.ledger.learning import learn
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.upkeep import uphold
from fedit_app.mkv.same_key import SameFact
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

_SHARES = ("score", "efficacy", "paraphrase", "neighborhood")
_COLUMNS = {
    "accuracy": "accuracy",
    "first slot": "first_slot",
    **{name: name for name in _SHARES},
    "generated": "exact_match",
    "perplexity": "perplexity",
    "written anew": "renewed",
    "minutes": "minutes",
}


@benchmark(
    counts("--facts", [100, 300, 500], "facts in the ledger at which it is measured"),
    count("--per-slot", 50, "facts of a slot"),
    count("--sample", 200, "facts of which all metrics are measured"),
    count("--seed", 1, "of the sample"),
    option("--editor", "name of the editor", default="memit"),
    option("--subject-weight", "see the run config", type=float, default=1.0),
    *SPREAD,
    option("--ways", "without and with upkeep", default="without,with"),
    text_file("--text", "wikitext2_raw_test.txt", "ordinary text"),
    count("--text-rows", 32, "of 128 tokens each"),
)
def run(options: argparse.Namespace) -> Figures:
    """Let the ledger grow twice, without and with upkeep."""
    most = max(options.facts)
    between = [n for n in options.facts if n % options.per_slot and n != most]
    if between:
        raise FedEditError(f"--facts: {between[0]} is no multiple of --per-slot")
    ways = options.ways.split(",")
    if not set(ways) <= {"without", "with"}:
        raise FedEditError(f"--ways {options.ways}: name without, with, or both")
    facts = different_subjects(options, most)
    model = loaded(options)
    bench = workbench(
        model, options.editor, subject_weight=options.subject_weight, **spread(options)
    )
    text = neutral_rows(model, options.text, options.text_rows)
    store = value_store(options)
    unedited = neutral_scores(model, {}, text).perplexity_before
    figures: Figures = {"growth/unedited/perplexity": unedited}
    lines = {"unedited": "growth/unedited"}
    for way in ways:
        ledger, renewed, seconds = Ledger(bench.fingerprint), 0, 0.0
        for begin in range(0, most, options.per_slot):
            slot, known = begin // options.per_slot + 1, facts[: begin + options.per_slot]
            started = time.perf_counter()
            new = learn(bench, ledger, known[begin:], known, "node", slot, {}, store=store)
            if way == "with":
                again = uphold(bench, ledger, known, "node", slot, len(known) - begin)
                renewed, new = renewed + len(again), [*new, *again]
            settle(ledger, [mkv.id for mkv in new], "own-wins", SameFact())
            seconds += time.perf_counter() - started
            if len(known) in options.facts:
                path = f"growth/{way}/n={len(known)}"
                lines[f"{len(known)} facts, {way} upkeep"] = path
                found = _measured(bench, ledger, known, text, options)
                found |= {"renewed": float(renewed), "minutes": seconds / 60}
                figures |= {f"{path}/{key}": value for key, value in found.items()}
                logger.info("%s upkeep, %d facts: %s", way, len(known), found)
    print_figures("", _COLUMNS, figures, lines)
    return figures


def _measured(
    bench: Workbench,
    ledger: Ledger,
    facts: Sequence[EditRequest],
    text: Sequence[tuple[int, ...]],
    options: argparse.Namespace,
) -> Figures:
    chosen = random.Random(options.seed).sample(facts, min(options.sample, len(facts)))
    with bench.edited(ledger) as model:
        scores = score_targets(model, [fact.asked_new for fact in facts])
        found = counterfact_metrics(model, chosen)
        generated = [float(match.exact) for match in matches(model, chosen)]
    neutral = neutral_scores(bench.model, bench.deltas(ledger), text)
    said = [float(score.decoded) for score in scores]
    first = said[: options.per_slot]
    return {name: found[name] for name in _SHARES if name in found} | {
        "accuracy": sum(said) / len(said),
        "first_slot": sum(first) / len(first),
        "exact_match": sum(generated) / len(generated),
        "perplexity": neutral.perplexity_after,
    }


if __name__ == "__main__":
    main(run)
