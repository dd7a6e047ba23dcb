"""`fedit ask`: what a node's model says before and after the node's edits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedit_app.cli import options
from fedit_app.cli.output import Format, FormatOption, say, write, write_json
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import plural, printable
from fedit_app.support.tables import Cell, Figure, Table

if TYPE_CHECKING:
    from fedit_app.cli.places import Place
    from fedit_app.facts.request import EditRequest

logger = logging.getLogger(__name__)

_RESULTS = "results.json"
_OWN_FACTS = 3


def ask(
    place: options.Place,
    prompt: Annotated[
        str | None, typer.Argument(help="Default: some of the node's own facts.")
    ] = None,
    node: options.Node = "",
    federation: options.Federation = "",
    chat: Annotated[
        bool, typer.Option("--chat", help="Say the prompt to a chat model, as its user.")
    ] = False,
    worst: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Show the N own facts that it says worst."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="With --worst, of a run: its report with these facts, texts included.",
        ),
    ] = None,
    form: FormatOption = Format.AUTO,
) -> None:
    """Ask an edited model, or the one of a node, before and after its edits."""
    from fedit_app.cli.places import find_place
    from fedit_app.ledger.index import read_index
    from fedit_app.models.answers import Comparison, answer

    found = find_place(place, node, federation)
    if worst is not None:
        if prompt is not None or chat:
            raise FedEditError("--worst: asks the node's own facts; give it without PROMPT, --chat")
        if report is not None:
            _check_report(place, report)
        table = _write_worst(found, worst, form)
        if report is not None:
            _write_report(place, found.node, table, report)
        return
    if report is not None:
        raise FedEditError("--report: shows a node's own facts; give it with --worst N")
    prompts = [prompt] if prompt else _own_facts(found, read_index(found.ledger), chat)
    ledger = found.open()
    bench = found.workbench(ledger)
    before = [answer(bench.model, text, chat) for text in prompts]
    with bench.edited(ledger) as model:
        after = [answer(model, text, chat) for text in prompts]
    answers = [Comparison(*row) for row in zip(prompts, before, after, strict=True)]
    if form is Format.JSON:
        write_json({"node": found.node, "answers": [asdict(one) for one in answers]})
        return
    say(f"node {found.node}: {plural(len(ledger), 'MKV')} in its ledger, model {bench.model.name}")
    for one in answers:
        say("\n" + "\n".join(map(printable, str(one).splitlines())))


def _own_facts(place: Place, index: Mapping[str, Any], chat: bool) -> list[str]:
    """Some requests of the node that its ledger fulfils, as prompts or as a user asks them."""
    from fedit_app.facts.request import SLOT
    from fedit_app.models.chat import what_is_said

    own = _fulfilled(place, index, "give a prompt")[:_OWN_FACTS]
    if not chat:
        return [request.text for request in own]
    return [what_is_said(request).replace(SLOT, request.subject) for request in own]


def _fulfilled(place: Place, index: Mapping[str, Any], remedy: str) -> list[EditRequest]:
    """The requests of the node that its ledger fulfils."""
    fulfilled = {id_ for row in index["entries"] for id_ in row["requests"]}
    data = place.data()
    if data is None:
        raise FedEditError(f"node {place.node}: its requests are not known here; {remedy}")
    return [request for request in data.read() if request.id in fulfilled]


def _write_worst(place: Place, most: int, form: Format) -> Table:
    """Print the node's own facts that its edited model says worst; the table of them."""
    from fedit_app.evaluation.worst import worst_facts
    from fedit_app.ledger.index import read_index

    facts = _fulfilled(place, read_index(place.ledger), "--worst needs their texts")
    ledger = place.open()
    with place.workbench(ledger).edited(ledger) as model:
        found = worst_facts(model, facts, most)
    rows: list[list[Cell]] = [
        [
            *(one.fact.text, one.fact.target_new, " ".join(one.says.split())),
            *(Figure(one.correct), Figure(one.probability, digits=3)),
        ]
        for one in found
    ]
    columns = ["Fact", "Wanted", "Says now", "Share of tokens said", "Probability"]
    said = f"node {place.node}: the worst of {plural(len(facts), 'own fact')} in its ledger"
    table = Table(columns, rows)
    write({"note": said, "facts": table}, form)
    return table


def _check_report(run: Path, report: Path) -> None:
    """Refuse a place of no run, and a file among those of the run, which hold no texts."""
    if not (run / _RESULTS).is_file():
        raise FedEditError(f"--report: {run} has no {_RESULTS}; name the folder of a run")
    if report.absolute().resolve().is_relative_to(run.absolute().resolve()):
        raise FedEditError(
            f"--report: {report} is in the folder of the run, whose files hold no texts of "
            "requests; name a file outside of it"
        )


def _write_report(run: Path, node: str, facts: Table, report: Path) -> None:
    """Write the report of a run with a node's facts in it."""
    from fedit_app.report import WorstOf, load_results, render_report
    from fedit_app.support.files import write_file

    write_file(report, render_report(load_results(run / _RESULTS), WorstOf(node, facts)))
    logger.info("%s: the run's report, with texts of the requests of %s", report, node)
