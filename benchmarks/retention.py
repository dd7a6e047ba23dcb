"""What a federation keeps of a central ledger's score where clients have facts about one subject.

A part of the clients' facts share their subject, and the words up to it, with a fact of another
client, half of these in the same slot. `central` has all texts and learns one value for both facts;
in a federation no client has the other's text. Metrics after the last slot, over all facts, asked
of every client; "shared" counts those that share a subject, "hold" those of them that a model says,
"conflicts" the pairs of MKVs of which one gave way.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Figures, benchmark, count, main, option, print_figures
from benchmarks.subjects import FACTS, Runs, pairs_of
from fedit_app.facts.counterfact import read_counterfact
from fedit_app.facts.request import EditRequest
from fedit_app.report import Results
from fedit_app.report.results import Costs
from fedit_app.support.errors import FedEditError

_SHARES = ("score", "efficacy", "paraphrase", "neighborhood", "accuracy")
_COLUMNS = {
    **{name: name for name in _SHARES},
    "of central": "retention",
    "shared": "shared",
    "hold": "hold",
    "composed": "composed",
    "rounds": "rounds",
    "conflicts": "conflicts",
    "own said": "own",
}

Plan = dict[str, list[list[EditRequest]]]


def planned(
    pairs: Sequence[Sequence[EditRequest]],
    others: Sequence[EditRequest],
    shape: tuple[int, int, int],
    share: float,
    seed: int,
) -> Plan:
    """Spread facts over clients and slots.

    Args:
        pairs: subjects with a fact for each of two clients.
        others: facts about subjects of their own.
        shape: clients, slots, facts a slot.
        share: part of the facts that are of pairs.
        seed: of the places of the pairs' facts.

    Returns:
        Per client its facts, slot by slot; of every other pair both are in the same slot.

    Raises:
        FedEditError: there are not enough facts, or there is no room for the share.
    """
    clients, slots, size = shape
    total = clients * slots * size
    chosen = pairs[: round(total * share / 2)]
    taken = {pair[0].subject for pair in chosen}
    singles = list({fact.subject: fact for fact in others if fact.subject not in taken}.values())
    rest = total - 2 * len(chosen)
    if len(chosen) < round(total * share / 2) or len(singles) < rest:
        raise FedEditError(
            f"--facts has {len(pairs)} subjects with two facts, --data {len(singles)} other ones; "
            f"{total} facts with --share {share:g} need {round(total * share / 2)} and {rest}"
        )
    if not 0 <= share <= 0.5:
        raise FedEditError(f"--share {share:g} must be from 0 to 0.5")
    rng = random.Random(seed)
    plan: Plan = {f"client-{c}": [[] for _ in range(slots)] for c in range(clients)}
    names = list(plan)
    for number, pair in enumerate(chosen):
        open_ = [name for name in names if any(len(slot) < size for slot in plan[name])]
        one, other = rng.sample(open_, 2)
        first = _free(plan[one], size, rng.randrange(slots))
        same = number % 2 == 0
        second = _free(plan[other], size, first if same else first + 1 + rng.randrange(slots))
        plan[one][first].append(pair[0])
        plan[other][second].append(pair[1])
    left = iter(singles)
    for facts in plan.values():
        for slot in facts:
            slot += [next(left) for _ in range(size - len(slot))]
    return plan


def _free(slots: Sequence[Sequence[EditRequest]], size: int, wanted: int) -> int:
    """The first slot from the wanted one on that is not full."""
    order = [(wanted + step) % len(slots) for step in range(len(slots))]
    return min(order, key=lambda slot: len(slots[slot]) >= size)


@benchmark(
    count("--clients", 8, "of the federation"),
    count("--slots", 10, "of the run"),
    count("--requests", 5, "of a client in a slot"),
    option(
        "--share", "of the facts that share their subject with another's", type=float, default=0.25
    ),
    option("--strategies", "beside central, separated by commas", default="fedit"),
    option("--facts", "of CounterFact, JSON lines, for pairs", type=Path, default=FACTS),
    option("--seed", "of the plan and the runs", type=int, default=1),
    option("--work-cache", "folder of values that several runs share", default=""),
)
def run(options: argparse.Namespace) -> Figures:
    """Run the federations and print a line for each."""
    pairs = pairs_of(read_counterfact(str(options.facts)), None, options.seed)
    others = read_counterfact(str(options.data))
    shape = (options.clients, options.slots, options.requests)
    plan = planned(pairs, others, shape, options.share, options.seed)
    subjects = Counter(fact.subject for slots in plan.values() for slot in slots for fact in slot)
    shared = sum(number for number in subjects.values() if number > 1)
    figures: Figures = {}
    strategies = [*filter(None, options.strategies.split(",")), "central"]
    with tempfile.TemporaryDirectory(prefix="fedit-retention-") as name:
        runs = Runs(options, Path(name))
        for strategy in strategies:
            done = runs(
                strategy,
                plan,
                strategy=strategy,
                selection="all",
                **{"evaluate-every": options.slots},
            )
            figures |= _found(strategy, done)
    for strategy in strategies:
        score = figures[f"retention/{strategy}/score"]
        figures[f"retention/{strategy}/retention"] = score / figures["retention/central/score"]
    print_figures(
        f"{sum(subjects.values())} facts at {options.clients} clients in {options.slots} slots, "
        f"{shared} of which share a subject",
        _COLUMNS,
        figures,
        {strategy: f"retention/{strategy}" for strategy in strategies},
    )
    return figures


def _found(strategy: str, results: Results) -> Figures:
    """A run's metrics over all facts, a mean over its clients, and what it did."""
    clients = list(results.nodes.values())
    asked = [client.federation for client in clients]
    shared = [metrics.shared_subject for metrics in asked if metrics.shared_subject]
    happened = Costs.summed(node for slot in results.slots for node in slot.nodes.values())
    found: Figures = {
        name: _mean([getattr(metrics, name) for metrics in asked]) for name in _SHARES
    }
    conflicts = {
        frozenset((pair.held, pair.gave_way))
        for slot in results.slots
        for node in slot.nodes.values()
        for pair in node.conflict_pairs
    }
    found |= {
        "own": _mean([client.own.accuracy for client in clients]),
        "composed": happened.composed / 2,
        "conflicts": len(conflicts),
    }
    if shared:
        found["shared"] = _mean([one.count for one in shared])
        found["hold"] = _mean([one.hold for one in shared])
    if happened.composed:
        found["rounds"] = happened.compose_rounds / happened.composed
    return {f"retention/{strategy}/{name}": value for name, value in found.items()}


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


if __name__ == "__main__":
    main(run)
