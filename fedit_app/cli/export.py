"""`fedit export`: a node's edited model, written for other software."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedit_app.cli.options import Federation, Node, Place
from fedit_app.cli.output import Format, Part, write
from fedit_app.support.formats import plural


class Form(StrEnum):
    """What an export is written as."""

    HF = "hf"
    LORA = "lora"
    DELTA = "delta"


def export(
    place: Place,
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="hf: a folder for transformers; lora: an adapter for PEFT; delta: the changes "
            "alone.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")],
    node: Node = "",
    federation: Federation = "",
    rank: Annotated[
        int | None,
        typer.Option(metavar="R", help="lora: truncate to this rank; default: exact."),
    ] = None,
) -> None:
    """Write a node's edited model for other software."""
    from fedit_app.cli.places import find_place
    from fedit_app.ledger.export import check_export, check_space, write_export
    from fedit_app.models.checkpoint import stored_dtype
    from fedit_app.models.loading import resolve_model

    check_export(form.value, output, rank)
    found = find_place(place, node, federation)
    if found.config is not None:
        check_space(form.value, output, found.config.model)
    ledger = found.open()
    bench = found.workbench(ledger)
    dtype = stored_dtype(resolve_model(bench.model.name))
    adapter = write_export(bench, ledger, form.value, output, rank, dtype)
    parts: dict[str, Part] = {"said": f"{output}: {plural(len(ledger), 'MKV')} as {form.value}"}
    if adapter is not None:
        parts |= {"rank": adapter.described, "errors": adapter.error_table()}
        parts |= {"served": adapter.served} if adapter.served else {}
    write(parts, Format.AUTO)
