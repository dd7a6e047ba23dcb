"""Whole federations in this process, on the tiny model and the demo's data."""

import json
import shutil
from pathlib import Path

import inprocess
import pytest
import tiny
from flwr.app import Context, Message, RecordDict

from fedit_app.node.app import app as client_app
from fedit_app.protocol.parcel import unwrap


@pytest.fixture(scope="session")
def small(tiny_folder) -> dict:
    """Run-config values with which a run takes a few seconds."""
    return {
        "model": str(tiny_folder),
        **tiny.RUN_CONFIG,
    }


@pytest.fixture
def settings(small, tmp_path):
    """Gives `settings(key=value, ...)`: `small` with a run folder of its own and changes."""

    def settings(folder: str = "run", **changes) -> dict:
        changed = {key.replace("_", "-"): value for key, value in changes.items()}
        return {**small, "output-dir": str(tmp_path / folder), **changed}

    return settings


@pytest.fixture(scope="session")
def demo_run(small, tmp_path_factory):
    """The demo over all slots: (results, grid, run folder)."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    results, grid = inprocess.federate({**small, "output-dir": str(folder)}, 4, plots=True)
    return results, grid, folder


@pytest.fixture
def demo_copy(tmp_path) -> Path:
    """A folder with the demo's four files, to be spoilt."""
    return Path(shutil.copytree(tiny.DEMO, tmp_path / "data"))


@pytest.fixture(scope="session")
def answer():
    """Gives `answer(message, run_config, number, nodes)`: what a virtual node replies."""

    def answer(
        message: Message, run_config: dict, number: int, nodes: int = 4, node_config=None
    ) -> Message:
        context = Context(
            run_id=inprocess.RUN_ID,
            node_id=101 + number,
            node_config=node_config or {"partition-id": number, "num-partitions": nodes},
            state=RecordDict(),
            run_config=run_config,
        )
        reply = client_app(message, context)
        reply.content = unwrap(reply.content)
        return reply

    return answer


@pytest.fixture(scope="session")
def demo_records() -> list[dict]:
    """All 60 requests of the demo as they stand in its files."""
    return [
        json.loads(line)
        for file in sorted(tiny.DEMO.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
