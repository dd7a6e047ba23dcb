"""Facts that several nodes edit: copies of a node's requests, given to other nodes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from fedit_app.facts.request import SLOT, EditRequest
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

Slots = list[list[EditRequest]]
"""A node's requests, one list per time slot."""

T = TypeVar("T")


@dataclass(frozen=True)
class Overlap:
    """The overlap of the nodes' facts.

    Attributes:
        share: share of each node's facts that are also given to others, 0 to 1.
        clients: number of other nodes that receive each of them.
        form: "verbatim", or "paraphrase": one of the request's paraphrase prompts becomes the
            copy's prompt, and its prompt one of the copy's paraphrases.
        slot: "same" slot as the original, or a "later" one.
        conflicts: share of the copies with another target than the original, 0 to 1.
    """

    share: float
    clients: int = 1
    form: Literal["verbatim", "paraphrase"] = "verbatim"
    slot: Literal["same", "later"] = "same"
    conflicts: float = 0.0


@dataclass(frozen=True)
class Copy:
    """A request that a node receives from another node.

    Attributes:
        id: the copy's id, ORIGINAL~OWNER.
        original: id of the original at its owner.
        owner: the node that has the original.
        node: the node that has the copy.
        original_slot: time slot of the original, from 1.
        slot: time slot of the copy.
        conflict: whether the copy has another target.
    """

    id: str
    original: str
    owner: str
    node: str
    original_slot: int
    slot: int
    conflict: bool = False


def with_overlap(
    nodes: Mapping[str, Slots], overlap: Overlap, seed: int
) -> tuple[dict[str, Slots], list[Copy]]:
    """Give a share of every node's facts to other nodes as well.

    Copies are appended to a node's own requests of their slot. The draw is from the facts that can
    be copied: with "later", those before the last slot; with "paraphrase", those with a paraphrase
    prompt that contains the subject once. A node never receives a text that it already has. A
    conflicting target is that of another request of the same relation, or, without a relation, of
    another request of the owner; never the true target.

    Args:
        nodes: node -> its requests per slot, the same number of slots for each.
        overlap: how much is copied.
        seed: seed of all draws; the order of `nodes` does not matter.

    Returns:
        node -> its own requests and its copies per slot; and the origin of each copy.

    Raises:
        FedEditError: there are too few nodes, no fact can be copied, or a copy's id is taken.
    """
    if not overlap.share:
        return dict(nodes), []
    require_others(overlap, len(nodes))
    names = sorted(nodes)
    held = {name: {r.text for slot in nodes[name] for r in slot} for name in names}
    made: list[tuple[Copy, EditRequest]] = []
    for number, owner in enumerate(names):
        generator = np.random.default_rng([seed, number])
        for slot, request in _given(owner, nodes[owner], overlap, generator):
            takers = [name for name in names if request.text not in held[name]]
            for taker in _draw(takers, overlap.clients, generator):
                later = overlap.slot == "later"
                at = int(generator.integers(slot + 1, len(nodes[owner]) + 1)) if later else slot
                copy = Copy(f"{request.id}~{owner}", request.id, owner, taker, slot, at)
                made.append((copy, _copied(request, copy, overlap, generator)))
                held[taker].add(request.text)
    if not made:
        raise FedEditError(
            f"overlap = {overlap.share:g}: no node has a fact that can be copied to another node; "
            "overlap-slot = later needs num-slots = 2 or more, overlap-form = paraphrase needs "
            "paraphrase prompts that contain the subject"
        )
    generator = np.random.default_rng([seed, len(names)])
    made = _with_conflicts(made, nodes, overlap.conflicts, generator)
    return _added(nodes, made), [copy for copy, _ in made]


def require_others(overlap: Overlap, count: int) -> None:
    """Raise FedEditError if there are too few nodes (`count`) for an overlap."""
    if overlap.share and overlap.clients >= count:
        raise FedEditError(
            f"overlap-clients = {overlap.clients} is too large for {count} nodes; it must be at "
            f"most {count - 1}"
        )


def _given(
    owner: str, slots: Slots, overlap: Overlap, generator: np.random.Generator
) -> list[tuple[int, EditRequest]]:
    """The facts that a node shares with others, with their slots."""
    own = [(slot, request) for slot, requests in enumerate(slots, 1) for request in requests]
    able = [
        (slot, request)
        for slot, request in own
        if (overlap.slot == "same" or slot < len(slots))
        and (overlap.form == "verbatim" or paraphrase_templates(request))
    ]
    wanted = _part(overlap.share, len(own))
    if wanted > len(able):
        logger.warning(
            "overlap: node %s should share %d of its %d facts, but only %d can be copied",
            owner,
            wanted,
            len(own),
            len(able),
        )
    return _draw(able, wanted, generator)


def _copied(
    request: EditRequest, copy: Copy, overlap: Overlap, generator: np.random.Generator
) -> EditRequest:
    copied = dataclasses.replace(request, id=copy.id, slot=copy.slot)
    if overlap.form != "paraphrase":
        return copied
    (paraphrase,) = _draw(sorted(paraphrase_templates(request)), 1, generator)
    others = [prompt for prompt in request.paraphrase_prompts if prompt != paraphrase]
    return dataclasses.replace(
        copied,
        prompt=paraphrase_templates(request)[paraphrase],
        paraphrase_prompts=(request.text, *others),
    )


def paraphrase_templates(request: EditRequest) -> dict[str, str]:
    """Paraphrase prompts that can be edited -> the same with `{}` for the subject."""
    return {
        prompt: prompt.replace(request.subject, SLOT).rstrip()
        for prompt in request.paraphrase_prompts
        if prompt.count(request.subject) == 1 and SLOT not in prompt
    }


def _with_conflicts(
    made: Sequence[tuple[Copy, EditRequest]],
    nodes: Mapping[str, Slots],
    share: float,
    generator: np.random.Generator,
) -> list[tuple[Copy, EditRequest]]:
    """A share of the copies with the target of another request."""
    targets: dict[str | tuple[str], set[str]] = {}
    for name, slots in nodes.items():
        for request in (request for slot in slots for request in slot):
            targets.setdefault(request.relation or (name,), set()).add(request.target_new)

    def others(copy: Copy, request: EditRequest) -> list[str]:
        known = targets[request.relation or (copy.owner,)]
        return sorted(known - {request.target_new, request.target_true})

    able = [number for number, pair in enumerate(made) if others(*pair)]
    changed = list(made)
    for number in _draw(able, _part(share, len(made)), generator):
        copy, request = made[number]
        (target,) = _draw(others(copy, request), 1, generator)
        changed[number] = (
            dataclasses.replace(copy, conflict=True),
            dataclasses.replace(request, target_new=target),
        )
    return changed


def _added(
    nodes: Mapping[str, Slots], made: Sequence[tuple[Copy, EditRequest]]
) -> dict[str, Slots]:
    added = {name: [list(requests) for requests in slots] for name, slots in nodes.items()}
    taken = {name: {r.id for slot in slots for r in slot} for name, slots in nodes.items()}
    for copy, request in made:
        if copy.id in taken[copy.node]:
            raise FedEditError(
                f"overlap: a request of node {copy.node} has the id of a copy from node "
                f"{copy.owner}; ids must not end in ~NODE"
            )
        taken[copy.node].add(copy.id)
        added[copy.node][copy.slot - 1].append(request)
    return added


def _draw(items: Sequence[T], count: int, generator: np.random.Generator) -> list[T]:
    """A random choice of `count` items, or all if there are fewer, in their order."""
    chosen = generator.choice(len(items), min(count, len(items)), replace=False)
    return [items[number] for number in sorted(chosen)]


def _part(share: float, count: int) -> int:
    """A share of a count, rounded to a whole number, halves up."""
    return int(share * count + 0.5)
