"""`fedit rollback`: taking MKVs out of a ledger, exactly, or letting them come back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedit_app.cli.ledger import metrics_table
from fedit_app.cli.options import DryRun, Federation, Node, Place, only_id
from fedit_app.cli.output import Format, FormatOption, Part, say, write
from fedit_app.support.errors import FedEditError
from fedit_app.support.formats import listing, plural, printable, typed
from fedit_app.support.tables import Table

if TYPE_CHECKING:
    from fedit_app.cli import places
    from fedit_app.facts.request import EditRequest
    from fedit_app.ledger.ledger import Ledger
    from fedit_app.ledger.rollback import Rollback


def rollback(
    place: Place,
    node: Node = "",
    federation: Federation = "",
    mkv: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="This MKV, by the beginning of its id; may be repeated."),
    ] = None,
    origin: Annotated[
        str | None, typer.Option("--from", metavar="NODE", help="All that NODE computed.")
    ] = None,
    after: Annotated[
        int | None, typer.Option(metavar="SLOT", help="All that were accepted in a later slot.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="Let an MKV that was taken out come back; may be repeated."
        ),
    ] = None,
    dry_run: DryRun = False,
    no_metrics: Annotated[
        bool, typer.Option("--no-metrics", help="Do not measure the model before and after.")
    ] = False,
    form: FormatOption = Format.AUTO,
) -> None:
    """Take MKVs out of an edited model or a node's ledger, exactly; they do not come back."""
    from fedit_app.cli.places import find_place
    from fedit_app.config.run_config import RunConfig
    from fedit_app.ledger.edited_model import form_of
    from fedit_app.ledger.export import check_space
    from fedit_app.ledger.rollback import plan_rollback, roll_back

    if sum(bool(way) for way in (mkv, origin, after is not None, allow)) != 1:
        raise FedEditError("rollback: give exactly one of --mkv, --from, --after and --allow")
    found = find_place(place, node, federation)
    ledger = found.open()
    if allow:
        _allow(found, allow, dry_run)
        return
    ids = _chosen(ledger, mkv or (), origin, after)
    config = found.config or RunConfig()
    if found.model and found.config and not dry_run:
        check_space(form_of(found.model), found.model, config.model)
    plan = plan_rollback(ledger, ids, config, found.node)
    parts = _changes(ledger, plan, found)
    if not no_metrics:
        parts["metrics"] = _metrics(found, ledger, plan.after)
    if dry_run:
        parts["end"] = "dry run: nothing was changed"
    else:
        with found.changed() as changing:
            roll_back(changing, ids, config, found.node)
        parts["end"] = {"head of the journal": changing.head}
    write(parts, form)


def _chosen(
    ledger: Ledger, beginnings: Sequence[str], origin: str | None, after: int | None
) -> list[str]:
    """Ids of the MKVs that the user means.

    Raises:
        FedEditError: there are none.
    """
    entries = ledger.entries
    if beginnings:
        for beginning in beginnings:
            _require_held(ledger, beginning)
        return sorted({only_id(entries, beginning, "ledger") for beginning in beginnings})
    if after is None:
        found = [id_ for id_, entry in entries.items() if entry.mkv.node == origin]
        known = sorted({entry.mkv.node for entry in entries.values()})
        have = f"it has MKVs of {', '.join(map(printable, known)) or 'nobody'}"
        what = f"--from {origin}"
    else:
        found = [id_ for id_, entry in entries.items() if entry.slot > after]
        last = max((entry.slot for entry in entries.values()), default=0)
        what, have = f"--after {after}", f"its last slot is {last}"
    if not found:
        raise FedEditError(f"{what}: no such MKV in the ledger; {have}")
    return sorted(found)


def _require_held(ledger: Ledger, beginning: str) -> None:
    """Check that the user does not mean an MKV that was taken out before.

    Raises:
        FedEditError: the user does.
    """
    gone = [id_ for id_ in ledger.refused if id_.startswith(beginning)]
    if beginning and gone and not any(id_.startswith(beginning) for id_ in ledger.entries):
        raise FedEditError(
            f"--mkv {beginning}: was taken out already; --allow {beginning} lets it come back"
        )


def _again(folder: Path) -> str:
    return f"`fedit edit {typed(folder)} FILE` learns their facts again, from the texts in FILE."


def _changes(before: Ledger, plan: Rollback, place: places.Place) -> dict[str, Part]:
    rows = [(before.entries[i].slot, before.entries[i].mkv.node, i) for i in plan.removed]
    lines = []
    one = len(rows) == 1
    if place.model is None:
        none = "It is not" if one else "None of them is"
        lines.append(f"{none} accepted again, until `fedit rollback --allow ID`.")
    if plan.restored:
        hold = "holds" if len(plan.restored) == 1 else "hold"
        it = "It" if one else "They"
        lines.append(f"{it} overruled {listing(plan.restored)}, which {hold} again.")
    if place.model is None:
        lines += _for_a_node(plan, place.node)
    else:
        shown = ", ".join(map(printable, [*plan.set_aside, *plan.reopened]))
        lines += [f"Facts that are no longer in the model: {shown or 'none'}", _again(place.model)]
        if plan.returned:
            back = ", ".join(map(printable, plan.returned))
            lines.append(f"Facts that the model says as before: {back}")
    return {
        "count": f"{len(rows):,} of {plural(len(before.entries), 'MKV')} taken out; "
        f"{len(before):,} held before, {len(plan.after):,} hold now",
        "removed": Table(("slot", "origin", "id"), sorted(rows), code=("id",)),
        "consequences": "\n".join(lines),
    }


def _for_a_node(plan: Rollback, node: str) -> list[str]:
    """What a rollback means to a node of a federation."""
    lines = []
    if plan.withdrawn:
        lines.append(
            f"{plural(len(plan.withdrawn), 'MKV')} of this node's own: withdrawn. The other nodes "
            "take them out in the next run in which this node takes part, and that run's pool is "
            "cleared of them.\n"
            "The pools of earlier runs, if they are others, keep them until the server's operator "
            f"takes each out: fedit pool prune RUN --node {typed(node)} --id ID"
        )
    if plan.set_aside:
        shown = ", ".join(map(printable, plan.set_aside))
        lines.append(f"Own requests that stay unfulfilled (take them out of the data): {shown}")
    if plan.reopened:
        shown = ", ".join(map(printable, plan.reopened))
        lines.append(f"Own requests that the next run fulfils again: {shown}")
    return lines


def _metrics(place: places.Place, before: Ledger, after: Ledger) -> Part:
    """Metrics of both models on all that the node has to measure with, or why there are none."""
    from fedit_app.evaluation.metrics import aggregate
    from fedit_app.evaluation.scores import score_requests

    try:
        asked = _questions(place)
        if not asked:
            return "Metrics: not measured, as this node's requests and probes are not known here."
        bench = place.workbench(before)

        def measured(ledger: Ledger) -> dict[str, dict[str, Any]]:
            with bench.edited(ledger) as model:
                scores = {w: aggregate(score_requests(model, found)) for w, found in asked.items()}
            return {what: metrics.model_dump() for what, metrics in scores.items() if metrics}

        old, new = measured(before), measured(after)
    except FedEditError as error:
        return f"Metrics: not measured ({error})."
    return metrics_table([(what, old[what], new[what]) for what in asked])


def _questions(place: places.Place) -> dict[str, list[EditRequest]]:
    from fedit_app.facts.jsonl import read_requests

    data = place.data()
    found = {
        "own requests": data.read() if data else [],
        "probes": read_requests(Path(place.probes)) if place.probes else [],
    }
    return {what: requests for what, requests in found.items() if requests}


def _allow(place: places.Place, beginnings: Sequence[str], dry_run: bool) -> None:
    """Take the refusal of MKVs back."""
    from fedit_app.ledger.rollback import allow_again

    ledger = place.open()
    ids = sorted({only_id(ledger.refused, beginning, "ledger") for beginning in beginnings})
    own = [id_ for id_ in ids if ledger.refused[id_].withdrawn]
    lines = [f"{plural(len(ids), 'MKV')} may be accepted again: {', '.join(ids)}"]
    if place.model is not None:
        lines.append(_again(place.model))
    elif len(own) < len(ids):
        lines.append("Those of other nodes come with the next run that serves them.")
    if own and place.model is None:
        lines.append("Those of this node are computed and uploaded again for their requests.")
    if dry_run:
        lines.append("dry run: nothing was changed")
    else:
        with place.changed() as changing:
            allow_again(changing, ids)
    say("\n".join(lines))
