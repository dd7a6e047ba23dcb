"""What one member, the server or a stranger can do to the others: a row for each promise.

The counts are those of the tests that are the attacks, which run here as they are; a failing one
makes its row "failed". What a server, or a fellow, reads of MKVs is measured on the model:

- a server that has not the federation key names the subject of each sealed MKV among candidates,
  by cosines of sketches; it sees no value, so that it recovers no target;
- a fellow, who has the key, patches each value in behind generic words and reads the target's
  first token off, as in `benchmarks.attacks`.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.attacks import listed_subjects
from benchmarks.attacks_reading import DEFENCES, Reader, defended
from benchmarks.harness import (
    Figures,
    benchmark,
    count,
    loaded,
    main,
    option,
    records,
    table,
    text_file,
    workbench,
)
from fedit_app.ledger.ledger import Ledger

logger = logging.getLogger("fedit_app.benchmarks")

_ROOT = Path(__file__).parents[1]
_FUZZED = "2600"  # inputs of each parser, over 100,000 in all
_MOST = "most_"  # of these the largest counts, of all others the sum

Found = Mapping[str, float]


@dataclass(frozen=True)
class Attack:
    """An attack that tests make.

    Attributes:
        what: what is counted.
        goal: how it should be.
        tests: files, or tests, as pytest names them.
        told: what the tests' figures say, in words.
        slow: the tests are among those of `make test-all`.
    """

    what: str
    goal: str
    tests: tuple[str, ...]
    told: Callable[[Found], str]
    slow: bool = False


ATTACKS = {
    "one member": Attack(
        "honest members stopped by one malicious member, over every message and field",
        "0",
        ("tests/federation/test_one_member.py",),
        lambda found: f"0, by {found['inputs']:,.0f} answers, {found['runs']:,.0f} of them runs",
    ),
    "signatures": Attack(
        "answers accepted that are exchanged, replayed, or another's",
        "0",
        ("tests/federation/test_signed_answers.py", "tests/protocol/test_signed.py"),
        lambda found: f"0, in {found['tests']:.0f} tests",
    ),
    "limits": Attack(
        "run-config keys by which a server loosens a node's limits",
        "0",
        ("tests/config/test_limits.py",),
        lambda found: f"0, of {found['keys']:.0f}",
    ),
    "quorum": Attack(
        "false facts served from q - 1 colluding members at quorum q",
        "0 of 100",
        ("tests/server/test_quorum.py::test_members_that_are_too_few_pass_no_quorum_together",),
        lambda found: f"{found['served']:.0f} of {found['tries']:.0f}, q = 2 and 3",
    ),
    "strangers": Attack(
        "memory of 1,000 strangers who announce 600 MB, or no end",
        "<= 200 MB",
        ("tests/flower_compat/test_gate.py::test_a_thousand_strangers_take_little_memory",),
        lambda found: f"{found['most_bytes'] / 1e6:.0f} MB",
    ),
    "power cuts": Attack(
        "accepted MKVs lost, ledgers unreadable, by power cuts at every write",
        "0 and 0, at >= 200 moments",
        ("tests/federation/test_power_cuts.py",),
        lambda found: (
            f"{found['lost']:.0f} and {found['unreadable']:.0f}, at "
            f"{found['moments']:.0f} moments, on {found['ledgers']:.0f} ledgers"
        ),
        slow=True,
    ),
    "fuzz": Attack(
        "inputs of any parser with another error than FedEdit's; over 100 ms; over 100 MB",
        "0, 0, 0 of 100,000",
        ("tests/fuzz/test_parsers.py",),
        lambda found: (
            f"0, {found['slow']:.0f}, {found['large']:.0f} of {found['inputs']:,.0f}; "
            f"at most {1000 * found['most_seconds']:.0f} ms, {found['most_bytes'] / 1e6:.1f} MB"
        ),
        slow=True,
    ),
}


@benchmark(
    count("--records", 100, "MKVs that are read"),
    text_file(
        "--subjects",
        "counterfact_facts_21919.jsonl",
        "CounterFact records, one a line, whose subjects are the candidates",
    ),
    count("--candidates", 1000, "candidate subjects"),
    option("--attacks", "which, by name", nargs="+", choices=list(ATTACKS), default=list(ATTACKS)),
)
def run(options: argparse.Namespace) -> Figures:
    """Print what is read, and what the attacks came to."""
    figures = _read(options)
    server, fellow = figures["defences/server/subject 1"], figures["defences/fellow/target 1"]
    rows = [
        ["subjects that a server names from a sealed run", "<= 5 %", f"{server:.1%}"],
        ["targets that the server recovers", "<= 1 %", "0 %: it sees no value"],
        ["targets that a fellow with the key recovers", "measured", f"{fellow:.0%}"],
    ]
    for name in options.attacks:
        attack = ATTACKS[name]
        found = attempted(attack)
        figures |= {f"defences/{name}/{what}": value for what, value in found.items()}
        said = f"failed: {found['failed']:.0f}" if found["failed"] else attack.told(found)
        logger.info("%s: %s", name, said)
        rows.append([attack.what, attack.goal, said])
    heading = f"{options.records} MKVs, {options.candidates:,} subjects"
    print(table([heading, "goal", "found"], rows))
    return figures


def _read(options: argparse.Namespace) -> Figures:
    """What a server and a fellow read: shares `subject 1`, `target 1`, ..."""
    requests = records(options, options.records)
    bench = workbench(loaded(options), precision="float32")
    honest = bench.compute(requests, Ledger(bench.fingerprint), "honest", 1)
    reader = Reader(bench, requests, listed_subjects(options, requests), searched=1, steps=1)
    figures: Figures = {}
    for who, name in (("server", "sealed"), ("fellow", "int8")):
        seen = [DEFENCES[name].seen(mkv) for mkv in defended(DEFENCES[name], honest)]
        found = reader.ranked(seen)
        figures |= {f"defences/{who}/{k}": v for k, v in found.items() if v is not None}
    return figures


def attempted(attack: Attack) -> dict[str, float]:
    """Run the tests of an attack: how many there were and failed, and the figures they note."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:xdist", f"--junitxml={file}"]
        command += ["-o", "junit_family=xunit1"]  # the form that has properties
        chosen = [] if attack.slow else ["-m", "not slow"]
        subprocess.run(
            [*command, *chosen, *attack.tests],
            cwd=_ROOT,
            env=os.environ | {"FEDIT_FUZZ_EXAMPLES": _FUZZED},
            stdout=subprocess.DEVNULL,
            check=False,
        )
        return counted(ElementTree.parse(file))


def counted(report: ElementTree.ElementTree[Any]) -> dict[str, float]:
    """The figures of pytest's report.

    Args:
        report: in JUnit's form; the tests note figures by `record_property`.
    """
    found: dict[str, float] = {"tests": 0, "failed": 0}
    for case in report.iter("testcase"):
        found["tests"] += 1
        found["failed"] += any(case.find(kind) is not None for kind in ("failure", "error"))
        for noted in case.iter("property"):
            name, value = noted.attrib["name"], float(noted.attrib["value"])
            known = found.get(name, 0.0)
            found[name] = max(known, value) if name.startswith(_MOST) else known + value
    return found


if __name__ == "__main__":
    main(run)
