"""Writing and reading results.json and metrics.jsonl (described in docs/results.md)."""

import json
import math
import os
from pathlib import Path
from typing import Any

from fedit_app.report.figures import METRICS, SHARES, metric_of
from fedit_app.support.errors import FedEditError
from fedit_app.support.files import write_json_atomic

SCHEMA = 2

_TOP_LEVEL: dict[str, type] = {
    "status": str,
    "strategy": str,
    "editor": str,
    "model": dict,
    "config": dict,
    "connected": int,
    "nodes": dict,
    "summary": dict,
    "slots": list,
    "failed_nodes": list,
    "seconds": dict,
}
_COUNTS = ("requests", "optimised", "reused", "uploaded", "offered", "accepted", "rejected")
_SLOT_NODE_KEYS = (
    *(*_COUNTS, "conflicts", "received_from", "rejections", "conflict_pairs"),
    *("own", "federation"),
)
_SLOT_KEYS = (
    *("slot", "complete", *_COUNTS, "conflicts", "bytes_up", "bytes_down", "seconds"),
    *("failed_nodes", "nodes"),
)
_FAILURE_KEYS = ("node", "slot", "stage", "reason")


def write_results(path: str | Path, results: dict[str, Any]) -> None:
    """Write results.json so that a reader sees either the old file or the whole new one.

    A float that is NaN or infinite becomes null: JSON has no word for it, and a run must not lose
    its results to one.

    Args:
        path: The file to write; its folder is made if it is missing.
        results: Plain dicts, lists, strings, numbers, booleans and None.
    """
    write_json_atomic(Path(path), _finite(results))


def append_jsonl(path: str | Path, obj: dict[str, Any]) -> None:
    """Append one line of JSON to a log and flush it to the disk.

    A last line that a killed process left unfinished is closed first, so that it spoils only
    itself. NaN and infinite floats become null.

    Args:
        path: The file to append to; it and its folder are made if they are missing.
        obj: The plain dict to write.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_finite(obj), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def load_results(path: str | Path) -> dict[str, Any]:
    """Read a results.json and check its schema number and required keys.

    Args:
        path: The results.json of a run.

    Returns:
        The dict that `write_results` was given.

    Raises:
        FedEditError: The file is missing, is no JSON, has another schema or lacks a key.
    """
    path = Path(path)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FedEditError(
            f"{path}: no such file. Give the results.json in a run's output folder; "
            "it is written when the run ends."
        ) from None
    except OSError as error:
        raise FedEditError(
            f"{path}: cannot be read ({error.strerror}). Give the results.json file of a run."
        ) from None
    except ValueError as error:
        raise FedEditError(
            f"{path}: not valid JSON ({error}). Give the results.json that a run wrote, unchanged."
        ) from None
    _check(path, results)
    return results


def _check(path: Path, results: Any) -> None:
    if not isinstance(results, dict):
        _refuse(path, f"holds a JSON {type(results).__name__}, not an object")
    if results.get("schema") != SCHEMA:
        raise FedEditError(
            f"{path}: schema is {results.get('schema')!r}, this version of FedEdit reads {SCHEMA}. "
            "Read it with the version of FedEdit that wrote it, or run again."
        )
    _require(path, results, tuple(_TOP_LEVEL), "")
    for key, kind in _TOP_LEVEL.items():
        if not isinstance(results[key], kind):
            found = type(results[key]).__name__
            _refuse(path, f"'{key}' is of type {found}, expected {kind.__name__}")
    _require(path, results["model"], ("name", "fingerprint"), "model.")
    _check_node(path, results["summary"], "summary.")
    _require(path, results["seconds"], ("total", "hello", "before", "slots"), "seconds.")
    for name, node in results["nodes"].items():
        _check_node(path, node, f"nodes.{name}.")
    for index, slot in enumerate(results["slots"]):
        _require(path, slot, _SLOT_KEYS, f"slots[{index}].")
        _require(path, slot["seconds"], ("edit", "reedit", "evaluate"), f"slots[{index}].seconds.")
        for name, node in slot["nodes"].items():
            place = f"slots[{index}].nodes.{name}."
            _require(path, node, _SLOT_NODE_KEYS, place)
            _check_metrics(path, node, place)
    for index, failure in enumerate(results["failed_nodes"]):
        _require(path, failure, _FAILURE_KEYS, f"failed_nodes[{index}].")


def _check_node(path: Path, record: Any, place: str) -> None:
    _require(path, record, ("own", "federation", "before"), place)
    _require(path, record["before"], ("own", "federation"), f"{place}before.")
    _check_metrics(path, record, place)
    _check_metrics(path, record["before"], f"{place}before.")


def _check_metrics(path: Path, record: dict[str, Any], place: str) -> None:
    for scope in ("own", "federation"):
        if record[scope] is not None:
            _require(path, record[scope], (*SHARES, "count"), f"{place}{scope}.")
            metric = metric_of(record[scope])
            if metric not in METRICS:
                _refuse(path, f"'{place}{scope}.metric' is {metric!r}, known: {', '.join(METRICS)}")


def _require(path: Path, record: Any, keys: tuple[str, ...], place: str) -> None:
    if not isinstance(record, dict):
        _refuse(path, f"'{place.rstrip('.')}' is of type {type(record).__name__}, expected dict")
    missing = [f"'{place}{key}'" for key in keys if key not in record]
    if missing:
        _refuse(path, f"lacks {', '.join(missing)}")


def _refuse(path: Path, found: str) -> None:
    raise FedEditError(
        f"{path}: {found}. Give the results.json that a run wrote, unchanged; "
        "docs/results.md describes its keys."
    )


def _finite(obj: Any) -> Any:
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, dict):
        return {key: _finite(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_finite(value) for value in obj]
    return obj
