"""A power cut at any write of a node leaves a ledger that can be read, with all it had accepted."""

import contextlib
import json
import shutil
from dataclasses import replace

import inprocess
import pytest

from benchmarks.power_cuts import PowerCuts, written
from fedit_app.config.run_config import RunConfig
from fedit_app.ledger.index import INDEX, read_index
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.rollback import roll_back
from fedit_app.ledger.verify import verify
from fedit_app.node.compose_stage import ComposeStage
from fedit_app.support.files import write_file

pytestmark = [pytest.mark.integration, pytest.mark.slow]

FACTS = {"bank": "city", "court": "London"}


class Watched:
    """Notes every moment at which the power may fail, with what each ledger has to hold then."""

    def __init__(self, root, monkeypatch):
        self.cuts = []  # (cut, ledger's folder -> the states of which it holds one)
        self._states = {}
        self.power = PowerCuts(root, self._note)
        self._root = root
        real = Ledger._write_to

        def write_to(ledger, folder, step):
            before, after = rows(ledger._stored.state), rows(ledger._state())
            name = str(folder.relative_to(root))
            self._states[name] = (before, after)
            real(ledger, folder, step)
            self._states[name] = (after,)

        monkeypatch.setattr(Ledger, "_write_to", write_to)

    def _note(self, cut):
        self.cuts.append((cut, dict(self._states)))


def rows(state):
    return {id_: entry.fields() for id_, entry in state.entries.items()}


@pytest.fixture
def watched(settings, tmp_path, monkeypatch):
    """Edits, re-edits, composition, a rollback, and the withdrawal that follows from it."""
    data, state = tmp_path / "data", tmp_path / "state"
    data.mkdir()
    state.mkdir()
    for name, target in FACTS.items():
        fact = {"id": name, "subject": "Royal Mint", "prompt": "{}", "target_new": target}
        other = {"id": f"{name}-2", "subject": name, "prompt": "The {} of", "target_new": "a"}
        more = {"id": f"{name}-3", "subject": f"{name} law", "prompt": "{} is", "target_new": "a"}
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, [fact, other, more])))
    given = {"data_path": str(data), "dataset": "jsonl", "value_steps": 25, "contexts": 0}
    given |= {"clamp": 20.0, "kl_weight": 0.01, "compose_rounds": 2, "evaluate_every": 9}
    given |= {"state_dir": str(state), "pool_uri": str(tmp_path / "pool"), "requests_per_slot": 1}
    steps = ComposeStage._steps
    monkeypatch.setattr(  # a random model never says both; here every value does, and is written
        ComposeStage, "_steps", lambda *given: [replace(one, holds=True) for one in steps(*given)]
    )
    found = Watched(state, monkeypatch)
    with found.power.watching():
        first = settings("first", num_slots=2, **given)
        results, _ = inprocess.federate(first, len(FACTS))
        assert results["failed_nodes"] == []
        folder = state / "bank" / "ledger"
        ledger = Ledger.open(folder, read_index(folder)["fingerprint"])
        own = [i for i, entry in ledger.entries.items() if entry.mkv.node == "bank"]
        roll_back(ledger, own[:1], RunConfig.parse(first), "bank")
        results, _ = inprocess.federate(settings("second", num_slots=3, **given), len(FACTS))
        assert results["failed_nodes"] == []
    reasons = {record["reason"] for record in Ledger.open(folder, ledger.fingerprint).history()}
    other = state / "court" / "ledger"
    reasons |= {record["reason"] for record in Ledger.open(other, ledger.fingerprint).history()}
    assert {"edit", "re-edit", "compose", "rollback", "withdrawn by bank"} <= reasons, reasons
    return found


def test_at_every_write_of_a_node(watched, tmp_path, record_property):
    assert len(watched.cuts) >= 200
    lost = unreadable = tried = 0
    for cut, states in watched.cuts:
        for image in cut.images:
            folder = written(image, tmp_path / "image")
            for name, allowed in states.items():
                tried += 1
                ledger = folder / name
                if not (ledger / INDEX).exists():
                    lost += {} not in allowed
                    continue
                verdict = verify(ledger)
                unreadable += bool(verdict.damages)
                opened = Ledger.open(ledger, read_index(ledger)["fingerprint"])
                lost += rows(opened._state()) not in allowed
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)
    counts = {"moments": len(watched.cuts), "ledgers": tried}
    for name, number in (counts | {"lost": lost, "unreadable": unreadable}).items():
        record_property(name, number)
    assert (lost, unreadable) == (0, 0)


def test_what_nobody_waited_for_is_lost_on_some_disk(tmp_path):
    """Otherwise the test above would find nothing."""
    cuts, root = [], tmp_path / "files"
    root.mkdir()
    with PowerCuts(root, cuts.append).watching():
        (root / "hasty").write_text("content")
        write_file(root / "safe", "content")
        (root / "end").mkdir()
    found = [(image.get("hasty"), image["safe"]) for image in cuts[-1].images]
    assert {safe for _, safe in found} == {b"content"}
    assert {hasty for hasty, _ in found} == {b"content", b"con", b""}
