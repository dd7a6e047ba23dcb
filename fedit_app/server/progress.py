"""Keeps `progress.json` of a run folder current, which `fedit watch` shows."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from fedit_app.config.run_config import RunConfig
from fedit_app.protocol.metrics import Metrics
from fedit_app.report.progress import PROGRESS_FILE, NodeProgress, RunProgress
from fedit_app.report.results import Failure
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_file


class Progress:
    """What a run waits for, and of whom it has heard when.

    A run goes on where the file cannot be written: nothing but a page depends on it.

    Args:
        config: the run configuration.
        folder: the run folder.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._file = folder / PROGRESS_FILE
        self._now = RunProgress(
            status="running",
            strategy=config.strategy,
            editor=config.editor,
            model=None,
            slots=config.num_slots,
            slot=0,
            stage="hello",
            asked=0,
            answered=0,
            began=_time(),
            time=_time(),
            nodes={},
            failed_nodes=[],
        )
        self._write()

    def met(self, model: str) -> None:
        """Note what the model of the nodes is called."""
        self._now.model = model
        self._write()

    def asks(self, slot: int, stage: str, names: Iterable[str]) -> None:
        """Note that a stage has begun.

        Args:
            slot: the slot; 0 before the first one.
            stage: the stage.
            names: of the nodes that are asked; "" is one whose name is not known yet.
        """
        names = list(names)
        self._now.slot, self._now.stage, self._now.began = slot, stage, _time()
        self._now.asked, self._now.answered = len(names), 0
        for name in filter(None, names):
            node = self._node(name, slot, stage)
            node.slot, node.stage, node.waiting = slot, stage, True
        self._write()

    def heard(
        self, slot: int, stage: str, name: str, own: Metrics | None, federation: Metrics | None
    ) -> None:
        """Note that a node has answered.

        Args:
            slot: the slot.
            stage: the stage.
            name: the node.
            own: of its own facts, if it was asked for metrics.
            federation: of the federation's facts, likewise.
        """
        node = self._node(name, slot, stage)
        node.waiting, node.seen = False, _time()
        self._now.answered += 1
        if own is not None:
            node.own = own.score
        if federation is not None:
            node.federation = federation.score
        self._write()

    def failed(self, failure: Failure) -> None:
        """Note that a node did not do its part."""
        self._now.failed_nodes.append(failure)
        if failure.node in self._now.nodes:
            self._now.nodes[failure.node].waiting = False
        self._write()

    def finished(self, status: str) -> None:
        """Note that the run is completed or failed."""
        self._now.status = status
        for node in self._now.nodes.values():
            node.waiting = False
        self._write()

    def _node(self, name: str, slot: int, stage: str) -> NodeProgress:
        new = NodeProgress(slot=slot, stage=stage, waiting=True)
        return self._now.nodes.setdefault(name, new)

    def _write(self) -> None:
        self._now.time = _time()
        with suppress(FedEditError, OSError):
            write_file(self._file, self._now.model_dump_json() + "\n", lasting=False)


def _time() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
