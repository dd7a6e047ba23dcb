"""What a holder of a contested key reads of the other one's target: from its MKV, from the rounds.

Subjects of CounterFact with facts of two relations, one at each of two holders. The second one is
the attacker: it has the first one's MKV anyway, and sees the value that the first one returns in
every round. It knows the subject, and neither prompt nor target: it ranks all tokens by how much a
value makes them likelier behind generic words (`attacks_reading`). *target 1* and *target 10* are
the shares of targets whose first token comes first, or among ten.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.attacks_reading import Reader, Seen
from benchmarks.harness import (
    Figures,
    benchmark,
    count,
    loaded,
    main,
    print_figures,
    text_file,
    workbench,
)
from benchmarks.subjects import pairs_of
from fedit_app.editing.composition import combined
from fedit_app.editing.workbench import Workbench
from fedit_app.facts.counterfact import read_counterfact
from fedit_app.facts.request import EditRequest

_STEPS = 3


@benchmark(
    text_file("--facts", "counterfact_facts_21919.jsonl", "CounterFact's facts, JSON lines"),
    count("--subjects", 24, "with two facts"),
    count("--rounds", 5, "of composition"),
    count("--seed", 1, "of the choice"),
    data=False,
)
def run(options: argparse.Namespace) -> Figures:
    """Compose, read what was seen, and print a line for each source."""
    bench = workbench(loaded(options))
    pairs = pairs_of(read_counterfact(options.facts), options.subjects, options.seed)
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]
    own, returned = _composed(bench, sides, options.rounds)
    subjects = list(dict.fromkeys(request.subject for request in sides[0]))
    reader = Reader(bench, sides[0], subjects, searched=0, steps=0)
    rounds = np.stack(returned)
    sources = {
        "the MKV": own,
        "the first round": rounds[0],
        "the last round": rounds[-1],
        "all rounds, their mean": rounds.mean(0),
        "the MKV and all rounds, their mean": np.concatenate([own[None], rounds]).mean(0),
    }
    figures: Figures = {}
    for name, values in sources.items():
        ranks = reader.target_ranks([Seen(value, None) for value in values])
        if ranks is None:
            continue
        for most in (1, 10):
            share = float((ranks < most).double().mean())
            figures[f"rounds/{name}/target_{most}"] = share
    columns = {"target 1": "target_1", "target 10": "target_10"}
    lines = {name: f"rounds/{name}" for name in sources}
    print_figures(f"seen of {len(pairs)} facts", columns, figures, lines)
    return figures


def _composed(
    bench: Workbench, sides: Sequence[Sequence[EditRequest]], rounds: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The first holder's own values (n, d_model), and those that it returns in each round."""
    found = [
        bench.editor.values(bench.model, requests, bench.templates, bench.settings)
        for requests in sides
    ]
    h0 = found[0].h0[:, -1].float().cpu().numpy()
    changes = [(v.v_star - v.h0)[:, -1].float().cpu().numpy() for v in found]
    own, returned = h0 + changes[0], []
    groups = [[[request] for request in requests] for requests in sides]
    for round_ in range(rounds):
        common = np.stack(
            [
                combined(both, base, bench.settings.clamp, "mean", bench.precision) - base
                for *both, base in zip(*changes, h0, strict=True)
            ]
        )
        changes = [
            bench.compose(group, common, _STEPS, round_).change.float().cpu().numpy()
            for group in groups
        ]
        returned.append(h0 + changes[0])
    return own, returned


if __name__ == "__main__":
    main(run)
