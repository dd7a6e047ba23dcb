"""How far a run is, as `progress.json` holds it while the run goes on (see docs/results.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import ValidationError

from fedit_app.report.results import Failure, Part
from fedit_app.support.errors import FedEditError

PROGRESS_FILE: Final = "progress.json"


class NodeProgress(Part):
    """A node in a run that goes on.

    Attributes:
        slot: of what it was last asked for.
        stage: what it was last asked for.
        waiting: whether its answer is waited for.
        seen: when its last answer came, UTC, ISO 8601; None if none has come.
        own, federation: its last scores.
    """

    slot: int
    stage: str
    waiting: bool
    seen: str | None = None
    own: float | None = None
    federation: float | None = None


class RunProgress(Part):
    """A run that goes on.

    Attributes:
        status: running, completed or failed.
        strategy, editor, model: their names; None for the model until the nodes have agreed.
        slots: how many slots the run has.
        slot: the one under way; 0 before the first one.
        stage: hello, before, edit, reedit, compose or evaluate.
        asked: how many nodes were asked for it.
        answered: how many of them have answered.
        began: when the stage began, UTC, ISO 8601.
        time: when this was written.
        nodes: name -> the node.
        failed_nodes: every failure so far.
    """

    status: str
    strategy: str
    editor: str
    model: str | None
    slots: int
    slot: int
    stage: str
    asked: int
    answered: int
    began: str
    time: str
    nodes: dict[str, NodeProgress]
    failed_nodes: list[Failure]


def load_progress(folder: Path) -> RunProgress | None:
    """The progress of the run in a folder; None if it has noted none.

    Raises:
        FedEditError: the file is not one that a run writes.
    """
    file = folder / PROGRESS_FILE
    try:
        return RunProgress.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise FedEditError(f"{file}: cannot be read ({type(error).__name__})") from None
