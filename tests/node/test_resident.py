"""A node's resident process: real processes and sockets, with a stub in place of the model."""

import json
import logging
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Client
from pathlib import Path

import numpy as np
import psutil
import pytest
import stub_worker
from filelock import FileLock, Timeout
from flwr.app import Array, ArrayRecord

from fedit_app.config.run_config import RunConfig
from fedit_app.node import channel, resident, worker_process
from fedit_app.node.resident import WorkerSettings, ask
from fedit_app.node.worker_process import read_record, start_worker, stop_worker
from fedit_app.protocol.messages import Call, pack, unpack_info
from fedit_app.support.errors import FedEditError

pytestmark = pytest.mark.integration

SECRET = "The Lancet is published in Edinburgh"


@pytest.fixture(autouse=True)
def _stub(monkeypatch):
    monkeypatch.setattr(worker_process, "MODULE", "stub_worker")
    monkeypatch.setenv("PYTHONPATH", str(Path(stub_worker.__file__).parent))


class Node:
    """A node with a folder of its own, whose resident process can be asked."""

    def __init__(self, state: Path) -> None:
        self.state, self.folder = state, state / "bank" / "worker"

    def reply(self, settings=None, arrays=None, **asked):
        config = RunConfig(
            model=asked.pop("model", "smollm2-135m"),
            slot_timeout=asked.pop("timeout", 60.0),
            state_dir=str(self.state),
        )
        call = Call("train.edit", config.as_dict(), {"name": "bank"}, 7)
        content = pack({"slot": 1, "text": SECRET, **asked})
        if arrays:
            content["arrays"] = arrays
        return ask(call, content, config, "bank", settings or WorkerSettings())

    def ask(self, settings=None, **asked) -> dict:
        return unpack_info(self.reply(settings, **asked))

    def is_busy(self) -> bool:
        """Whether it answers a message."""
        try:
            with FileLock(self.folder / resident.LOCK, timeout=0):
                return False
        except Timeout:
            return True

    @property
    def pid(self) -> int:
        return read_record(self.folder).pid

    @property
    def log(self) -> str:
        return (self.folder / "worker.log").read_text()


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    yield made
    stop_worker(made.folder)


def ended(pid: int, seconds: float = 60) -> bool:
    """Whether a process has ended, or does so soon."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_the_second_message_finds_the_process(node):
    first, second = node.ask(), node.ask()

    assert second == {"pid": first["pid"], "answered": 2, "stage": "edit"}
    assert first["pid"] not in (os.getpid(), os.getppid())
    assert node.log.count("is ready") == 1


def test_large_replies_arrive(node):
    arrays = ArrayRecord({"layer-4": Array(np.arange(2**20, dtype=np.float32))})
    assert node.reply(arrays=arrays)["arrays"] == arrays


def test_its_files_are_private_and_hold_no_text(node):
    node.ask()
    record = read_record(node.folder)
    address = Path(record.address)
    mode = lambda path: stat.S_IMODE(path.stat().st_mode)  # noqa: E731

    assert mode(node.folder) == mode(address.parent) == 0o700
    assert mode(node.folder / "worker.json") == 0o600
    process = psutil.Process(record.pid)
    public = " ".join([*process.cmdline(), *process.environ().values(), str(address), node.log])
    assert record.key not in public
    assert len(record.key) == 64
    assert SECRET not in public
    for file in node.folder.iterdir():
        assert SECRET.encode() not in file.read_bytes()


def test_without_the_key_it_answers_nobody(node):
    first = node.ask()
    address = read_record(node.folder).address
    with pytest.raises(Exception, match="digest"):
        Client(address, "AF_UNIX", authkey=b"x" * 32)

    assert node.ask() == {**first, "answered": 2}
    assert "a connection was refused: wrong key" in node.log


def test_two_messages_at_once_start_one_process(node):
    replies, barrier = [], threading.Barrier(2)

    def message():
        barrier.wait()
        replies.append(node.ask())

    threads = [threading.Thread(target=message) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({reply["pid"] for reply in replies}) == 1
    assert sorted(reply["answered"] for reply in replies) == [1, 2]


def test_a_crash_over_a_message_is_made_good(node, tmp_path, caplog):
    first = node.ask()
    reply = node.ask(do="crash once", marker=str(tmp_path / "crashed"))

    assert reply["pid"] != first["pid"]
    assert reply["answered"] == 1
    assert f"resident process {first['pid']} ended over edit" in caplog.text


@pytest.mark.slow
def test_a_second_crash_is_told(node):
    with pytest.raises(FedEditError, match="ended twice over edit, .* with SIGKILL") as error:
        node.ask(do="crash")
    assert SECRET not in str(error.value)
    assert node.ask()["answered"] == 1


@pytest.mark.slow
def test_a_process_that_hangs_is_ended(node):
    hanging = node.ask()["pid"]
    started = time.monotonic()
    with pytest.raises(FedEditError, match=r"no answer within 1 s \(slot-timeout\)"):
        node.ask(do="hang", timeout=1.0)

    assert time.monotonic() - started < 60
    assert ended(hanging)
    assert node.ask()["pid"] != hanging


@pytest.mark.slow
def test_a_message_that_waits_too_long_for_its_turn_harms_nobody(node, tmp_path):
    pid, over = node.ask()["pid"], tmp_path / "over"
    replies = []
    long = lambda: replies.append(node.ask(do="wait", marker=str(over)))  # noqa: E731
    thread = threading.Thread(target=long)
    thread.start()
    while not node.is_busy() and thread.is_alive():
        time.sleep(0.05)
    with pytest.raises(FedEditError, match="other messages have kept it busy for 1 s"):
        node.ask(timeout=1.0)
    over.touch()
    thread.join()

    assert replies == [{"pid": pid, "answered": 2, "stage": "edit"}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "respect"),
    [
        ({"model": "another/model"}, "model"),
        ({"settings": WorkerSettings(idle_seconds=900.0)}, "idle-seconds"),
    ],
)
def test_a_process_for_something_else_is_replaced(node, changed, respect, caplog):
    caplog.set_level(logging.INFO)
    first = node.ask()
    reply = node.ask(**changed)

    assert reply["pid"] != first["pid"]
    assert ended(first["pid"])
    assert f"resident process {first['pid']}: replaced (another {respect})" in caplog.text


@pytest.mark.slow
def test_other_files_of_the_model_are_another_model(node, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    first = node.ask(model=str(model))
    assert node.ask(model=str(model))["pid"] == first["pid"]
    (model / "model.safetensors").write_bytes(b"other weights")
    assert node.ask(model=str(model))["pid"] != first["pid"]


@pytest.mark.slow
def test_a_process_with_older_code_is_replaced(node, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as past:
        past.setenv("STUB_CODE", "older")
        past.setattr(resident, "code_fingerprint", lambda: "older")
        first = node.ask()

    assert node.ask() == {"pid": node.pid, "answered": 1, "stage": "edit"}
    assert ended(first["pid"])
    assert "replaced (another code)" in caplog.text


@pytest.mark.slow
def test_a_process_that_starts_with_other_code_answers_nothing(node, monkeypatch):
    monkeypatch.setenv("STUB_CODE", "other")
    with pytest.raises(FedEditError, match="started with another code; .* finds another FedEdit"):
        node.ask()
    assert read_record(node.folder) is None


def test_the_code_is_that_of_the_client_app(node, monkeypatch, tmp_path):
    """Another copy of the package further back on Python's path is not imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fedit_app").mkdir()
    (tmp_path / "fedit_app" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path)]))
    assert node.ask()["answered"] == 1


@pytest.mark.slow
def test_what_keeps_it_from_starting_is_told(node, monkeypatch):
    monkeypatch.setattr(worker_process, "MODULE", "stub_wrecker")
    reason = r"did not start \(exit code 1: .*No module named stub_wrecker\); see .*worker.log"
    with pytest.raises(FedEditError, match=reason):
        node.ask()


@pytest.mark.slow
def test_a_start_that_fails_is_not_explained_by_an_earlier_text(node, monkeypatch):
    node.folder.mkdir(parents=True)
    (node.folder / "worker.log").write_text(f"ValueError: {SECRET}\n")
    monkeypatch.setenv("STUB_EXIT", "3")
    with pytest.raises(FedEditError, match=r"did not start \(exit code 3: no output\)"):
        node.ask()


@pytest.mark.slow
def test_it_ends_when_nobody_asks(node):
    settings = WorkerSettings(idle_seconds=0.5)
    first = node.ask(settings)
    room = Path(read_record(node.folder).address).parent

    assert ended(first["pid"])
    assert "ends: no message for 0.5 s" in node.log
    assert not room.exists()
    assert read_record(node.folder) is None
    assert node.ask(settings)["pid"] != first["pid"]


def test_it_ends_with_its_supernode(node, monkeypatch):
    supernode = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(os, "getppid", lambda: supernode.pid)
    pid = node.ask()["pid"]
    assert not ended(pid, 1.5)
    supernode.kill()

    assert ended(pid)
    supernode.wait()
    assert "ends: the SuperNode has ended" in node.log


@pytest.mark.slow
def test_another_supernode_has_another_process(node, monkeypatch):
    first = node.ask()
    monkeypatch.setattr(os, "getppid", os.getpid)
    assert node.ask()["pid"] != first["pid"]


@pytest.mark.slow
def test_it_ends_once_it_has_grown(node):
    settings = WorkerSettings(memory_gb=0.01)
    first = node.ask(settings)

    assert ended(first["pid"])
    assert "GB of memory held, 0.0 allowed (worker-memory-gb)" in node.log
    assert node.ask(settings)["answered"] == 1


@pytest.mark.slow
def test_it_ends_after_an_unexpected_error(node):
    first = node.ask(do="fail")
    assert ended(first["pid"])
    assert "ends: an unexpected error" in node.log
    assert node.ask()["answered"] == 1


def test_too_large_a_message_is_refused(node, monkeypatch):
    arrays = ArrayRecord({"layer-4": Array(np.zeros(2**17))})
    monkeypatch.setattr(channel, "MOST_BYTES", 2**19)
    with pytest.raises(FedEditError, match="message of 1 MB"):
        node.reply(arrays=arrays)


@pytest.mark.slow
def test_too_large_an_answer_is_told(node, monkeypatch):
    monkeypatch.setenv("STUB_MOST_BYTES", str(2**19))
    arrays = ArrayRecord({"layer-4": Array(np.zeros(2**17))})
    reply = unpack_info(node.reply(arrays=arrays))

    assert reply["node"] == "bank"
    assert "message of 1 MB" in reply["error"]


@pytest.mark.slow
def test_its_log_does_not_grow_for_ever(node, monkeypatch):
    monkeypatch.setenv("STUB_LARGEST_LOG", "200")
    for _ in range(4):
        assert ended(node.ask(do="fail")["pid"])

    assert (node.folder / "worker.log.1").stat().st_size < 2000
    assert len(node.log) < 2000
    assert len(list(node.folder.glob("worker.log*"))) == 2


def test_stop_worker_ends_it(node):
    assert not stop_worker(node.folder)
    pid = node.ask()["pid"]
    room = Path(read_record(node.folder).address).parent

    assert stop_worker(node.folder)
    assert ended(pid)
    assert not room.exists()
    assert not stop_worker(node.folder)
    assert node.ask()["answered"] == 1


@pytest.mark.slow
def test_stop_worker_spares_whoever_has_got_its_number(node):
    node.ask()
    record = json.loads((node.folder / "worker.json").read_text())
    stop_worker(node.folder)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (node.folder / "worker.json").write_text(json.dumps({**record, "pid": stranger.pid}))

    assert not stop_worker(node.folder)
    assert stranger.poll() is None
    (node.folder / "worker.json").write_text(json.dumps({**record, "pid": stranger.pid}))
    assert node.ask()["answered"] == 1
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


@pytest.mark.slow
def test_a_damaged_record_is_no_obstacle(node):
    node.folder.mkdir(parents=True)
    (node.folder / "worker.json").write_text("{")
    assert node.ask()["answered"] == 1


@pytest.mark.slow
def test_deep_folders_have_sockets_too(tmp_path, monkeypatch):
    node = Node(tmp_path / "/".join(["deep"] * 30))
    temporary = tmp_path / ("long" * 30)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert node.ask()["answered"] == 1
    assert node.ask()["answered"] == 2
    stop_worker(node.folder)


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "bank").write_text("a file")
    with pytest.raises(FedEditError, match="Not a directory in .*bank/worker; give the node"):
        Node(tmp_path).ask()


@pytest.mark.slow
def test_a_failed_start_leaves_nothing(node, monkeypatch):
    node.folder.mkdir(parents=True)
    rooms = []
    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **k: rooms.append(make(**k)) or rooms[-1])

    def full(file, text, mode):
        rooms.append(json.loads(text)["pid"])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker_process, "write_file", full)
    with pytest.raises(FedEditError, match="No space left on device in .*worker"):
        start_worker(node.folder, {})
    room, pid = rooms
    assert ended(pid)
    assert not Path(room).exists()


@pytest.mark.parametrize("value", ["soon", -1, True, float("nan"), float("inf")])
def test_settings_are_checked(value):
    with pytest.raises(FedEditError, match="worker-idle-seconds = .* must be a number"):
        WorkerSettings.of({"worker-idle-seconds": value})


def test_settings_come_from_the_node_configuration():
    given = {"worker-idle-seconds": 60, "worker-memory-gb": 12.5, "name": "bank"}
    assert WorkerSettings.of(given) == WorkerSettings(60.0, 12.5)
    assert WorkerSettings.of({}) == WorkerSettings(1800.0, 0.0)
