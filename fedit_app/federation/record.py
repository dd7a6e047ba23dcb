"""The record of a run: what happened, per slot and node, and the files it becomes."""

from __future__ import annotations

import logging
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w

from fedit_app.config import RunConfig
from fedit_app.errors import FedEditError
from fedit_app.evaluation.metrics import Metrics
from fedit_app.files import replace_file
from fedit_app.reporting import (
    append_jsonl,
    mean_metrics,
    summary_table,
    write_report,
    write_results,
)

logger = logging.getLogger(__name__)

_COUNTS = (
    "requests",
    "optimised",
    "reused",
    "uploaded",
    "offered",
    "accepted",
    "rejected",
    "conflicts",
)
_STAGES = ("edit", "reedit", "evaluate")


class RunRecord:
    """Collects a run's figures and keeps `metrics.jsonl`, `results.json`, `report.html` current.

    Args:
        config: the run configuration.
        folder: the run folder; made if it does not exist.

    Raises:
        FedEditError: the folder holds a run already, or cannot be written.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config, self.folder = config, folder
        self._started = time.perf_counter()
        self._seconds = {"hello": 0.0, "before": 0.0}
        self._model: dict[str, Any] = {"name": config.model, "fingerprint": None}
        self._before: dict[str, dict[str, Metrics | None]] = {}
        self._slots: dict[int, dict[str, Any]] = {}
        self._failures: list[dict[str, Any]] = []
        if (folder / "results.json").exists() or (folder / "metrics.jsonl").exists():
            raise FedEditError(f"output-dir: {folder} holds a run already; name another folder")
        try:
            self._write_config("# How many nodes took part is not known yet.")
        except OSError as error:
            raise FedEditError(
                f"output-dir: {folder} cannot be written ({error.strerror})"
            ) from None

    def _write_config(self, comment: str) -> None:
        with replace_file(self.folder / "config.toml") as temporary:
            text = f"{comment}\n{tomli_w.dumps(self._config.as_dict())}"
            temporary.write_text(text, encoding="utf-8")

    def met(self, fingerprint: str, nodes: int) -> None:
        """Note what the federation agreed on, and write down how to repeat the run.

        Args:
            fingerprint: of the MKVs.
            nodes: how many nodes said hello or failed to.
        """
        self._model["fingerprint"] = fingerprint
        command = f"fedit run --config config.toml --nodes {nodes} --output-dir NEW"
        self._write_config(f"# Repeat this run: {command}")

    def failed(self, node: str, slot: int, stage: str, reason: str) -> None:
        """Note that a node did not do its part.

        Args:
            node: its name, or what is known of it.
            slot: the time slot; 0 for the stages before slot 1.
            stage: hello, edit, reedit, evaluate or train.
            reason: why, in one line.
        """
        reason = " ".join(reason.split())
        self._failures.append({"node": node, "slot": slot, "stage": stage, "reason": reason})
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

    def conflict(self, slot: int, node: str, own: str, other: str) -> None:
        """Note that a node kept one of two MKVs that want different targets for one subject."""
        self._node(slot, node)["conflicts"] += 1
        logger.info(
            "slot %d: conflict at node %s: MKV %s holds, %s gave way", slot, node, own, other
        )

    def traffic(self, slot: int, up: int = 0, down: int = 0) -> None:
        """Add bytes that nodes sent (up) and received (down)."""
        entry = self._slot(slot)
        entry["bytes_up"] += up
        entry["bytes_down"] += down

    def took(self, slot: int, stage: str, seconds: float) -> None:
        """Note the seconds of a stage; slot 0 for hello and before."""
        if slot:
            self._slot(slot)["seconds"][stage] = round(seconds, 3)
        else:
            self._seconds[stage] = round(seconds, 3)

    def measured(self, slot: int, node: str, found: dict[str, Metrics | None]) -> None:
        """Note a node's metrics: own and federation; slot 0 for the unedited model."""
        if slot:
            self._node(slot, node).update(found)
        else:
            self._before[node] = found

    def close_slot(self, slot: int) -> None:
        """Append the slot's lines to metrics.jsonl and write results so far."""
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
        logger.info("\n%s", summary_table(results))
        logger.info("run folder %s, report %s", self.folder, self.folder / "report.html")
        return results

    def results(self, status: str) -> dict[str, Any]:
        """The run as `results.json` holds it, see docs/results.md."""
        slots = [self._closed(slot) for slot in sorted(self._slots) if slot]
        nodes = self._nodes(slots)
        return {
            "schema": 1,
            "status": status,
            "strategy": self._config.strategy,
            "editor": self._config.editor,
            "model": self._model,
            "config": self._config.as_dict(),
            "nodes": nodes,
            "summary": {
                **_means(list(nodes.values())),
                "before": _means([node["before"] for node in nodes.values()]),
            },
            "slots": slots,
            "failed_nodes": self._failures,
            "seconds": {
                "total": round(time.perf_counter() - self._started, 3),
                **self._seconds,
                "slots": round(sum(sum(s["seconds"].values()) for s in slots), 3),
            },
        }

    def _nodes(self, slots: list[dict[str, Any]]) -> dict[str, Any]:
        """Per node the metrics of the last slot in which it was evaluated."""
        nodes = {}
        for name, before in sorted(self._before.items()):
            nodes[name] = {"own": None, "federation": None, "before": before}
            for slot in slots:
                entry = slot["nodes"].get(name)
                if entry and entry["own"]:
                    nodes[name]["own"] = entry["own"]
                    nodes[name]["federation"] = entry["federation"]
        return nodes

    def _closed(self, slot: int) -> dict[str, Any]:
        entry = self._slot(slot)
        totals: Counter[str] = Counter()
        for node in entry["nodes"].values():
            totals.update({name: node[name] for name in _COUNTS})
        return {
            "slot": slot,
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
            "own": None,
            "federation": None,
        }
        return self._slot(slot)["nodes"].setdefault(node, empty)


def _means(records: list[dict[str, Any]]) -> dict[str, Metrics | None]:
    return {
        scope: mean_metrics([record[scope] for record in records])
        for scope in ("own", "federation")
    }
