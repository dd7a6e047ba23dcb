"""The ClientApp of real nodes, which have resident processes with the tiny model."""

import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import inprocess
import pytest
import tiny
from flwr.app import Message

from fedit_app.federation.protocol import EDIT, HELLO, VERSION, code_fingerprint, pack, unpack_info
from fedit_app.federation.worker_process import read_record, stop_worker

NODES = ["bank", "hospital"]
IDLE = 600


def real(state: Path, idle: float, number: int) -> dict:
    """The node configuration of a real node with a state directory."""
    name = NODES[number]
    node = inprocess.real_node(name, tiny.DEMO / f"{name}.jsonl", idle)
    return node | {"state-dir": str(state)}


def worker(state: Path, number: int) -> Path:
    return state / NODES[number] / "worker"


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """One federation with resident processes, one without: grids, and the nodes' state folder.

    The processes are still there.
    """
    folder = tmp_path_factory.mktemp("real")
    grids = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # as in this process, to the last bit
        for name, idle in (("resident", IDLE), ("alone", 0)):
            config = {**small, "num-slots": 2, "output-dir": str(folder / name)}
            given = functools.partial(real, folder / "state", idle)
            grids.append(inprocess.federate(config, 2, node_config=given)[1])
        yield *grids, folder / "state"
    for number in range(2):
        stop_worker(worker(folder / "state", number))


def test_a_resident_process_answers_as_this_one_does(runs):
    resident, alone, _ = runs
    assert len(resident.received) == 2 * (2 + 3 * 2)
    assert resident.received == alone.received


def test_the_model_is_loaded_once(runs):
    _, _, state = runs
    for number, name in enumerate(NODES):
        log = (worker(state, number) / "worker.log").read_text()
        assert log.count("loaded on cpu") == 1
        assert log.count("is ready") == 1
        stages = re.findall(rf"node {name}(?:, slot (\d))?: (\w+) took \d+\.\d s", log)
        assert stages == [
            ("", "hello"),
            ("0", "evaluate"),
            ("1", "edit"),
            ("1", "reedit"),
            ("1", "evaluate"),
            ("2", "edit"),
            ("2", "reedit"),
            ("2", "evaluate"),
        ]


def test_nothing_of_it_holds_a_requests_text(runs, demo_records):
    _, _, state = runs
    texts = {record[key] for record in demo_records for key in ("subject", "target_new", "prompt")}
    for number in range(2):
        for file in worker(state, number).iterdir():
            content = file.read_bytes()
            assert not [text for text in texts if text.encode() in content]


def test_after_a_crash_the_ledger_answers(runs, small, answer, tmp_path):
    *_, state = runs
    config = {**small, "num-slots": 2, "output-dir": str(tmp_path / "run")}
    message = lambda: Message(  # noqa: E731
        pack({"slot": 1, "central": False, "upload": True}), dst_node_id=101, message_type=EDIT
    )
    first = answer(message(), config, 0, node_config=real(state, IDLE, 0)).content
    os.kill(read_record(worker(state, 0)).pid, signal.SIGKILL)
    second = answer(message(), config, 0, node_config=real(state, IDLE, 0)).content

    assert unpack_info(first)["optimised"] == 5
    assert second == first


def test_an_error_of_the_model_reaches_the_server(runs, small, answer):
    *_, state = runs
    config = {**small, "model": str(state / "nowhere")}
    asked = pack({"version": VERSION, "code": code_fingerprint()})
    message = Message(asked, dst_node_id=101, message_type=HELLO)
    before = read_record(worker(state, 0)).pid
    reply = unpack_info(answer(message, config, 0, node_config=real(state, IDLE, 0)).content)

    assert reply["node"] == "bank"
    assert f"model: folder {state / 'nowhere'} does not exist" in reply["error"]
    assert read_record(worker(state, 0)).pid != before


def test_the_client_app_of_a_real_node_is_light():
    heavy = "torch", "transformers", "lancedb", "matplotlib"
    code = (
        "import sys, client_app, fedit_app.federation.resident; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
