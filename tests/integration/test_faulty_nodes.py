"""One run on real nodes: a full disk, a read-only one, a truncated and a corrupted reply."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
import tomli_w

from benchmarks.loopback import PATIENCE, ROOT, Deployment
from fedit_app.ledger.index import read_index
from fedit_app.pool import MKVPool
from fedit_app.report import load_results

pytestmark = pytest.mark.slow

NODES = ("bank", "hospital", "museum", "newsroom")
FULL, READ_ONLY, GARBLING = "hospital", "museum", "newsroom"
SLOTS, REQUESTS = 2, 3
RUN = {
    "num-slots": SLOTS,
    "requests-per-slot": REQUESTS,
    **tiny.RUN_CONFIG,
    "slot-timeout": 60.0,
}
# The app as it is, but for what one node uploads: in slot 1 half of its payload is gone, in slot 2
# one byte of it is another, which the server cannot see: it is sealed.
CLIENT_APP = f'''
from fedit_app.node import resident
from fedit_app.node.app import app

__all__ = ["app"]
_ask = resident.ask


def ask(call, content, *others):
    answer = _ask(call, content, *others)
    if call.node == "{GARBLING}" and call.stage == "edit":
        array = answer["sealed-mkvs"]["payload"]
        if '"slot": 1' in content["info"]["json"]:
            array.data = array.data[: len(array.data) // 2]
        else:
            array.data = array.data[:-1] + bytes([array.data[-1] ^ 64])
    return answer


resident.ask = ask
'''


def own_disk(folder: Path, options: str) -> list[str]:
    """A command before another one: it then sees a small disk of its own at `folder`."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    mount = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$@"'
    return ["unshare", "--mount", *user, "sh", "-c", mount, str(folder)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("faulty")
    command = [*own_disk(folder, "size=64k"), "true"]
    if shutil.which("unshare") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk of its own, which this test fills up")
    with Deployment(folder) as deployment:
        for name in NODES:
            deployment.add_node(name, tiny.DEMO / f"{name}.jsonl", tiny_folder)
        deployment.start_server()
        deployment.register(*NODES)
        for name, options in ((FULL, "size=4m"), (READ_ONLY, "ro")):
            state = deployment.nodes[name].state_dir
            state.mkdir(exist_ok=True)
            deployment.start_nodes(name, within=own_disk(state, options))
        deployment.start_nodes("bank", GARBLING)
        deployment.wait_online(*NODES)
        yield deployment


@pytest.fixture(scope="module")
def folder(deployment):
    """The run: before slot 1 a disk gets full, before slot 2 both disks are as they should be."""
    app = deployment.folder / "app"
    shutil.copytree(ROOT / "fedit_app", app / "fedit_app", ignore=shutil.ignore_patterns("*.pyc"))
    for file in ("pyproject.toml", "server_app.py", "README.md", "LICENSE", "configs"):
        copy = shutil.copytree if (ROOT / file).is_dir() else shutil.copy
        copy(ROOT / file, app / file)
    (app / "client_app.py").write_text(CLIENT_APP, encoding="utf-8")
    preset = deployment.folder / "run.toml"
    preset.write_text(tomli_w.dumps(RUN), encoding="utf-8")
    run = deployment.start_run("--config", str(preset), "--app", str(app))

    def said(text: str) -> None:
        deployment.wait(lambda: text in deployment.log("run"), f"no {text!r}")

    said("3 nodes take part")
    filler = inside(deployment, FULL) / "filler"
    fill(filler)
    said("slot 1 reedit: bank answered")
    filler.unlink()
    process = deployment.processes[READ_ONLY]
    remount = ["mount", "-o", "remount,rw", str(deployment.nodes[READ_ONLY].state_dir)]
    user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    enter = ["nsenter", "--target", str(process.pid), "--mount", *user]
    subprocess.run([*enter, *remount], check=True)
    assert run.wait(PATIENCE) == 0, deployment.log("run")
    (folder,) = deployment.server.path("runs").iterdir()
    return folder


def inside(deployment: Deployment, name: str) -> Path:
    """A node's state folder, as the node sees it."""
    state = deployment.nodes[name].state_dir
    return Path(f"/proc/{deployment.processes[name].pid}/root{state}")


def fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            return


@pytest.fixture(scope="module")
def results(folder):
    return load_results(folder / "results.json").as_json()


def test_the_report_names_node_slot_and_reason(results):
    missing = {(f["node"], f["slot"], f["stage"]): f["reason"] for f in results["failed_nodes"]}
    assert missing.keys() == {
        (READ_ONLY, 0, "hello"),
        (FULL, 1, "edit"),
        (GARBLING, 1, "edit"),
    }
    assert "Read-only file system" in missing[READ_ONLY, 0, "hello"]
    assert "state-dir" in missing[READ_ONLY, 0, "hello"], "what to do"
    assert "No space left on device" in missing[FULL, 1, "edit"]
    assert "free some space" in missing[FULL, 1, "edit"], "what to do"
    found = r"'payload': \d+ bytes found, its shape .* needs"
    assert re.search(found, missing[GARBLING, 1, "edit"])


def test_a_corrupted_mkv_is_refused_by_who_opens_it(results):
    for name in ("bank", FULL, READ_ONLY):
        entry = results["slots"][1]["nodes"][name]
        assert entry["rejections"]["seal"] == 1
        assert entry["received_from"][GARBLING] >= 1, "the others of the message are used"


def test_the_others_finish(results):
    assert results["status"] == "completed"
    assert [slot["nodes"]["bank"]["requests"] for slot in results["slots"]] == [REQUESTS] * SLOTS


def test_a_mended_node_catches_up(results):
    slots = [slot["nodes"] for slot in results["slots"]]
    assert READ_ONLY not in slots[0] and slots[0][FULL]["requests"] == 0
    for name in (READ_ONLY, FULL):
        assert slots[1][name]["requests"] == SLOTS * REQUESTS


def test_nothing_is_lost_or_applied_twice(results, folder, deployment):
    """Ledgers are whole and have every fact of the pool but the one that arrived damaged."""
    rows = list(MKVPool(str(folder / "pool")).rows(["id", "fact", "node"]))
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids))
    assert sum(row["node"] != GARBLING for row in rows) == 3 * SLOTS * REQUESTS
    for name in ("bank", FULL, READ_ONLY):
        (ledger,) = (inside(deployment, name) / name).glob("*/ledger")
        entries = read_index(ledger)["entries"]
        held = {entry["id"] for entry in entries}
        assert len(entries) == len(held) >= len({row["fact"] for row in rows}) - 1
        assert sum(len(entry["requests"]) for entry in entries) == SLOTS * REQUESTS
        assert not list(ledger.rglob("*.tmp"))
