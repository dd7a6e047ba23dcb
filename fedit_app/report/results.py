"""What a run records, and its files results.json and metrics.jsonl (see docs/results.md).

The classes below are the one description of these files in code: the server fills them in, and
reports, tables and comparisons read them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedit_app.protocol.metrics import Metrics, Neutral
from fedit_app.support.errors import FedEditError, shown
from fedit_app.support.files import make_folder, to_disk, write_file, writing

SCHEMA: Final = 2


class Part(BaseModel):
    """A part of a JSON file. Keys that this version does not know are ignored."""

    model_config = ConfigDict(strict=True)


class StageSeconds(Part):
    """Seconds that the stages of a slot took; None where that is not known."""

    edit: float | None
    reedit: float | None
    compose: float | None = None
    evaluate: float | None

    @classmethod
    def of(cls, value: float | None) -> StageSeconds:
        """The same number for every stage."""
        return cls(**dict.fromkeys(STAGES, value))

    @property
    def total(self) -> float:
        """All stages together."""
        return sum(getattr(self, stage) or 0.0 for stage in STAGES)


STAGES = tuple(StageSeconds.model_fields)
"""The stages of a slot."""


def stage_name(stage: str) -> str:
    """A stage as people read it."""
    return {"reedit": "Re-edit"}.get(stage, stage.capitalize())


class Costs(Part):
    """What happened in a slot, at one node or at all of them.

    Attributes:
        requests: edit requests of the slot.
        optimised: values v* that the node optimised; facts of one key share one.
        cached: optimised values that were in the work-cache, or in the edited model of a node.
        warm_started: optimised requests that began at another MKV's value.
        renewed: own MKVs that were written anew, as the model no longer said their facts.
        composed: keys whose value the node learned together with others.
        compose_rounds: rounds that contested keys took, those that were given up as well.
        reused: requests that another node's MKV fulfils.
        uploaded: MKVs sent to the server.
        offered: MKVs of others that the server sent.
        accepted: offered MKVs that entered the ledger.
        rejected: offered MKVs that did not.
        quarantined: MKVs that failed the screening.
        conflicts: pairs of MKVs about one subject with different targets.
        bytes_up: bytes of message content from the node to the server.
        bytes_down: bytes of message content from the server to the node.
        seconds: of the stages.
    """

    requests: int
    optimised: int
    cached: int = 0
    warm_started: int = 0
    renewed: int = 0
    composed: int = 0
    compose_rounds: int = 0
    reused: int
    uploaded: int
    offered: int
    accepted: int
    rejected: int
    quarantined: int = 0
    conflicts: int
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: StageSeconds = Field(default_factory=lambda: StageSeconds.of(None))

    @staticmethod
    def zero() -> dict[str, Any]:
        """Fields of costs of which nothing has happened yet."""
        return {**dict.fromkeys(NUMBERS, 0), "seconds": StageSeconds.of(0.0)}

    @staticmethod
    def summed(parts: Iterable[Costs]) -> Costs:
        """The costs of several slots or nodes together."""
        parts = list(parts)
        sums = {name: sum(getattr(part, name) for part in parts) for name in NUMBERS}
        seconds = {s: sum(getattr(part.seconds, s) or 0.0 for part in parts) for s in STAGES}
        return Costs(**sums, seconds=StageSeconds(**seconds))


NUMBERS = tuple(name for name in Costs.model_fields if name != "seconds")
"""Counts and bytes of `Costs`."""
COUNTS = tuple(name for name in NUMBERS if not name.startswith("bytes_"))
"""Counts of `Costs`; those of a slot are the sums of its nodes'."""


class Before(Part):
    """Metrics of the unedited model.

    Attributes:
        own: on a node's own facts.
        federation: on everybody's facts.
    """

    own: Metrics | None
    federation: Metrics | None


class Measured(Part):
    """Metrics of an edited model; None where they were not measured.

    Attributes:
        own: on a node's own facts.
        received: on facts of others that the node has accepted as MKVs.
        federation: on everybody's facts.
        neutral: on text that no edit should change.
    """

    own: Metrics | None
    received: Metrics | None = None
    federation: Metrics | None
    neutral: Neutral | None = None


SCOPES = tuple(name for name in Measured.model_fields if name != "neutral")
"""Whose facts are asked about."""


class Outcome(Measured):
    """Metrics after the last slot in which a node was evaluated, and before the first one."""

    before: Before


class ConflictPair(Part):
    """Ids of two MKVs about one subject: the one that holds, and the one that gave way."""

    held: str
    gave_way: str


class NodeResult(Measured, Costs):
    """A node in a slot.

    Attributes:
        received_from: node of origin -> number of its MKVs that were accepted.
        rejections: reason -> number of MKVs that were rejected for it.
        conflict_pairs: the conflicts.
        ledger_head: hash of the last record of the node's journal, as its last answer had it; ""
            of a node without a ledger.
        peak_bytes: most memory that the process that answered for the node had held by then; on a
            CUDA device that of the device.
    """

    received_from: dict[str, int]
    rejections: dict[str, int]
    conflict_pairs: list[ConflictPair]
    ledger_head: str = ""
    peak_bytes: int = 0


class SlotFailure(Part):
    """A node that did not do its part: its name, the stage, and the reason in one line."""

    node: str
    stage: str
    reason: str


class Failure(SlotFailure):
    """The same, and the slot; 0 before the first one."""

    slot: int


class SlotResult(Costs):
    """A slot of a run.

    Attributes:
        slot: its number, from 1.
        complete: whether all its stages are done.
        failed_nodes: who failed in it.
        nodes: name -> the node in this slot.
    """

    slot: int
    complete: bool
    bytes_up: int
    bytes_down: int
    seconds: StageSeconds
    failed_nodes: list[SlotFailure]
    nodes: dict[str, NodeResult]


class ModelName(Part):
    """What the nodes' model is called, and the fingerprint on which they agree; None until they do.

    Until then the name is the run configuration's.
    """

    name: str
    fingerprint: str | None


class RunSeconds(Part):
    """Wall-clock seconds of a run and of its parts; None for a part that was not reached."""

    total: float
    hello: float | None
    before: float | None
    slots: float | None


class Results(Part):
    """A run, as `results.json` holds it.

    Attributes:
        number: of the schema.
        status: running, completed or failed.
        strategy: the strategy's name.
        editor: the editor's name.
        model: the model's name and fingerprint.
        config: the run configuration.
        connected: how many nodes were there when the run began.
        nodes: name -> the node's outcome.
        summary: the mean outcome.
        slots: in their order.
        failed_nodes: every failure of the run.
        seconds: what took how long.
    """

    number: Literal[2] = Field(alias="schema")
    status: str
    strategy: str
    editor: str
    model: ModelName
    config: dict[str, str | int | float | bool | None]
    connected: int
    nodes: dict[str, Outcome]
    summary: Outcome
    slots: list[SlotResult]
    failed_nodes: list[Failure]
    seconds: RunSeconds

    def as_json(self) -> dict[str, Any]:
        """The run as an object of JSON."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def totals(self) -> Costs:
        """The costs of all slots together."""
        return Costs.summed(self.slots)

    @property
    def failed(self) -> list[str]:
        """The names of the nodes that failed, each once."""
        return sorted({failure.node for failure in self.failed_nodes})

    def ledger_heads(self, node: str) -> dict[int, str]:
        """Slot -> the head of a node's ledger at its end, of the slots in which it said one."""
        noted = {slot.slot: slot.nodes[node] for slot in self.slots if node in slot.nodes}
        return {slot: found.ledger_head for slot, found in noted.items() if found.ledger_head}

    @property
    def slots_complete(self) -> int:
        """How many slots are complete."""
        return sum(slot.complete for slot in self.slots)


class SlotLine(NodeResult):
    """A line of `metrics.jsonl`: a node in a slot, and when the server had its figures."""

    time: str
    slot: int
    node: str


def write_results(path: str | Path, results: Results) -> None:
    """Write results.json so that a reader sees either the old file or the whole new one.

    A float that is NaN or infinite becomes null: JSON has no word for it, and a run must not lose
    its results to one.

    Args:
        path: the file to write; its folder is made if it is missing.
        results: the run.
    """
    text = results.model_dump_json(indent=2, by_alias=True) + "\n"
    write_file(Path(path), text)


def append_line(path: str | Path, line: SlotLine) -> None:
    """Append a line to metrics.jsonl and flush it to the disk.

    A last line that a killed process left unfinished is closed first, so that it spoils only
    itself. NaN and infinite floats become null.

    Args:
        path: the file to append to; it and its folder are made if they are missing.
        line: the line.

    Raises:
        FedEditError: the disk is full or read-only.
    """
    path = Path(path)
    with writing(path):
        make_folder(path.parent)
        new = not path.exists()
        text = line.model_dump_json().encode() + b"\n"
        with path.open("a+b") as file:
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    text = b"\n" + text
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if new:
            to_disk(path.parent)


def load_results(path: str | Path) -> Results:
    """Read a results.json and check it.

    Args:
        path: the results.json of a run.

    Raises:
        FedEditError: the file is missing, is not JSON, has another schema, lacks a key or holds an
            invalid value.
    """
    path = Path(path)
    try:
        return Results.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise FedEditError(
            f"{path}: no such file; a run writes it into its output folder after its first slot"
        ) from None
    except OSError as error:
        raise FedEditError(
            f"{path}: cannot be read ({error.strerror}); is it in the output folder of a run?"
        ) from None
    except ValidationError as error:
        raise FedEditError(f"{path}: {_complaint(error)}") from None


def _complaint(error: ValidationError) -> str:
    """What is wrong with the file, and what to do about it."""
    errors = error.errors(include_url=False)
    first = errors[0]
    unchanged = "Give the results.json that a run wrote, unchanged"
    if first["type"] == "json_invalid":
        return f"not valid JSON ({first['msg'].removeprefix('Invalid JSON: ')}). {unchanged}."
    if first["type"] == "model_type" and not first["loc"]:
        return f"holds {shown(first['input'])}, not an object. {unchanged}."
    number = [found for found in errors if found["loc"] == ("schema",)]
    if number:
        found = None if number[0]["type"] == "missing" else number[0]["input"]
        return (
            f"schema is {found!r}, this version of FedEdit reads {SCHEMA}. "
            "Read it with the version of FedEdit that wrote it, or run again."
        )
    missing = [f"'{_place(found['loc'])}'" for found in errors if found["type"] == "missing"]
    if missing:
        problem = f"lacks {', '.join(missing)}"
    else:
        problem = f"'{_place(first['loc'])}' is {shown(first['input'])}: {first['msg']}"
    return f"{problem}. {unchanged}; docs/results.md describes its keys."


def _place(path: Sequence[int | str]) -> str:
    """A place in the file, such as `slots[1].nodes.museum`."""
    place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return place.removeprefix(".")
