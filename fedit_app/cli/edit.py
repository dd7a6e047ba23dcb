"""`fedit edit`: facts into one model, without a federation."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedit_app.cli.export import Form
from fedit_app.cli.ledger import metrics_table
from fedit_app.cli.options import ConfigFile, DryRun, Overrides, run_config
from fedit_app.cli.output import Format, Part, write
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import byte_size, duration, listing, plural, share, typed
from fedit_app.support.tables import Table

if TYPE_CHECKING:
    from fedit_app.facts.request import EditRequest
    from fedit_app.ledger.edit_report import Measured
    from fedit_app.ledger.editor import Editor
    from fedit_app.protocol.metrics import Neutral

_MOST_ROWS = 20


def edit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="smollm2-135m, a folder, a hub id, or an edited model's folder."
        ),
    ],
    requests: Annotated[
        str | None,
        typer.Argument(metavar="REQUESTS", help="File of edit requests, or hub:DATASET."),
    ] = None,
    fact: Annotated[
        tuple[str, str, str] | None,
        typer.Option(
            metavar="SUBJECT PROMPT TARGET", help="One fact; {} in the prompt is the subject."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to make; default: an edited MODEL itself."),
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option(
            "--format",
            help="hf: a folder for transformers (default); lora: an adapter for PEFT; delta.",
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(metavar="R", help="lora: truncate to this rank; default: exact.")
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(
            help="Format of the file: jsonl (also CSV), counterfact, zsre, knowedit, rippleedits, "
            "mquake, wikibigedit or qaedit."
        ),
    ] = "jsonl",
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out invalid requests, and say which these are."),
    ] = False,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            metavar="TASKS",
            help="Tasks of the lm-evaluation-harness, such as hellaswag,arc_easy, before and "
            "after; needs the extra lm-eval.",
        ),
    ] = None,
    lm_eval_limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Examples of each of these tasks.")
    ] = None,
    preset: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Edit facts into one model, and write it."""
    from fedit_app.evaluation.harness import require_harness
    from fedit_app.ledger.edited_model import form_of, ledger_in
    from fedit_app.ledger.editor import Editor
    from fedit_app.ledger.export import check_export, check_space
    from fedit_app.ledger.one_call import output_of
    from fedit_app.ledger.request_texts import check_new

    folder = Path(model).expanduser() if dry_run else output_of(model, output)
    written = form.value if form else "hf" if output or dry_run else form_of(folder)
    check_export(written, output, rank)
    if lm_eval:
        require_harness()
    settings = run_config(preset, overrides)
    if skip_bad:
        settings["on-bad-request"] = "skip"
    skip_bad = settings.get("on-bad-request") == "skip"
    asked = _requests(requests, fact, dataset, skip_bad)
    known = ledger_in(Path(model).expanduser())
    if known is not None and fact is None:
        check_new(known, asked)
    if "model" in settings:
        raise FedEditError("edit: the model is the first argument; leave -c model out")
    method = str(settings.pop("editor", "")) or None
    given = {key.replace("-", "_"): value for key, value in settings.items()}
    editor = Editor.from_pretrained(model, method, ledger=None, node=None, **given)
    if fact is not None:
        asked = [_named(editor, request) for request in asked]
    if dry_run:
        write(_plan(editor, editor.check(asked)), Format.AUTO)
        return
    check_space(written, folder, editor.bench.model.name)
    report = editor.edit(asked)
    asked = [edited.request for edited in report.facts]
    measured = editor.measure()
    editor.save_pretrained(folder, written, rank, replace=output is None)
    table = report.table()
    shown = Table(table.columns, table.rows[:_MOST_ROWS])
    parts: dict[str, Part] = {"said": report.said + _sharing(editor, asked), "facts": shown}
    if len(asked) > _MOST_ROWS:
        parts["more"] = f"... and {plural(len(asked) - _MOST_ROWS, 'fact')} more"
    parts |= _metrics(measured)
    if lm_eval:
        parts["ability"] = _ability(editor, lm_eval.split(","), lm_eval_limit)
    parts["end"] = (
        f"{folder}: the edited model, as {written}; {plural(len(editor.requests), 'fact')} in "
        f"its ledger. {folder}/ledger holds the requests' texts: hand the model on without it.\n"
        f"Ask it: fedit ask {typed(folder)}"
    )
    write(parts, Format.AUTO)


def _requests(
    source: str | None, fact: tuple[str, str, str] | None, dataset: str, skip_bad: bool
) -> list[EditRequest]:
    """The requests of a file, or the one of the command line.

    Raises:
        FedEditError: neither or both are given, or one is invalid.
    """
    from fedit_app.facts.notices import Notices
    from fedit_app.facts.request import EditRequest
    from fedit_app.facts.sources import load_requests

    if (source is None) == (fact is None):
        raise FedEditError("edit: give a file of requests, or one --fact SUBJECT PROMPT TARGET")
    if source is not None:
        return load_requests(os.path.expanduser(source), dataset, skip_bad=skip_bad)
    assert fact is not None
    request = EditRequest("fact", *fact)
    notices = Notices("fact")
    notices.see(1, request)
    notices.log("--fact")
    return [request]


def _named(editor: Editor, request: EditRequest) -> EditRequest:
    """The fact of the command line, under an id that no other fact of the ledger has."""
    known = {one.id: one.fact for one in editor.requests}
    taken = editor.ledger.fulfilled().keys() - {
        id_ for id_, fact in known.items() if fact == request.fact
    }
    taken |= {id_ for ids in editor.texts.replaced_ids.values() for id_ in ids}
    names = (f"fact-{number}" for number in itertools.count(1))
    return dataclasses.replace(request, id=next(name for name in names if name not in taken))


def _sharing(editor: Editor, asked: Sequence[EditRequest]) -> str:
    """How many of the facts share an MKV, in words; empty without any."""
    fulfilled = editor.ledger.fulfilled()
    shared = [
        request
        for request in asked
        if len(editor.ledger.entries[fulfilled[request.id]].requests) > 1
    ]
    return f"; {len(shared)} of them with a key that other facts have" if shared else ""


def _metrics(measured: Measured) -> dict[str, Part]:
    before, after = measured.before, measured.after
    return {
        "metrics": metrics_table(
            [("all facts of the ledger", before.model_dump(), after.model_dump())]
        ),
        "neutral": _neutral(measured.neutral),
    }


def _ability(editor: Editor, tasks: Sequence[str], limit: int | None) -> Table:
    """What the harness measures before and after."""
    from fedit_app.evaluation.harness import ability, ability_table

    before = ability(editor.bench.model, tasks, limit)
    with editor.bench.edited(editor.ledger) as model:
        return ability_table(before, ability(model, tasks, limit))


def _neutral(found: Neutral) -> dict[str, str | int]:
    return {
        "ordinary text": f"perplexity {found.perplexity_before:.2f} -> "
        f"{found.perplexity_after:.2f}, KL {found.kl:z.4f} nats a token",
        "general knowledge": f"cloze {share(found.cloze_before)} -> {share(found.cloze_after)}",
    }


def _plan(editor: Editor, asked: Sequence[EditRequest]) -> dict[str, Part]:
    """What an edit would do, in words."""
    from fedit_app.ledger.edit_plan import memory_free, plan_edit

    known = editor.requests
    facts = {request.fact for request in known}
    new = [request for request in asked if request.fact not in facts]
    parts: dict[str, Part] = {}
    found: dict[str, str | int] = {
        "facts": len(asked),
        "already in the ledger": len(asked) - len(new),
    }
    if new:
        plan = plan_edit(editor.bench, new, known)
        device = editor.bench.model.device
        found |= {
            "keys": plan.keys,
            "facts that share a key": "; ".join(map(listing, plan.groups)) or "none",
            "values take about": duration(plan.seconds),
            "covariances, once for this model": f"about {duration(plan.covariance_seconds)}"
            if plan.covariance_seconds
            else "are in the cache",
            "memory": f"about {byte_size(plan.bytes_on_device)} on {device}, where "
            f"{byte_size(memory_free(device))} are free",
        }
    parts["plan"] = found
    parts["end"] = "dry run: nothing was changed"
    return parts
