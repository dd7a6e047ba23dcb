"""The HTML report of a run: one file that opens offline, without scripts or other resources."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fedit_app.report.figures import FURTHER, METRICS, SHARES, metric_of, value_of
from fedit_app.report.plots import change_plot, exchange_plot, score_plot
from fedit_app.report.styles import STYLES
from fedit_app.report.template import PAGE
from fedit_app.support.files import replace_file
from fedit_app.support.formats import (
    byte_size,
    duration,
    listing,
    percent,
    plural,
    printable,
    share,
)

_COUNTS = (
    *(
        "requests",
        "optimised",
        "warm_started",
        "reused",
        "uploaded",
        "offered",
        "accepted",
        "rejected",
    ),
    "conflicts",
)
_STAGES = ("edit", "reedit", "evaluate")


def render_report(results: dict[str, Any]) -> str:
    """The report of a run as one HTML page.

    Text from the results (names, reasons, configuration) is escaped; the page forbids scripts and
    loads nothing. The same results give the same text.

    Args:
        results: A results dict as `load_results` returns it; see docs/results.md.

    Returns:
        A complete HTML document.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.globals.update(share=share, byte_size=byte_size, duration=duration)
    environment.globals.update(value_of=value_of, shares=SHARES, counts=_COUNTS, stages=_STAGES)
    clean = _printable(results)
    totals = _totals(clean)
    plots = {"score": score_plot, "change": change_plot, "exchange": exchange_plot}
    return environment.from_string(PAGE).render(
        styles=Markup(STYLES),
        headline=_headline(clean),
        status_class=_status_class(clean),
        status_text=_status(clean),
        lead=_lead(clean, totals),
        tiles=_tiles(clean, totals),
        nodes=sorted(clean["nodes"].items()),
        summary=clean["summary"],
        has_federation=clean["summary"]["federation"] is not None,
        further=_further(clean["summary"]),
        meaning=METRICS[metric_of(clean["summary"]["own"])],
        slots=clean["slots"],
        totals=totals,
        rejections=_rejections(clean),
        failed_nodes=clean["failed_nodes"],
        config=[(key, _setting(value)) for key, value in clean["config"].items()],
        model=clean["model"],
        strategy=clean["strategy"],
        editor=clean["editor"],
        times=_times(clean),
        # The drawings escape their own text; everything else is escaped here.
        plots={name: Markup(plot(clean)) for name, plot in plots.items()},
    )


def write_report(results: dict[str, Any], path: str | Path) -> None:
    """Write `render_report(results)` to a file; its folder is made if it is missing."""
    with replace_file(Path(path)) as temporary:
        temporary.write_text(render_report(results), encoding="utf-8")


def _printable(value: Any) -> Any:
    """The same structure with control characters taken out of all keys and texts."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return value


def _totals(results: dict[str, Any]) -> dict[str, Any]:
    slots = results["slots"]
    totals: dict[str, Any] = {
        key: sum(slot.get(key, 0) for slot in slots) for key in (*_COUNTS, "bytes_up", "bytes_down")
    }
    totals["seconds"] = {
        stage: sum(slot["seconds"][stage] or 0 for slot in slots) for stage in _STAGES
    }
    return totals


def _further(summary: dict[str, Any]) -> dict[str, str]:
    """Name -> heading of the figures beside the shares that were measured on some facts."""
    scopes = [summary[scope] for scope in ("own", "federation")]
    return {
        name: heading
        for name, heading in FURTHER.items()
        if any(value_of(scope, name) is not None for scope in scopes)
    }


def _headline(results: dict[str, Any]) -> str:
    """The figure that matters most: on the federation's facts where they were measured."""
    summary = results["summary"]
    scope, facts = "federation", "Federation's facts"
    if value_of(summary[scope], "score") is None:
        scope, facts = "own", "Own facts"
    score, before = value_of(summary[scope], "score"), value_of(summary["before"][scope], "score")
    if score is None:
        return "No result"
    if before is None:
        return f"{facts}: score {share(score)}"
    return f"{facts}: score {share(score)}, {_direction(before, score)} {share(before)}"


def _direction(before: float, after: float) -> str:
    if share(before) == share(after):
        return "as before,"
    return "up from" if after > before else "down from"


def _setting(value: Any) -> str:
    """A configuration value as it is written in TOML, strings without their quotes."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _status(results: dict[str, Any]) -> str:
    failed = len({failure["node"] for failure in results["failed_nodes"]})
    text = "Completed" if results["status"] == "completed" else "Failed"
    return f"{text}, {plural(failed, 'node')} failed" if failed else text


def _status_class(results: dict[str, Any]) -> str:
    if results["status"] != "completed":
        return "bad"
    return "mixed" if results["failed_nodes"] else "good"


def _lead(results: dict[str, Any], totals: dict[str, Any]) -> str:
    """The run in a few sentences."""
    model, editor, strategy = results["model"]["name"], results["editor"], results["strategy"]
    slots = len(results["slots"])
    if slots == 0:
        sentences = [
            f"The run with strategy {strategy} and editor {editor} on {model} ended after "
            f"{duration(results['seconds']['total'])} before any slot was complete."
        ]
    else:
        nodes = len({name for slot in results["slots"] for name in slot["nodes"]})
        sentences = [
            f"In {plural(slots, 'slot')}, {plural(nodes, 'node')} corrected "
            f"{plural(totals['requests'], 'fact')} in {model} with strategy {strategy} and editor "
            f"{editor}.",
            *_score_sentences(results["summary"]),
            *_exchange_sentences(totals),
        ]
    failed = sorted({failure["node"] for failure in results["failed_nodes"]})
    if failed:
        shown = failed if len(failed) <= 4 else [*failed[:3], f"{len(failed) - 3} more"]
        sentences.append(f"{plural(len(failed), 'node')} failed: {listing(shown)}.")
    return " ".join(sentences)


def _score_sentences(summary: dict[str, Any]) -> list[str]:
    sentences = []
    subjects = {
        "own": "The score on the nodes' own facts",
        "federation": "The score on all facts of the federation, asked of every node,",
    }
    for scope, subject in subjects.items():
        score = value_of(summary[scope], "score")
        before = value_of(summary["before"][scope], "score")
        if score is not None and before is not None:
            sentences.append(f"{subject} went from {share(before)} to {share(score)}.")
        elif score is not None:
            sentences.append(f"{subject} is {share(score)}.")
    return [*sentences, "A score of 1 is the best possible."] if sentences else []


def _exchange_sentences(totals: dict[str, Any]) -> list[str]:
    sentences = []
    if totals["reused"]:
        saved = percent(totals["reused"] / totals["requests"])
        sentences.append(
            f"{plural(totals['reused'], 'request')} ({saved}) needed no computation, because "
            "another node had already done it."
        )
    if totals["offered"]:
        sentences.append(
            f"Nodes accepted {totals['accepted']:,} of {plural(totals['offered'], 'vector')} "
            f"offered to them, with {plural(totals['conflicts'], 'conflict')}."
        )
    return sentences


def _tiles(results: dict[str, Any], totals: dict[str, Any]) -> list[dict[str, str]]:
    summary = results["summary"]
    tiles = []
    for scope, label in (("own", "Own score"), ("federation", "Federation score")):
        before = value_of(summary["before"][scope], "score")
        detail = "not measured before" if before is None else f"{share(before)} before the run"
        if summary[scope] is None:
            detail = "not measured"
        tiles.append(_tile(label, share(value_of(summary[scope], "score")), detail))
    cached = sum(slot.get("cached", 0) for slot in results["slots"])
    reused = f"{totals['optimised'] - cached:,} computed, {totals['reused']:,} reused"
    reused += f", {cached:,} from the work-cache" if cached else ""
    tiles.append(_tile("Edit requests", f"{totals['requests']:,}", reused))
    accepted = f"of {totals['offered']:,} offered, {plural(totals['conflicts'], 'conflict')}"
    tiles.append(_tile("MKVs accepted", f"{totals['accepted']:,}", accepted))
    traffic = totals["bytes_up"] + totals["bytes_down"]
    sent = f"{byte_size(totals['bytes_up'])} up, {byte_size(totals['bytes_down'])} down"
    tiles.append(_tile("Traffic", byte_size(traffic), sent))
    time = duration(results["seconds"]["total"])
    tiles.append(_tile("Time", time, f"{plural(len(results['slots']), 'slot')} completed"))
    return tiles


def _tile(label: str, value: str, detail: str) -> dict[str, str]:
    return {"label": label, "value": value, "detail": detail}


def _times(results: dict[str, Any]) -> str:
    seconds = results["seconds"]
    return (
        f"{duration(seconds['total'])} in all: greeting the nodes {duration(seconds['hello'])}, "
        f"measuring before {duration(seconds['before'])}, slots {duration(seconds['slots'])}"
    )


def _rejections(results: dict[str, Any]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for slot in results["slots"]:
        for node in slot["nodes"].values():
            for reason, count in node["rejections"].items():
                counts[reason] = counts.get(reason, 0) + count
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
