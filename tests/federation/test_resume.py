"""A killed run goes on at its first unfinished slot and ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import inprocess
import pytest
import tiny
from federation.test_runs import pool_ids, without_clock

from fedit_app.editing.workbench import Workbench
from fedit_app.ledger.index import read_index
from fedit_app.ledger.ledger import Ledger
from fedit_app.pool import MKVPool
from fedit_app.report import load_results
from fedit_app.server import grid as grid_module
from fedit_app.server.record import RunRecord
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.integration

SMALL = {"num_slots": 3, "requests_per_slot": 2, "evaluate_every": 2}
NODES = 3


class Killed(BaseException):
    """The process ends here."""


def kill_at(monkeypatch, target: int) -> list[str]:
    """Let the server die at its `target`-th step, half of the time before and half behind it."""
    steps: list[str] = []

    def deadly(owner, name):
        plain = getattr(owner, name)

        def step(*args, **kwargs):
            steps.append(name)
            here = len(steps) == target
            if here and target % 2:
                raise Killed
            result = plain(*args, **kwargs)
            if here:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, step)

    deadly(grid_module.RunGrid, "_exchange")
    deadly(MKVPool, "append")
    deadly(RunRecord, "close_slot")
    return steps


def state(config) -> dict:
    """What a run leaves behind, without what the clock has to do with."""
    folder = Path(config["output-dir"])
    results = without_clock(load_results(folder / "results.json").as_json())
    for slot in results["slots"]:
        for record in (slot, *slot["nodes"].values()):
            del record["bytes_down"], record["bytes_up"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "results": results,
        "lines": [(line["slot"], line["node"]) for line in map(json.loads, lines)],
        "pool": pool_ids(folder),
        "ledgers": {
            path.parent.name: ledger(path) for path in sorted(folder.glob("nodes/*/ledger"))
        },
    }


def ledger(folder: Path) -> dict:
    """Index and journal of a ledger without times, and without the hashes that cover them."""
    index = read_index(folder)
    records = Ledger.open(folder, index["fingerprint"]).history()
    for record in records:
        del record["time"], record["previous"], record["hash"]
    return {**index, "journal": records}


@pytest.fixture(scope="module")
def uninterrupted(small, tmp_path_factory):
    changes = {key.replace("_", "-"): value for key, value in SMALL.items()}
    config = {**small, **changes, "output-dir": str(tmp_path_factory.mktemp("whole") / "run")}
    inprocess.federate(config, NODES)
    return state(config)


# hello, before, then per slot: edit, append, reedit, evaluate, close (evaluate skips odd slots).
@pytest.mark.parametrize("target", [4, 6, 9, 15, *tiny.later(1, 3, 5, 8, 11, 14)])
def test_a_killed_run_ends_as_if_nothing_had_happened(settings, monkeypatch, uninterrupted, target):
    config = settings(**SMALL)
    with monkeypatch.context() as patch:
        steps = kill_at(patch, target)
        with pytest.raises(Killed):
            inprocess.federate(config, NODES)
    assert len(steps) == target
    results, _ = inprocess.federate({**config, "resume": True}, NODES)

    assert results["status"] == "completed"
    assert state(config) == uninterrupted


def test_what_a_node_has_done_is_not_computed_again(settings, monkeypatch):
    config = settings(**SMALL)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)  # all nodes have edited slot 1
        with pytest.raises(Killed):
            inprocess.federate(config, NODES)
    computed, compute = [], Workbench.compute

    def count(self, requests, *rest):
        computed.extend(requests)
        return compute(self, requests, *rest)

    monkeypatch.setattr(Workbench, "compute", count)
    results, _ = inprocess.federate({**config, "resume": True, "num-slots": 1}, NODES)
    assert computed == []
    assert results["slots"][0]["optimised"] == 2 * NODES


def test_a_run_killed_twice(settings, monkeypatch, uninterrupted):
    config = settings(**SMALL)
    for target in (6, 7):
        with monkeypatch.context() as patch:
            kill_at(patch, target)
            with pytest.raises(Killed):
                inprocess.federate({**config, "resume": target == 7}, NODES)
    inprocess.federate({**config, "resume": True}, NODES)

    assert state(config) == uninterrupted


_HARD = """
import json, os, sys
sys.path.insert(0, {tests!r})
import inprocess, pytest
from federation.test_resume import kill_at
import federation.test_resume as module
class Dead(BaseException):
    def __init__(self):
        os._exit(9)
module.Killed = Dead
kill_at(pytest.MonkeyPatch(), {target})
inprocess.federate(json.loads({config!r}), {nodes})
"""


@pytest.mark.slow
def test_a_server_that_is_gone_without_a_word(settings, uninterrupted):
    config = settings(**SMALL)
    code = _HARD.format(
        tests=str(Path(__file__).parents[1]), target=10, config=json.dumps(config), nodes=NODES
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    died = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert died.returncode == 9
    assert load_results(Path(config["output-dir"]) / "results.json").status == "running"
    inprocess.federate({**config, "resume": True}, NODES)

    assert state(config) == uninterrupted


def test_a_completed_run_can_be_given_more_slots(settings, uninterrupted):
    config = settings(**{**SMALL, "num_slots": 2})
    inprocess.federate(config, NODES)
    with pytest.raises(FedEditError, match="all 2 slots are complete.*num-slots"):
        inprocess.federate({**config, "resume": True}, NODES)
    inprocess.federate({**config, "resume": True, "num-slots": 3}, NODES)

    found, expected = state(config), uninterrupted
    assert found["pool"] == expected["pool"] and found["ledgers"] == expected["ledgers"]
    assert found["results"]["summary"] == expected["results"]["summary"]


@pytest.mark.parametrize(
    "change", [{"editor": "alphaedit"}, {"selection": "none"}, {"value-steps": 6}]
)
def test_another_configuration_is_refused_and_nothing_is_touched(settings, monkeypatch, change):
    config = settings(**{**SMALL, "num_slots": 2})
    with monkeypatch.context() as patch:
        kill_at(patch, 8)
        with pytest.raises(Killed):
            inprocess.federate(config, NODES)
    file = Path(config["output-dir"]) / "results.json"
    before = file.read_bytes()
    (key,) = change
    with pytest.raises(FedEditError, match=f"cannot be resumed with another {key}"):
        inprocess.federate({**config, **change, "resume": True}, NODES)
    assert file.read_bytes() == before


def test_a_stock_strategy_says_that_it_cannot_be_resumed(settings, monkeypatch):
    config = settings(**SMALL, strategy="fedavg")
    with monkeypatch.context() as patch:
        kill_at(patch, 6)
        with pytest.raises(Killed):
            inprocess.federate(config, NODES)
    with pytest.raises(FedEditError, match="fedavg.*keeps its state in memory.*start a new run"):
        inprocess.federate({**config, "resume": True}, NODES)


def test_a_folder_is_written_by_one_run_at_a_time(settings):
    from fedit_app.config.run_config import RunConfig

    config = RunConfig.parse(settings(**SMALL))
    first = RunRecord(config, Path(config.output_dir))
    with pytest.raises(FedEditError, match="another run is writing"):
        RunRecord(config, Path(config.output_dir))
    first.finish("failed")


def test_resuming_an_empty_folder_is_a_new_run(settings):
    results, _ = inprocess.federate(settings(num_slots=1, resume=True, requests_per_slot=1), 2)

    assert results["status"] == "completed"
    assert results["config"]["resume"] is False
