"""Facts that share a subject: within one organisation, between two, and at a third.

Subjects of CounterFact of which it has facts of two relations, both prompts beginning with the
subject: their keys are the same. Federations in Flower's simulation engine, each fact with one
owner:

- alone: each organisation edits its own fact of every subject, and exchanges nothing.
- one slot: one organisation edits both in one slot. two slots: in two.
- holders: one fact a subject at each of two organisations, which exchange MKVs. third: what a third
  organisation has of both from them.
- contradictions: two organisations ask the same of a subject with two targets, in the same words,
  or in other words of the same relation.
- many: three facts of a subject, and as many as there are, at one organisation.

Accuracy is that all target tokens are the argmax; *composed* counts contested keys, *rounds* is the
mean over these.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import random
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.harness import COUNTERFACT, Figures, benchmark, count, main, option, print_figures
from fedit_app.facts.counterfact import read_counterfact
from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.flower_compat.launch import find_app, simulate
from fedit_app.report import Results, load_results
from fedit_app.report.results import Costs
from fedit_app.support.errors import FedEditError

logger = logging.getLogger("fedit_app.benchmarks")

FACTS = COUNTERFACT.with_name("counterfact_facts_21919.jsonl")
_COLUMNS = {
    "facts": "facts",
    "accuracy A": "accuracy_a",
    "accuracy B": "accuracy_b",
    "of alone": "of_alone",
    "other relations": "other_relations",
    "composed": "composed",
    "rounds": "rounds",
    "conflicts": "conflicts",
}
PARTS = ("alone", "one-slot", "two-slots", "holders", "contradictions", "many")


def pairs_of(facts: Sequence[EditRequest], count: int | None, seed: int) -> list[list[EditRequest]]:
    """Per subject its facts, one of each relation, at least two; prompts begin with the subject.

    Args:
        facts: of CounterFact.
        count: how many subjects; None for all.
        seed: of the order.
    """
    by_subject: dict[str, dict[str | None, EditRequest]] = defaultdict(dict)
    for request in facts:
        known = by_subject[request.subject]
        if request.prompt.startswith(SLOT) and all(
            request.prompt != other.prompt for other in known.values()
        ):
            known.setdefault(request.relation, request)
    several = [list(found.values()) for found in by_subject.values() if len(found) > 1]
    random.Random(seed).shuffle(several)
    return several[:count]


@benchmark(
    count("--subjects", 200, "with two facts"),
    count("--contradictions", 60, "subjects with a contradiction, of each kind"),
    option("--facts", "of CounterFact, JSON lines", type=Path, default=FACTS),
    option("--parts", "of the benchmark, separated by commas", default=",".join(PARTS)),
    option("--seed", "of the choice and the runs", type=int, default=1),
    option("--work-cache", "folder of values that several runs share", default=""),
)
def run(options: argparse.Namespace) -> Figures:
    """Run the federations and print a line for each."""
    facts = read_counterfact(str(options.facts))
    several = pairs_of(facts, options.subjects, options.seed)
    first = [found[0] for found in several]
    second = [found[1] for found in several]
    figures: Figures = {}
    parts = options.parts.split(",")
    with tempfile.TemporaryDirectory(prefix="fedit-subjects-") as name:
        run_ = Runs(options, Path(name))
        if "alone" in parts:
            done = run_("alone", {"a": [first], "b": [second]}, strategy="local")
            figures |= _pair("alone", done)
        if "one-slot" in parts:
            both = [r for pair in zip(first, second, strict=True) for r in pair]
            done = run_("one-slot", {"a": [both]}, strategy="local")
            figures |= _single("one-slot", done)
        if "two-slots" in parts:
            done = run_("two-slots", {"a": [first, second]}, strategy="local")
            figures |= _single("two-slots", done)
        if "holders" in parts:
            named = {request.subject for request in first}
            stranger = [next(fact for fact in facts if fact.subject not in named)]
            done = run_("holders", {"a": [first], "b": [second], "c": [stranger]})
            figures |= _pair("holders", done)
            figures |= _pair("at the holders, all", done, "federation")
            figures |= _single("third", done, node="c", scope="federation")
            figures |= _cost(done)
        if "contradictions" in parts:
            chosen = first[: options.contradictions]
            for kind in ("same words", "other words"):
                rivals = _rivals(chosen, facts, options.seed, kind == "other words")
                done = run_(kind, {"a": [chosen], "b": [rivals]})
                figures |= _pair(f"contradictions, {kind}", done)
        if "many" in parts:
            for number in (3, 4):
                most = [found[:number] for found in pairs_of(facts, len(facts), options.seed)]
                chosen = [r for found in most if len(found) == number for r in found]
                if chosen:
                    done = run_(f"many-{number}", {"a": [chosen]}, strategy="local")
                    figures |= _single(f"{number} facts", done)
    _relate(figures)
    lines = list(dict.fromkeys(key.split("/")[1] for key in figures))
    print_figures(
        f"facts that share a subject ({len(several)} subjects)",
        _COLUMNS,
        figures,
        {line: f"subjects/{line}" for line in lines},
    )
    return figures


class Runs:
    """Runs federations in folders of their own."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder

    def __call__(
        self, name: str, nodes: Mapping[str, Sequence[Sequence[EditRequest]]], **given: str | int
    ) -> Results:
        data, options = self._folder / f"data-{name}", self._options
        data.mkdir()
        for node, slots in nodes.items():
            lines = [
                json.dumps(_record(request, f"{node}-{slot}-{i}", slot))
                for slot, requests in enumerate(slots, start=1)
                for i, request in enumerate(requests)
            ]
            (data / f"{node}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        folder = self._folder / f"run-{name}"
        config = {
            "model": options.model,
            "device": options.device,
            "dtype": options.dtype,
            "dataset": "jsonl",
            "data-path": str(data),
            "num-slots": max(map(len, nodes.values())),
            "seed": options.seed,
            "output-dir": str(folder),
            "work-cache": options.work_cache or str(self._folder / "cache"),
            "max-uploads-per-slot": 10_000,
            "slot-timeout": 36_000.0,
            **given,
        }
        log: list[str] = []
        status = simulate(find_app(None), config, len(nodes), log.append)
        if status != "finished:completed":
            raise FedEditError(f"run {name} ended with {status}: " + " | ".join(log[-5:]))
        results = load_results(folder / "results.json")
        logger.info("%s: %s", name, {n: node.own for n, node in results.nodes.items()})
        return results


def _record(request: EditRequest, id_: str, slot: int) -> dict[str, object]:
    given = dataclasses.asdict(request) | {"id": id_, "slot": slot}
    return {key: value for key, value in given.items() if value not in (None, ())}


def _pair(line: str, results: Results, scope: str = "own") -> Figures:
    found = {f"accuracy_{side}": getattr(results.nodes[side], scope) for side in "ab"}
    figures = {f"subjects/{line}/{key}": metrics.accuracy for key, metrics in found.items()}
    figures[f"subjects/{line}/facts"] = sum(metrics.count for metrics in found.values())
    return figures | _happened(line, results)


def _single(line: str, results: Results, node: str = "a", scope: str = "own") -> Figures:
    metrics = getattr(results.nodes[node], scope)
    figures = {
        f"subjects/{line}/accuracy_a": metrics.accuracy,
        f"subjects/{line}/facts": metrics.count,
    }
    if metrics.other_relations is not None:
        figures[f"subjects/{line}/other_relations"] = metrics.other_relations
    return figures | _happened(line, results)


def _happened(line: str, results: Results) -> Figures:
    happened = Costs.summed(node for slot in results.slots for node in slot.nodes.values())
    figures: Figures = {
        f"subjects/{line}/composed": happened.composed / 2,
        f"subjects/{line}/conflicts": sum(slot.conflicts for slot in results.slots),
    }
    if happened.composed:
        figures[f"subjects/{line}/rounds"] = happened.compose_rounds / happened.composed
    return figures


def _cost(results: Results) -> Figures:
    """Seconds of composition."""
    seconds = [slot.seconds for slot in results.slots]
    return {"subjects/holders/seconds": sum(one.compose or 0.0 for one in seconds)}


def _rivals(
    chosen: Sequence[EditRequest], facts: Sequence[EditRequest], seed: int, reworded: bool
) -> list[EditRequest]:
    """For every fact one that contradicts it: the same relation, another target."""
    rng = random.Random(seed)
    by_relation: dict[str | None, list[EditRequest]] = defaultdict(list)
    for fact in facts:
        if fact.prompt.startswith(SLOT):
            by_relation[fact.relation].append(fact)
    rivals = []
    for request in chosen:
        others = [f for f in by_relation[request.relation] if f.target_new != request.target_new]
        words = [f for f in by_relation[request.relation] if f.prompt != request.prompt]
        prompt = rng.choice(words).prompt if reworded and words else request.prompt
        target = rng.choice(others).target_new
        rivals.append(dataclasses.replace(request, prompt=prompt, target_new=target))
    return rivals


def _relate(figures: Figures) -> None:
    """Add each accuracy as a share of what the facts reach alone."""
    sides = [figures.get(f"subjects/alone/accuracy_{side}") for side in "ab"]
    if None in sides:
        return
    alone = sum(side for side in sides if side is not None) / 2
    for line in {key.split("/")[1] for key in figures} - {"alone"}:
        found = [figures.get(f"subjects/{line}/accuracy_{side}") for side in "ab"]
        known = [accuracy for accuracy in found if accuracy is not None]
        figures[f"subjects/{line}/of_alone"] = sum(known) / len(known) / alone


if __name__ == "__main__":
    main(run)
