"""The record of a run: what happened, per slot and node, and the files it becomes."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from fedit_app.config.run_config import RunConfig
from fedit_app.evaluation.metrics import Metrics
from fedit_app.report import (
    SCHEMA,
    append_jsonl,
    load_results,
    mean_metrics,
    mean_neutral,
    summary_table,
    write_report,
    write_results,
)
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import replace_file

logger = logging.getLogger(__name__)

_COUNTS = (
    "requests",
    "optimised",
    "cached",
    "warm_started",
    "reused",
    "uploaded",
    "offered",
    "accepted",
    "rejected",
    "quarantined",
    "conflicts",
)
_PER_SLOT = ("bytes_up", "bytes_down", "seconds", "nodes")
_STAGES = ("edit", "reedit", "evaluate")
_SCOPES = ("own", "received", "federation")
_BEFORE = ("own", "federation")
# What may be another when a run is resumed; everything else makes its results.
_MAY_CHANGE = (
    *("output-dir", "resume", "num-slots", "evaluate-every", "metrics", "slot-timeout"),
    *("device", "device-map", "edit-batch", "work-cache"),
)


class RunRecord:
    """Collects a run's figures and keeps `metrics.jsonl`, `results.json`, `report.html` current.

    Args:
        config: the run configuration; with `resume`, an unfinished run of the folder is gone on
            with, from its first unfinished slot.
        folder: the run folder; made if it does not exist.

    Raises:
        FedEditError: the folder holds a run already, or one that cannot be resumed like this, or
            is in use, or cannot be written.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config, self.folder = config.model_copy(update={"resume": False}), folder
        self._started = time.perf_counter()
        self._seconds = {"hello": 0.0, "before": 0.0}
        self._model: dict[str, Any] = {"name": config.model, "fingerprint": None}
        self._before: dict[str, dict[str, Metrics | None]] = {}
        self._slots: dict[int, dict[str, Any]] = {}
        self._failures: list[dict[str, Any]] = []
        self._complete: set[int] = set()
        self._connected = self._layers = 0
        self._seconds_before = 0.0
        holds_run = (folder / "results.json").exists()
        if holds_run and not config.resume:
            raise FedEditError(
                f"output-dir: {folder} holds a run already; name another folder, or go on with it: "
                f"fedit run --resume {folder}"
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
        return max(self._complete, default=0) + 1

    def _restore(self, results: Mapping[str, Any]) -> None:
        """Take over what an earlier, unfinished run of this folder has recorded."""
        self._model = dict(results["model"])
        self._connected = results["connected"]
        if results["config"]["num-slots"] == self._config.num_slots:
            # Otherwise it was measured on the facts of fewer, or more, slots.
            self._before = {name: node["before"] for name, node in results["nodes"].items()}
        self._seconds_before = results["seconds"]["total"]
        self._seconds = {name: results["seconds"][name] or 0.0 for name in self._seconds}
        for slot in results["slots"]:
            if slot["complete"]:
                self._complete.add(slot["slot"])
                self._slot(slot["slot"]).update({key: slot[key] for key in _PER_SLOT})
        self._failures = [f for f in results["failed_nodes"] if f["slot"] in self._complete]
        file = self.folder / "metrics.jsonl"
        if file.exists():
            # A killed run may have left lines of a slot that it did not complete.
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line]
            kept = [line for line in lines if _slot_of(line) in self._complete]
            with replace_file(file) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        logger.info("run folder %s: going on with slot %d", self.folder, self.first_slot)

    def _write_config(self, comment: str) -> None:
        with replace_file(self.folder / "config.toml") as temporary:
            text = f"{comment}\n{tomli_w.dumps(self._config.as_dict())}"
            temporary.write_text(text, encoding="utf-8")

    def met(self, fingerprint: str, nodes: int, simulated: bool, layers: int) -> None:
        """Note what the federation agreed on, and write down how to repeat the run.

        Args:
            fingerprint: of the MKVs.
            nodes: how many nodes said hello or failed to.
            simulated: whether they are virtual; real ones get new ledgers when a run is repeated.
            layers: how many layers are edited.
        """
        if self._model["fingerprint"] not in (None, fingerprint):
            raise FedEditError(
                f"run folder {self.folder}: begun with fingerprint {self._model['fingerprint']}, "
                f"the nodes now have {fingerprint}; resume it with the same models and settings"
            )
        self._model["fingerprint"], self._connected = fingerprint, nodes
        self._layers = layers
        where = "" if simulated else "--superlink SUPERLINK -c federation= "
        command = f"fedit run {where}--config config.toml --nodes {nodes} --output-dir NEW"
        self._write_config(f"# Repeat this run: {command}")
        write_results(self.folder / "results.json", self.results("running"))

    def unmeasured(self, names: Iterable[str]) -> list[str]:
        """Those of some nodes whose unedited model has not been evaluated yet."""
        return [name for name in names if name not in self._before]

    def failed(self, node: str, slot: int, stage: str, reason: str) -> None:
        """Note that a node did not do its part; once, if it says the same of the same again.

        Args:
            node: its name, or what is known of it.
            slot: the time slot; 0 for the stages before slot 1.
            stage: hello, edit, reedit, evaluate or train.
            reason: why, in one line.
        """
        reason = " ".join(reason.split())
        failure = {"node": node, "slot": slot, "stage": stage, "reason": reason}
        if failure not in self._failures:
            self._failures.append(failure)
        logger.error("slot %d %s: node %s is missing: %s", slot, stage, node, reason)

    def count(self, slot: int, node: str, **counts: int) -> None:
        """Add to a node's counts of a slot (requests, optimised, reused, ...)."""
        for name, value in counts.items():
            self._node(slot, node)[name] += value

    def received(
        self, slot: int, node: str, received_from: dict[str, int], rejections: dict[str, int]
    ) -> None:
        """Note whose MKVs a node accepted and why it rejected others."""
        entry = self._node(slot, node)
        entry["received_from"] = dict(sorted(received_from.items()))
        entry["rejections"] = dict(sorted(rejections.items()))
        entry["accepted"] += sum(received_from.values())
        entry["rejected"] += sum(rejections.values())

    def conflict(self, slot: int, node: str, held: str, gave_way: str) -> None:
        """Note which of two MKVs that want different targets for one subject holds at a node."""
        entry = self._node(slot, node)
        entry["conflicts"] += 1
        entry["conflict_pairs"].append({"held": held, "gave_way": gave_way})
        logger.info(
            "slot %d: conflict at node %s: MKV %s holds, %s gave way", slot, node, held, gave_way
        )

    def traffic(self, slot: int, up: int = 0, down: int = 0) -> None:
        """Add bytes that nodes sent (up) and received (down)."""
        entry = self._slot(slot)
        entry["bytes_up"] += up
        entry["bytes_down"] += down

    def cost(self, slot: int, node: str, stage: str, up: int, down: int, seconds: float) -> None:
        """Note what a node's answer of a slot's stage took: bytes, and its own seconds."""
        entry = self._node(slot, node)
        entry["bytes_up"] += up
        entry["bytes_down"] += down
        entry["seconds"][stage] = round(seconds, 3)

    def took(self, slot: int, stage: str, seconds: float) -> None:
        """Note the seconds of a stage; slot 0 for hello and before."""
        if slot:
            self._slot(slot)["seconds"][stage] = round(seconds, 3)
        else:
            self._seconds[stage] = round(self._seconds[stage] + seconds, 3)

    def measured(self, slot: int, node: str, found: dict[str, Metrics | None]) -> None:
        """Note a node's metrics, see `Participant.evaluate`; slot 0 for the unedited model."""
        if slot:
            self._node(slot, node).update(found)
        else:
            self._before[node] = {scope: found[scope] for scope in _BEFORE}

    def close_slot(self, slot: int) -> None:
        """Append the slot's lines to metrics.jsonl and write results so far."""
        self._complete.add(slot)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for node, entry in sorted(self._slot(slot)["nodes"].items()):
            line = {"time": now, "slot": slot, "node": node, **entry}
            append_jsonl(self.folder / "metrics.jsonl", line)
        write_results(self.folder / "results.json", self.results("running"))

    def finish(self, status: str) -> dict[str, Any]:
        """Write results.json and report.html.

        Args:
            status: completed or failed.

        Returns:
            The results.
        """
        results = self.results(status)
        write_results(self.folder / "results.json", results)
        write_report(results, self.folder / "report.html")
        self._lock.release()
        logger.info("\n%s", summary_table(results))
        logger.info("run folder %s, report %s", self.folder, self.folder / "report.html")
        return results

    def results(self, status: str) -> dict[str, Any]:
        """The run as `results.json` holds it, see docs/results.md."""
        slots = [self._closed(slot) for slot in sorted(self._slots) if slot]
        nodes = self._nodes(slots)
        return {
            "schema": SCHEMA,
            "status": status,
            "strategy": self._config.strategy,
            "editor": self._config.editor,
            "model": self._model,
            "config": self._config.as_dict(),
            "connected": self._connected,
            "nodes": nodes,
            "summary": {
                **_means(list(nodes.values()), _SCOPES),
                "neutral": mean_neutral(node["neutral"] for node in nodes.values()),
                "before": _means([node["before"] for node in nodes.values()], _BEFORE),
            },
            "slots": slots,
            "failed_nodes": self._failures,
            "seconds": {
                "total": round(self._seconds_before + time.perf_counter() - self._started, 3),
                **self._seconds,
                "slots": round(sum(sum(s["seconds"].values()) for s in slots), 3),
            },
        }

    def _nodes(self, slots: list[dict[str, Any]]) -> dict[str, Any]:
        """Per node the metrics of the last slot in which it was evaluated."""
        nodes = {}
        for name, before in sorted(self._before.items()):
            nodes[name] = {**dict.fromkeys((*_SCOPES, "neutral")), "before": before}
            for slot in slots:
                entry = slot["nodes"].get(name)
                if entry and entry["own"]:
                    nodes[name] |= {part: entry.get(part) for part in (*_SCOPES, "neutral")}
        return nodes

    def _closed(self, slot: int) -> dict[str, Any]:
        entry = self._slot(slot)
        totals: Counter[str] = Counter()
        for node in entry["nodes"].values():
            totals.update({name: node.get(name, 0) for name in _COUNTS})
        return {
            "slot": slot,
            "complete": slot in self._complete,
            **{name: totals[name] for name in _COUNTS},
            **{name: entry[name] for name in ("bytes_up", "bytes_down", "seconds")},
            "failed_nodes": [
                {key: failure[key] for key in ("node", "stage", "reason")}
                for failure in self._failures
                if failure["slot"] == slot
            ],
            "nodes": dict(sorted(entry["nodes"].items())),
        }

    def _slot(self, slot: int) -> dict[str, Any]:
        empty = {
            "bytes_up": 0,
            "bytes_down": 0,
            "seconds": dict.fromkeys(_STAGES, 0.0),
            "nodes": {},
        }
        return self._slots.setdefault(slot, empty)

    def _node(self, slot: int, node: str) -> dict[str, Any]:
        empty = {
            **dict.fromkeys(_COUNTS, 0),
            "received_from": {},
            "rejections": {},
            "conflict_pairs": [],
            "bytes_up": 0,
            "bytes_down": 0,
            "seconds": dict.fromkeys(_STAGES, 0.0),
            **dict.fromkeys((*_SCOPES, "neutral")),
        }
        return self._slot(slot)["nodes"].setdefault(node, empty)


def resumable_results(config: RunConfig, folder: Path) -> dict[str, Any]:
    """The results so far of an unfinished run.

    Args:
        config: the run configuration with which it is to be resumed.
        folder: the run folder.

    Raises:
        FedEditError: they cannot be read, the run is complete, or the configuration is another.
    """
    results = load_results(folder / "results.json")
    values = config.as_dict()
    begun = RunConfig.parse(results["config"]).as_dict()
    changed = [
        f"{key} = {value!r} (the run was begun with {begun[key]!r})"
        for key, value in values.items()
        if key not in _MAY_CHANGE and begun[key] != value
    ]
    if changed:
        raise FedEditError(
            f"run folder {folder}: cannot be resumed with another {', '.join(changed)}"
        )
    done = sum(slot["complete"] for slot in results["slots"])
    if done >= config.num_slots:
        raise FedEditError(
            f"run folder {folder}: all {config.num_slots} slots are complete; nothing is left to "
            "resume, unless num-slots is raised (-c num-slots=N)"
        )
    return results


def _slot_of(line: str) -> int | None:
    """The slot of a line of metrics.jsonl; None of a line that was cut off."""
    try:
        return json.loads(line)["slot"]
    except (ValueError, KeyError, TypeError):
        return None


def _means(records: list[dict[str, Any]], scopes: Sequence[str]) -> dict[str, Metrics | None]:
    return {scope: mean_metrics([record[scope] for record in records]) for scope in scopes}
