"""The ClientApp of real nodes, which have resident processes with the tiny model."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import inprocess
import psutil
import pytest
import tiny
from flwr.app import Message
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedit_app.config.folders import worker_folder
from fedit_app.mkv.numerics import NUMERICS_VERSION
from fedit_app.node.worker import NICENESS
from fedit_app.node.worker_process import read_record, stop_worker
from fedit_app.protocol.messages import EDIT, HELLO, VERSION, pack, unpack_info
from fedit_app.protocol.parcel import unwrap

pytestmark = pytest.mark.integration

NODES = ["bank", "hospital"]
IDLE = 600


def real(idle: float, number: int) -> dict:
    """The node configuration of a real node."""
    name = NODES[number]
    return inprocess.real_node(name, tiny.DEMO / f"{name}.jsonl", idle)


def folder_of(config: dict, number: int) -> Path:
    return worker_folder(config["state-dir"], NODES[number])


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """A federation with resident processes and one without: grids and run configurations.

    The processes are still there.
    """
    folder = tmp_path_factory.mktemp("real")
    grids, configs = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # as in this process, to the last bit
        for name, idle in (("resident", IDLE), ("alone", 0)):
            paths = {"output-dir": str(folder / name), "state-dir": str(folder / f"{name}-state")}
            configs.append({**small, "num-slots": 2, **paths})
            given = functools.partial(real, idle)
            grids.append(inprocess.federate(configs[-1], 2, node_config=given)[1])
        yield grids, configs
    for number in range(2):
        stop_worker(folder_of(configs[0], number))


@pytest.fixture
def folders(runs) -> list[Path]:
    """The folders of the nodes' resident processes."""
    return [folder_of(runs[1][0], number) for number in range(2)]


def without_seconds(answer: bytes) -> bytes:
    """An answer without what it took, and without the head of a journal that tells the time."""
    content = unwrap(recorddict_from_proto(ProtoRecordDict.FromString(answer)))
    assert content["info"].pop("seconds") > 0 and content["info"].pop("memory") > 50e6
    return re.sub(rb'"head": "\w{64}", ', b"", recorddict_to_proto(content).SerializeToString())


def test_a_resident_process_answers_as_this_one_does(runs):
    (resident, alone), _ = runs
    assert len(resident.received) >= 2 * (2 + 3 * 2)
    for one, other in zip(resident.received, alone.received, strict=True):
        assert without_seconds(one) == without_seconds(other)


def test_the_model_is_loaded_once(folders):
    for folder, name in zip(folders, NODES, strict=True):
        log = (folder / "worker.log").read_text()
        assert log.count("loaded on cpu") == 1
        assert log.count("is ready") == 1
        stages = re.findall(rf"node {name}(?:, slot (\d))?: (\w+) took \d+\.\d s", log)
        assert [stage for stage in stages if stage[1] != "compose"] == [
            ("", "hello"),
            ("0", "evaluate"),
            ("1", "edit"),
            ("1", "reedit"),
            ("1", "evaluate"),
            ("2", "edit"),
            ("2", "reedit"),
            ("2", "evaluate"),
        ]


def test_nothing_of_it_holds_a_requests_text(folders, demo_records):
    texts = {record[key] for record in demo_records for key in ("subject", "target_new", "prompt")}
    files = [file for folder in folders for file in folder.iterdir()]
    assert len(files) == 6
    for file in files:
        content = file.read_bytes()
        assert not [text for text in texts if text.encode() in content]


@pytest.mark.slow
def test_after_a_crash_the_ledger_answers(runs, folders, answer):
    _, (config, _) = runs
    process = psutil.Process(read_record(folders[0]).pid)
    assert process.nice() == os.nice(0) + NICENESS
    process.kill()
    asked = pack({"slot": 2, "central": False, "upload": True, "missing": [], "withdrawn": {}})
    message = Message(asked, dst_node_id=101, message_type=EDIT)
    reply = answer(message, config, 0, node_config=real(IDLE, 0)).content

    assert unpack_info(reply)["optimised"] == 5
    log = (folders[0] / "worker.log").read_text()
    assert log.count("is ready") == 2
    assert "node bank, slot 2: 5 requests, 0 optimised" in log


def test_an_error_of_the_model_reaches_the_server(runs, folders, answer):
    _, (config, _) = runs
    nowhere = f"{folders[0]}/nowhere"
    asked = pack({"version": VERSION, "numerics": NUMERICS_VERSION, "first_slot": 1})
    message = Message(asked, dst_node_id=102, message_type=HELLO)
    before = read_record(folders[1]).pid
    reply = answer(message, {**config, "model": nowhere}, 1, node_config=real(IDLE, 1)).content

    assert unpack_info(reply)["node"] == "hospital"
    assert f"model: folder {nowhere} does not exist" in unpack_info(reply)["error"]
    assert read_record(folders[1]).pid != before


def test_the_client_app_of_a_real_node_is_light():
    heavy = "torch", "transformers", "lancedb", "matplotlib"
    code = (
        "import sys, client_app, fedit_app.node.resident; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
