"""What counts for whom when a node's model is asked for the whole federation's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedit_app.editing.requests import EditRequest


def facts_for(
    node: str, requests_by_node: Mapping[str, Sequence[EditRequest]]
) -> list[EditRequest]:
    """The federation's facts as they count at one node, each once.

    A fact (subject and prompt) that nodes want with different targets counts at its owners only,
    there with their own target.

    Args:
        node: the node that is evaluated.
        requests_by_node: name -> the requests of every node.

    Returns:
        The node's own requests first, then the others' in the order of names.
    """
    wanted: dict[tuple[str, str], set[str]] = {}
    for requests in requests_by_node.values():
        for request in requests:
            wanted.setdefault((request.subject, request.prompt), set()).add(request.target_new)
    facts: dict[tuple[str, str], EditRequest] = {}
    for name in [node, *sorted(set(requests_by_node) - {node})]:
        for request in requests_by_node.get(name, ()):
            fact = (request.subject, request.prompt)
            if name == node or len(wanted[fact]) == 1:
                facts.setdefault(fact, request)
    return list(facts.values())
