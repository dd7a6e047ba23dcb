"""The record of a run: what happened, per slot and node, and the files it becomes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from fedit_app.config.run_config import RunConfig
from fedit_app.protocol.metrics import mean_metrics, mean_neutral
from fedit_app.report import load_results, summary_table, write_report, write_results
from fedit_app.report.results import (
    COUNTS,
    SCHEMA,
    Before,
    ConflictPair,
    Costs,
    Failure,
    Measured,
    ModelName,
    NodeResult,
    Outcome,
    Results,
    RunSeconds,
    SlotFailure,
    SlotLine,
    SlotResult,
    StageSeconds,
    append_line,
)
from fedit_app.server.progress import Progress
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_file
from fedit_app.support.formats import typed

logger = logging.getLogger(__name__)

# Keys that may differ when a run is resumed; all others determine its results.
_MAY_CHANGE = (
    *("output-dir", "resume", "num-slots", "evaluate-every", "metrics", "slot-timeout"),
    *("stage-share", "device", "device-map", "edit-batch", "work-cache"),
)


class RunRecord:
    """Collects a run's figures and keeps `metrics.jsonl`, `results.json`, `report.html` current.

    Args:
        config: the run configuration; with `resume`, an unfinished run of the folder is resumed
            from its first unfinished slot.
        folder: the run folder; made if it does not exist.

    Attributes:
        folder: the run folder.
        progress: what is under way.

    Raises:
        FedEditError: the folder holds a run already, or one that cannot be resumed with this
            configuration, or is in use, or cannot be written.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config, self.folder = config.model_copy(update={"resume": False}), folder
        self._started = time.perf_counter()
        self._seconds = RunSeconds(total=0.0, hello=0.0, before=0.0, slots=0.0)
        self._model = ModelName(name=config.model, fingerprint=None)
        self._before: dict[str, Before] = {}
        self._slots: dict[int, SlotResult] = {}
        self._failures: list[Failure] = []
        self._connected = 0
        holds_run = (folder / "results.json").exists()
        if holds_run and not config.resume:
            raise FedEditError(
                f"output-dir: {folder} holds a run already; name another folder, or resume it: "
                f"fedit run --resume {typed(folder)}"
            )
        results = resumable_results(config, folder) if holds_run else None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(folder / ".lock")
            self._lock.acquire(timeout=0)
            if results is not None:
                self._restore(results)
            else:
                self._write_config("# How many nodes took part is not known yet.")
            self.progress = Progress(self._config, folder)
        except filelock.Timeout:
            raise FedEditError(
                f"output-dir: another run is writing to {folder}; wait for its end, or end it"
            ) from None
        except OSError as error:
            raise FedEditError(
                f"output-dir: {folder} cannot be written ({error.strerror})"
            ) from None

    @property
    def first_slot(self) -> int:
        """The first slot that is not complete."""
        return max((n for n, slot in self._slots.items() if slot.complete), default=0) + 1

    def _restore(self, results: Results) -> None:
        """Restore what an earlier, unfinished run of this folder has recorded."""
        self._model, self._connected = results.model, results.connected
        self._seconds = results.seconds
        if results.config["num-slots"] == self._config.num_slots:
            # Otherwise it was measured on the facts of fewer, or more, slots.
            self._before = {name: node.before for name, node in results.nodes.items()}
        self._slots = {slot.slot: slot for slot in results.slots if slot.complete}
        self._failures = [f for f in results.failed_nodes if f.slot in self._slots]
        file = self.folder / "metrics.jsonl"
        if file.exists():
            # A killed run may have left lines of a slot that it did not complete.
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line]
            kept = [line for line in lines if _slot_of(line) in self._slots]
            write_file(file, "".join(f"{line}\n" for line in kept))
        logger.info("run folder %s: resumed with slot %d", self.folder, self.first_slot)

    def _write_config(self, comment: str) -> None:
        text = f"{comment}\n{tomli_w.dumps(self._config.as_dict())}"
        write_file(self.folder / "config.toml", text)

    def met(self, fingerprint: str, nodes: int, simulated: bool, model: str) -> None:
        """Note what the federation agreed on, and write down how to repeat the run.

        Args:
            fingerprint: of the MKVs.
            nodes: how many nodes said hello or failed to.
            simulated: whether they are virtual; real ones get new ledgers when a run is repeated.
            model: what their model is called.
        """
        if self._model.fingerprint not in (None, fingerprint):
            raise FedEditError(
                f"run folder {self.folder}: begun with fingerprint {self._model.fingerprint}, "
                f"the nodes now have {fingerprint}; resume it with the same models and settings"
            )
        self._model = ModelName(name=model, fingerprint=fingerprint)
        self._connected = nodes
        self.progress.met(model)
        where = "" if simulated else "--superlink SUPERLINK -c federation= "
        command = f"fedit run {where}--config config.toml --nodes {nodes} --output-dir NEW"
        self._write_config(f"# Repeat this run: {command}")
        write_results(self.folder / "results.json", self.results("running"))

    def unmeasured(self, names: Iterable[str]) -> list[str]:
        """Those of some nodes whose unedited model has not been evaluated yet."""
        return [name for name in names if name not in self._before]

    def failed(self, node: str, slot: int, stage: str, reason: str) -> None:
        """Note that a node did not do its part; the same failure is noted once.

        Args:
            node: its name, or what is known of it.
            slot: the time slot; 0 for the stages before slot 1.
            stage: hello, edit, reedit, evaluate or train.
            reason: why, in one line.
        """
        reason = " ".join(reason.split())
        failure = Failure(node=node, slot=slot, stage=stage, reason=reason)
        if failure not in self._failures:
            self._failures.append(failure)
            self.progress.failed(failure)
        logger.error("slot %d %s: node %s is missing: %s", slot, stage, node, reason)

    def count(self, slot: int, node: str, **counts: int) -> None:
        """Add to a node's counts of a slot (requests, optimised, reused, ...)."""
        _add(self._node(slot, node), **counts)

    def received(
        self, slot: int, node: str, received_from: dict[str, int], rejections: dict[str, int]
    ) -> None:
        """Add whose MKVs a node accepted and why it rejected others."""
        entry = self._node(slot, node)
        entry.received_from = _sums(entry.received_from, received_from)
        entry.rejections = _sums(entry.rejections, rejections)
        _add(entry, accepted=sum(received_from.values()), rejected=sum(rejections.values()))

    def conflict(self, slot: int, node: str, held: str, gave_way: str) -> None:
        """Note which of two MKVs that want different targets for one subject holds at a node."""
        entry = self._node(slot, node)
        _add(entry, conflicts=1)
        entry.conflict_pairs.append(ConflictPair(held=held, gave_way=gave_way))
        logger.info(
            "slot %d: conflict at node %s: MKV %s holds, %s gave way", slot, node, held, gave_way
        )

    def ledger_head(self, slot: int, node: str, head: str) -> None:
        """Note the head of a node's ledger, as its latest answer of the slot has it."""
        self._node(slot, node).ledger_head = head

    def traffic(self, slot: int, up: int = 0, down: int = 0) -> None:
        """Add bytes that nodes sent (up) and received (down)."""
        _add(self._slot(slot), bytes_up=up, bytes_down=down)

    def cost(self, slot: int, node: str, stage: str, up: int, down: int, seconds: float) -> None:
        """Note what a node's answer of a slot's stage took: bytes, and its own seconds."""
        entry = self._node(slot, node)
        _add(entry, bytes_up=up, bytes_down=down)
        _add_seconds(entry.seconds, stage, seconds)

    def memory(self, slot: int, node: str, peak: int) -> None:
        """Note the most bytes that a node had held by the time of an answer."""
        entry = self._node(slot, node)
        entry.peak_bytes = max(entry.peak_bytes, peak)

    def took(self, slot: int, stage: str, seconds: float) -> None:
        """Add the seconds of a stage, or of one of its rounds; slot 0 for hello and before."""
        _add_seconds(self._slot(slot).seconds if slot else self._seconds, stage, seconds)

    def measured(self, slot: int, node: str, found: Mapping[str, Any]) -> None:
        """Note a node's metrics; slot 0 for the unedited model.

        Args:
            slot: the slot.
            node: the node.
            found: the fields of `Measured`, as the node's answer has them.
        """
        metrics = Measured.model_validate(found)
        if slot:
            entry = self._node(slot, node)
            for name, value in metrics:
                setattr(entry, name, value)
        else:
            self._before[node] = Before(own=metrics.own, federation=metrics.federation)

    def close_slot(self, slot: int) -> None:
        """Append the slot's lines to metrics.jsonl and write results so far."""
        entry = self._slot(slot)
        entry.complete = True
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for name, node in sorted(entry.nodes.items()):
            line = SlotLine(time=now, slot=slot, node=name, **dict(node))
            append_line(self.folder / "metrics.jsonl", line)
        write_results(self.folder / "results.json", self.results("running"))

    def finish(self, status: str) -> Results:
        """Write results.json and report.html.

        Args:
            status: completed or failed.
        """
        results = self.results(status)
        write_results(self.folder / "results.json", results)
        write_report(results, self.folder / "report.html")
        self.progress.finished(status)
        self._lock.release()
        logger.info("\n%s", summary_table(results))
        logger.info("run folder %s, report %s", self.folder, self.folder / "report.html")
        return results

    def results(self, status: str) -> Results:
        """The run as `results.json` holds it, see docs/results.md."""
        # What happens before the first slot is noted as slot 0, which no file shows.
        slots = [self._summed(slot) for number, slot in sorted(self._slots.items()) if number]
        nodes = self._nodes(slots)
        spent = self._seconds.total + time.perf_counter() - self._started
        seconds = {
            "total": round(spent, 3),
            "slots": round(sum(slot.seconds.total for slot in slots), 3),
        }
        return Results(
            schema=SCHEMA,
            status=status,
            strategy=self._config.strategy,
            editor=self._config.editor,
            model=self._model,
            config={**self._config.as_dict()},
            connected=self._connected,
            nodes=nodes,
            summary=_mean(nodes.values()),
            slots=slots,
            failed_nodes=self._failures,
            seconds=self._seconds.model_copy(update=seconds),
        )

    def _nodes(self, slots: list[SlotResult]) -> dict[str, Outcome]:
        """Per node the metrics of the last slot in which it was evaluated."""
        nodes = {}
        for name, before in sorted(self._before.items()):
            entries = [slot.nodes[name] for slot in slots if name in slot.nodes]
            evaluated: list[Measured] = [entry for entry in entries if entry.own]
            last = evaluated[-1] if evaluated else Measured(own=None, federation=None)
            found = {field: getattr(last, field) for field in Measured.model_fields}
            nodes[name] = Outcome(**found, before=before)
        return nodes

    def _summed(self, slot: SlotResult) -> SlotResult:
        """A slot with the counts of all its nodes together, and its failures."""
        totals = Costs.summed(slot.nodes.values())
        failures = [
            SlotFailure(node=failure.node, stage=failure.stage, reason=failure.reason)
            for failure in self._failures
            if failure.slot == slot.slot
        ]
        changes = {name: getattr(totals, name) for name in COUNTS}
        nodes = dict(sorted(slot.nodes.items()))
        return slot.model_copy(update={**changes, "failed_nodes": failures, "nodes": nodes})

    def _slot(self, slot: int) -> SlotResult:
        if slot not in self._slots:
            self._slots[slot] = SlotResult(
                slot=slot, complete=False, failed_nodes=[], nodes={}, **Costs.zero()
            )
        return self._slots[slot]

    def _node(self, slot: int, node: str) -> NodeResult:
        nodes = self._slot(slot).nodes
        if node not in nodes:
            nodes[node] = NodeResult(
                own=None,
                federation=None,
                received_from={},
                rejections={},
                conflict_pairs=[],
                **Costs.zero(),
            )
        return nodes[node]


def resumable_results(config: RunConfig, folder: Path) -> Results:
    """The results so far of an unfinished run.

    Args:
        config: the run configuration with which it is to be resumed.
        folder: the run folder.

    Raises:
        FedEditError: they cannot be read, the run is complete, or the configuration differs.
    """
    results = load_results(folder / "results.json")
    values = config.as_dict()
    begun = RunConfig.parse(results.config).as_dict()
    changed = [
        f"{key} = {value!r} (the run was begun with {begun[key]!r})"
        for key, value in values.items()
        if key not in _MAY_CHANGE and begun[key] != value
    ]
    if changed:
        raise FedEditError(
            f"run folder {folder}: cannot be resumed with another {', '.join(changed)}"
        )
    if results.slots_complete >= config.num_slots:
        raise FedEditError(
            f"run folder {folder}: all {config.num_slots} slots are complete; nothing is left to "
            "resume, unless num-slots is raised (-c num-slots=N)"
        )
    return results


def _add(entry: Costs, **numbers: int) -> None:
    for name, number in numbers.items():
        setattr(entry, name, getattr(entry, name) + number)


def _sums(known: Mapping[str, int], found: Mapping[str, int]) -> dict[str, int]:
    names = sorted({*known, *found})
    return {name: known.get(name, 0) + found.get(name, 0) for name in names}


def _add_seconds(entry: StageSeconds | RunSeconds, stage: str, seconds: float) -> None:
    setattr(entry, stage, round((getattr(entry, stage) or 0.0) + seconds, 3))


def _mean(nodes: Iterable[Outcome]) -> Outcome:
    nodes = list(nodes)
    return Outcome(
        own=mean_metrics(node.own for node in nodes),
        received=mean_metrics(node.received for node in nodes),
        federation=mean_metrics(node.federation for node in nodes),
        neutral=mean_neutral(node.neutral for node in nodes),
        before=Before(
            own=mean_metrics(node.before.own for node in nodes),
            federation=mean_metrics(node.before.federation for node in nodes),
        ),
    )


def _slot_of(line: str) -> int | None:
    """The slot of a line of metrics.jsonl; None of a line that was cut off."""
    try:
        slot: int = json.loads(line)["slot"]
    except (ValueError, KeyError, TypeError):
        return None
    return slot
