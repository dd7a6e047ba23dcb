"""What an MKV tells to who should not know, and what a stranger's MKVs do to a model.

Reading. From what a client (or the server) sees of an MKV an attacker with the same model recovers

- the target: v* is put in the place of the last token's state in generic prompts, and the next
  token is read off; "target 1" and "target 10" are how often the target's first token comes first,
  or among ten;
- the subject: keys of candidate subjects, computed without the prompt, are compared with the MKV's;
  "subject 1" and "subject 10" in the same way. "tokens" is the share of the subject's tokens that a
  search over tokens finds without any candidates, for a few MKVs.

Each line is a defence; its score is that of the model edited with what the defence leaves, and
"refused" the share of the MKVs that another node's screening would then not take.

Poisoning. A node has accepted honest MKVs and is offered an attacker's. "success" is the share of
the chosen facts for which the model then says the attacker's target; neighborhood, KL and
perplexity are the damage elsewhere. Each attack is tried on a node without defences, with the
screening, with probes (facts that must not get worse, other ones than the chosen), and under a
quorum of two.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Sequence

from benchmarks.attacks_poisoning import ATTACKS, Node, poison
from benchmarks.attacks_reading import (
    DEFENCES,
    Reader,
    defended,
    distinct_subjects,
)
from benchmarks.harness import (
    Cell,
    Figures,
    benchmark,
    count,
    counterfact_metrics,
    loaded,
    main,
    records,
    table,
    text_file,
    workbench,
)
from benchmarks.screening import distribution
from fedit_app.editing.workbench import Workbench
from fedit_app.evaluation.neutral import neutral_rows
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

_READING = ("refused", "target 1", "target 10", "subject 1", "subject 10", "tokens", "score")
_POISONING = ("offered", "accepted", "success", "neighborhood", "kl", "perplexity")


@benchmark(
    count("--records", 100, "honest MKVs"),
    count("--edited", 32, "edited together and scored"),
    count("--chosen", 8, "poisoned facts"),
    count("--probes", 16, "of the node"),
    text_file(
        "--subjects",
        "counterfact_facts_21919.jsonl",
        "CounterFact records, one a line, whose subjects are the candidates",
    ),
    count("--candidates", 2000, "candidate subjects"),
    count("--searched", 8, "MKVs of the token search"),
    count("--search-steps", 30, "of it"),
    text_file("--text", "wikitext2_raw_test.txt", "ordinary text"),
    count("--text-rows", 8, "of 128 tokens each"),
)
def run(options: argparse.Namespace) -> Figures:
    """Print the honest MKVs against the bounds, then both kinds of attack."""
    requests = records(options, options.records + options.chosen + options.probes)
    bench = workbench(loaded(options), precision="float32")
    honest = bench.compute(requests[: options.records], Ledger(bench.fingerprint), "honest", 1)
    figures = distribution("attacks/screening", bench.screen, honest)
    figures |= _reading(bench, options, requests[: options.records], honest)
    return figures | _poisoning(bench, options, requests, honest[: options.edited])


def _reading(
    bench: Workbench,
    options: argparse.Namespace,
    requests: Sequence[EditRequest],
    honest: Sequence[MKV],
) -> Figures:
    """The table of what can be read."""
    subjects = listed_subjects(options, requests)
    reader = Reader(bench, requests, subjects, options.searched, options.search_steps)
    scored = requests[: options.edited]
    figures: Figures = {}
    rows = []
    for name, defence in DEFENCES.items():
        mkvs = defended(defence, honest)
        found = reader.read([defence.seen(mkv) for mkv in mkvs])
        found["refused"] = len(bench.screen.faults(mkvs)) / len(mkvs)
        ledger = Ledger(bench.fingerprint)
        ledger.accept(mkvs[: options.edited], 1)
        with bench.edited(ledger) as model:
            found["score"] = counterfact_metrics(model, scored)["score"]
        logger.info("%s: %s", name, found)
        figures |= {f"attacks/reading/{name}/{k}": v for k, v in found.items() if v is not None}
        rows.append([name, *(found[column] for column in _READING)])
    heading = f"{len(honest)} MKVs, {len(subjects):,} subjects"
    print(table([heading, *_READING], rows))
    return figures


def listed_subjects(options: argparse.Namespace, requests: Sequence[EditRequest]) -> list[str]:
    """The candidate subjects of an attacker, those of the requests among them.

    Args:
        options: with `subjects`, a file of CounterFact records, and `candidates`, their number.
        requests: whose subjects are to be found.

    Raises:
        FedEditError: there is no such file.
    """
    if not options.subjects.is_file():
        raise FedEditError(
            f"--subjects: {options.subjects} does not exist; name a file with a CounterFact record "
            "a line"
        )
    with options.subjects.open(encoding="utf-8") as lines:
        listed = (json.loads(line)["requested_rewrite"]["subject"] for line in lines)
        return distinct_subjects((r.subject for r in requests), listed, options.candidates)


def _poisoning(
    bench: Workbench,
    options: argparse.Namespace,
    requests: Sequence[EditRequest],
    honest: Sequence[MKV],
) -> Figures:
    """The table of what poison does."""
    chosen = requests[options.records : options.records + options.chosen]
    true = [
        dataclasses.replace(request, target_new=request.target_true, target_true=request.target_new)
        for request in requests[options.records + options.chosen :]
        if request.target_true is not None
    ]
    node = Node(
        bench=bench,
        honest=honest,
        requests=requests[: len(honest)],
        chosen=chosen,
        probes=true,
        text=neutral_rows(bench.model, options.text, options.text_rows),
    )
    figures: Figures = {}
    rows: list[list[Cell]] = []
    for attack in ATTACKS:
        for defence, found in poison(node, attack).items():
            name = f"{attack}, {defence}" if defence else attack
            logger.info("%s: %s", name, found)
            figures |= {f"attacks/poisoning/{name}/{key}": v for key, v in found.items()}
            rows.append([name, *(found[column] for column in _POISONING)])
    print("\n" + table([f"on {len(honest)} honest MKVs", *_POISONING], rows))
    return figures


if __name__ == "__main__":
    main(run)
