"""`fedit chat`: a conversation with a node's model, before and after the node's edits."""

from __future__ import annotations

from fedit_app.cli import options
from fedit_app.cli.output import say
from fedit_app.support.formats import plural, printable


def chat(
    place: options.Place, node: options.Node = "", federation: options.Federation = ""
) -> None:
    """Talk with a node's chat model: what it answers before and after its edits, side by side.

    Either model remembers what it has said itself. An empty line ends the conversation.
    """
    from fedit_app.cli.places import find_place
    from fedit_app.models.answers import Comparison, reply

    found = find_place(place, node, federation)
    ledger = found.open()
    bench = found.workbench(ledger)
    say(f"{plural(len(ledger), 'MKV')} in the ledger, model {bench.model.name}; end: empty line")
    turns: tuple[list[str], list[str]] = ([], [])
    with bench.edited(ledger) as model:
        while line := _line():
            for said in turns:
                said.append(line)
            with model.unedited():
                before = reply(model, turns[0])
            answers = Comparison(line, before, reply(model, turns[1]))
            for said, one in zip(turns, (answers.before, answers.after), strict=True):
                said.append(one.text)
            say("\n".join(map(printable, answers.texts())))


def _line() -> str:
    """What the user says next; empty at the end."""
    import click
    import typer

    try:
        return str(typer.prompt("you", default="", show_default=False)).strip()
    except click.Abort:
        return ""
