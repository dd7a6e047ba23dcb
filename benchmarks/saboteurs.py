"""Some members of a federation sabotage it: what of that ends in the models of the others.

Whole federations in this process. An honest node has three facts, one of which its neighbour has as
well, in two slots. Every saboteur says the same false facts: half are about subjects that nobody
else has, half contradict facts of the honest. The attacks:

- `false facts`: nothing else; a saboteur follows the protocol;
- `collapse`: its shifts, or its changes of the weights, are 30 times as large;
- `drift`: in every slot the largest shifts in random directions that pass the screening; of the
  weights a change of the size that it had, in a random direction.

The defences of FedEdit are those of a run with its defaults, `accept-quorum = 2`, and the median in
composition. Strategies of Flower that average weights robustly are the baselines; their nodes
exchange weights instead of MKVs. "false" is how many of the false facts a model of an honest node
says, on average; score, efficacy and neighborhood are those of the honest facts, in the models of
two honest nodes.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedTrimmedAvg, Krum

from benchmarks.attacks_poisoning import largest_shifts
from benchmarks.harness import (
    Figures,
    benchmark,
    count,
    counterfact_metrics,
    main,
    option,
    records,
    table,
)
from fedit_app.config.run_config import RunConfig
from fedit_app.evaluation.scores import score_targets
from fedit_app.facts.request import EditRequest
from fedit_app.mkv import MKV, create
from fedit_app.node.participant import Participant
from fedit_app.protocol.messages import (
    EDIT,
    EVALUATE,
    TRAIN,
    arrays_record,
    pack,
    unpack_arrays,
    unpack_info,
    unpack_mkvs,
)
from fedit_app.protocol.schema import EvaluateAnswer
from tests.inprocess import RUN_ID, InProcessGrid, federate_on

logger = logging.getLogger("fedit_app.benchmarks")

_SLOTS = 2
_TIMES = 30
_MEASURED = 2  # honest nodes whose models are scored
_RUN: dict[str, Any] = {
    "dataset": "jsonl",
    "num-slots": _SLOTS,
    "requests-per-slot": 2,
    "evaluate-every": _SLOTS,
}
_COLUMNS = ("false", "score", "efficacy", "neighborhood")


class KrumOfOne(Krum):
    """Flower's Krum against one saboteur."""

    def __init__(self, **given: Any) -> None:
        super().__init__(num_malicious_nodes=1, **given)


class KrumOfTwo(Krum):
    """Flower's Krum against two saboteurs."""

    def __init__(self, **given: Any) -> None:
        super().__init__(num_malicious_nodes=2, **given)


class TrimmedMean(FedTrimmedAvg):
    """Flower's trimmed mean, without a quarter at each end: one of 5 nodes, two of 8."""

    def __init__(self, **given: Any) -> None:
        super().__init__(beta=0.25, **given)


class BulyanOfOne(Bulyan):
    """Flower's Bulyan against one saboteur, for which its authors ask for 7 nodes at least."""

    def __init__(self, **given: Any) -> None:
        super().__init__(num_malicious_nodes=1, **given)


def _named(strategy: type) -> dict[str, Any]:
    return {"strategy": f"benchmarks.saboteurs:{strategy.__name__}"}


DEFENCES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "accept-quorum = 2": {"accept-quorum": 2},
    "median": {"combination": "median"},
    "FedAvg": {"strategy": "fedavg"},
    "trimmed mean": _named(TrimmedMean),
    "Krum": {},  # by the number of saboteurs
    "Bulyan": _named(BulyanOfOne),
}
_KRUM = {1: KrumOfOne, 2: KrumOfTwo}
ATTACKS = ("nothing", "false facts", "collapse", "drift")


@dataclass(frozen=True)
class Facts:
    """What the members have.

    Attributes:
        by_node: name -> requests of all slots, in their order.
        honest: each fact of an honest node once.
        false: the facts of the saboteurs.
    """

    by_node: Mapping[str, Sequence[EditRequest]]
    honest: Sequence[EditRequest]
    false: Sequence[EditRequest]

    @staticmethod
    def dealt(requests: Iterator[EditRequest], nodes: int, saboteurs: int) -> Facts:
        """Deal facts out to nodes, of which the last are saboteurs."""
        count = nodes - saboteurs
        own = [[next(requests) for _ in range(_SLOTS)] for _ in range(count)]
        shared = [next(requests) for _ in range(count)]
        honest = {
            f"node-{i + 1}": [own[i][0], shared[i], own[i][1], shared[i - 1]] for i in range(count)
        }
        unheard = [next(requests) for _ in range(_SLOTS)]
        contradicted = [
            replace(own[0][slot], target_new=other.target_new, id=f"false-{slot}")
            for slot, other in enumerate(unheard)
        ]
        false = [r for pair in zip(unheard, contradicted, strict=True) for r in pair]
        lying = {f"saboteur-{i + 1}": false for i in range(saboteurs)}
        return Facts(honest | lying, [*(r for o in own for r in o), *shared], false)

    def write(self, folder: Path) -> Path:
        """Write a file for each node."""
        folder.mkdir(parents=True)
        for name, requests in self.by_node.items():
            rows = [
                {"id": f"{r.id}", "subject": r.subject, "prompt": r.prompt}
                | {"target_new": r.target_new}
                for r in requests
            ]
            text = "\n".join(json.dumps(row) for row in rows)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        return folder


class Federation(InProcessGrid):
    """A run with saboteurs among its members; nobody measures anything before its end.

    Args:
        run_config: of the run.
        names: of the nodes, in their order.
        attack: of `ATTACKS`.
    """

    def __init__(self, run_config: dict[str, Any], names: Sequence[str], attack: str) -> None:
        super().__init__(run_config, len(names), tamper=self._between)
        self._run_config, self._names, self._attack = run_config, names, attack
        self._random = np.random.default_rng(0)
        self.weights: dict[str, np.ndarray] = {}  # the last that a strategy has sent

    def participant(self, name: str) -> Participant:
        """A node, as it is at the end of the run."""
        number, config = self._names.index(name), RunConfig.parse(self._run_config)
        node_config = {"partition-id": number, "num-partitions": len(self._names)}
        return Participant(config, node_config, RUN_ID)

    def _between(self, node_id: int, message: Message) -> Message | None:
        kind, name = message.metadata.message_type, self._names[node_id - self.ids[0]]
        if kind == EVALUATE:
            if "arrays" in message.content.array_records:
                self.weights = unpack_arrays(message.content, "arrays")
            none = dict.fromkeys(("own", "received", "federation", "neutral"))
            content = EvaluateAnswer(node=name, **none).packed()
            content["metrics"] = MetricRecord({"num-examples": 1.0})
            return Message(content, reply_to=message)
        changed = {EDIT: self._mkvs, TRAIN: self._averaged}.get(kind)
        if not name.startswith("saboteur") or self._attack == "false facts" or changed is None:
            return None
        reply = self.reply(node_id, message)
        changed(message.content, reply.content, name)
        return reply

    def _mkvs(self, asked: RecordDict, answer: RecordDict, name: str) -> None:
        """Replace the MKVs of a saboteur's answer."""
        participant = self.participant(name)
        bench = participant.workbench
        mkvs = unpack_mkvs(answer, bench.fingerprint, bench.precision)
        if not mkvs:
            return
        if self._attack == "collapse":
            shifts = [mkv.shifts * _TIMES for mkv in mkvs]
        else:
            shifts = list(largest_shifts(bench, self._random, mkvs[0].shifts, len(mkvs)))
        text = json.dumps(unpack_info(answer))
        new: list[MKV] = []
        for mkv, shift in zip(mkvs, shifts, strict=True):
            vectors = (mkv.keys, shift, mkv.v_star, mkv.h0)
            made = create(name, mkv.slot, mkv.fingerprint, *vectors, mkv.precision)
            text = text.replace(mkv.id, made.id)
            new.append(made)
        said = pack(json.loads(text), new)
        said.config_records["info"]["seconds"] = answer.config_records["info"]["seconds"]
        answer.update(said)

    def _averaged(self, asked: RecordDict, answer: RecordDict, name: str) -> None:
        """Replace the weights of a saboteur's answer."""
        sent, found = unpack_arrays(asked, "arrays"), unpack_arrays(answer, "arrays")
        changed = {}
        for layer, weights in found.items():
            change = weights - sent[layer]
            if self._attack == "collapse":
                change = change * _TIMES
            else:
                drawn = self._random.standard_normal(change.shape)
                change = drawn * (np.linalg.norm(change) / np.linalg.norm(drawn))
            changed[layer] = (sent[layer] + change).astype(np.float32)
        answer["arrays"] = arrays_record(changed)

    @contextmanager
    def edited(self, name: str) -> Iterator[Any]:
        """The model of an honest node at the end of the run."""
        participant = self.participant(name)
        bench = participant.workbench
        if self.weights:
            deltas = {
                int(layer.removeprefix("layer-")): torch.from_numpy(change.astype(np.float64))
                for layer, change in self.weights.items()
            }
            with bench.model.edited(deltas):
                yield bench.model
        else:
            with bench.edited(participant.ledger()) as model:
                yield model


@benchmark(
    count("--nodes", 5, "of which the last are saboteurs"),
    count("--saboteurs", 1, "1 or 2"),
    option("--attacks", "which", nargs="+", choices=list(ATTACKS), default=list(ATTACKS)),
    option("--defences", "which", nargs="+", choices=list(DEFENCES), default=list(DEFENCES)),
)
def run(options: argparse.Namespace) -> Figures:
    """Run a federation for each attack and defence, and print what the models say."""
    nodes, saboteurs = options.nodes, options.saboteurs
    found = records(options, 3 * (nodes - saboteurs) + _SLOTS)
    facts = Facts.dealt(iter(found), nodes, saboteurs)
    figures: Figures = {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedit-saboteurs-") as folder:
        common = {
            **_RUN,
            "model": options.model,
            "data-path": str(facts.write(Path(folder, "data"))),
            "work-cache": str(Path(folder, "cache")),
        }
        for attack in options.attacks:
            for defence in options.defences:
                chosen = DEFENCES[defence]
                if defence == "Krum":
                    chosen = _named(_KRUM[saboteurs])
                output = Path(folder, f"{attack}-{defence}".replace(" ", "-"))
                config = {**common, **chosen, "output-dir": str(output)}
                measured = _measured(config, facts, attack)
                logger.info("%s, %s: %s", attack, defence, measured)
                name = f"saboteurs/{saboteurs} of {nodes}/{attack}/{defence}"
                figures |= {f"{name}/{key}": value for key, value in measured.items()}
                rows.append([attack, defence, *(measured[column] for column in _COLUMNS)])
    heading = f"{saboteurs} of {nodes}"
    print(table([heading, "defence", f"false (of {len(facts.false)})", *_COLUMNS[1:]], rows))
    return figures


def _measured(config: dict[str, Any], facts: Facts, attack: str) -> dict[str, float]:
    """A whole run, and what the models of honest nodes then say."""
    names = sorted(facts.by_node)
    if attack == "nothing":
        names = [name for name in names if name.startswith("node")]
        config = {**config, "data-path": _without_saboteurs(config)}
    grid = Federation(config, names, attack)
    federate_on(grid, config)
    asked = [request.asked_new for request in facts.false]
    said, shares = [], []
    for number, name in enumerate(name for name in names if name.startswith("node")):
        with grid.edited(name) as model:
            said.append(sum(one.decoded for one in score_targets(model, asked)))
            if number < _MEASURED:
                shares.append(counterfact_metrics(model, facts.honest))
    means: dict[str, float] = {
        key: statistics.fmean(share[key] for share in shares) for key in _COLUMNS[1:]
    }
    return {"false": statistics.fmean(said), **means}


def _without_saboteurs(config: Mapping[str, Any]) -> str:
    """A folder with the files of the honest nodes alone."""
    everybody = Path(config["data-path"])
    honest = everybody.with_name("honest")
    honest.mkdir(exist_ok=True)
    for file in everybody.glob("node-*.jsonl"):
        (honest / file.name).write_bytes(file.read_bytes())
    return str(honest)


if __name__ == "__main__":
    main(run)
