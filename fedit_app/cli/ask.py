"""`fedit ask`: what a node's model says before and after the node's edits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedit_app.cli.places import Place, find_place
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.ledger import read_index
from fedit_app.models.answers import Comparison, answer
from fedit_app.support.errors import FedEditError

_OWN_FACTS = 3


def ask(folder: Path, node: str, federation: str, prompt: str | None) -> str:
    """Ask a node's model.

    Args:
        folder: see `find_place`.
        node: see `find_place`; "central" for the ledger of the strategy `central`.
        federation: see `find_place`.
        prompt: the question; None asks some of the node's own facts.

    Returns:
        Text with the answers before and after the edits, side by side.

    Raises:
        FedEditError: no such ledger, or the node's facts cannot be read.
    """
    place = find_place(folder, node, federation)
    index = read_index(place.ledger)
    prompts = [prompt] if prompt else [request.text for request in _own(place, index)]
    ledger = place.open()
    bench = place.workbench(ledger)
    before = [answer(bench.model, text) for text in prompts]
    with bench.edited(ledger) as model:
        after = [answer(model, text) for text in prompts]
    head = f"node {place.node}: {len(ledger)} MKVs in its ledger, model {bench.model.name}\n"
    shown = zip(prompts, before, after, strict=True)
    return head + "".join(f"\n{Comparison(*row)}\n" for row in shown)


def _own(place: Place, index: Mapping[str, Any]) -> list[EditRequest]:
    """Some requests of the node that its ledger fulfils."""
    fulfilled = {id_ for row in index["entries"] for id_ in row["requests"]}
    data = place.data()
    if data is None:
        raise FedEditError(f"node {place.node}: its requests are not known here; say what to ask")
    return [request for request in data.read() if request.id in fulfilled][:_OWN_FACTS]
