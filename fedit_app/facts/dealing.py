"""Dealing one data set out to nodes, and a node's requests to time slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedit_app.facts.overlap import Slots
from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError

Dealt = dict[str, list[EditRequest]]
"""Node -> its requests, in the order of the nodes."""


def node_names(count: int, stem: str = "node") -> list[str]:
    """Names of nodes that sort in their order: node-1, ..., or node-01, ... for ten and more."""
    width = len(str(count))
    return [f"{stem}-{number:0{width}d}" for number in range(1, count + 1)]


def deal_at_random(requests: Sequence[EditRequest], count: int, seed: int) -> Dealt:
    """Equal parts of the shuffled requests.

    Args:
        requests: all requests.
        count: number of nodes.
        seed: seed of the shuffle.

    Raises:
        FedEditError: there are fewer requests than nodes.
    """
    require_enough(requests, count)
    order = np.random.default_rng(seed).permutation(len(requests))
    parts = np.array_split(order, count)
    return {
        name: [requests[number] for number in part]
        for name, part in zip(node_names(count), parts, strict=True)
    }


def deal_by_relation(requests: Sequence[EditRequest], count: int) -> Dealt:
    """A relation a node, the most frequent first, as in FLEKE (arXiv 2502.15677).

    Args:
        requests: all requests, each with a relation.
        count: number of nodes; they are named after their relations.

    Raises:
        FedEditError: there are fewer relations than nodes.
    """
    sizes = Counter(request.relation for request in requests if request.relation)
    if len(sizes) < count:
        raise FedEditError(
            f"partition = relation: the data has {len(sizes)} relations, too few for {count} "
            "nodes; use fewer nodes, or another partition"
        )
    names = sorted(sizes, key=lambda relation: (-sizes[relation], relation))[:count]
    dealt: Dealt = {name: [] for name in names}
    for request in requests:
        if request.relation in dealt:
            dealt[request.relation].append(request)
    return dealt


def deal_by_cluster(requests: Sequence[EditRequest], labels: Sequence[int]) -> Dealt:
    """A cluster a node, the largest first, as in FLEKE on zsRE.

    Args:
        requests: all requests.
        labels: the cluster of each.
    """
    sizes = Counter(labels)
    order = sorted(sizes, key=lambda label: (-sizes[label], labels.index(label)))
    return {
        name: [request for request, of in zip(requests, labels, strict=True) if of == label]
        for name, label in zip(node_names(len(order), "cluster"), order, strict=True)
    }


def deal_by_dirichlet(
    requests: Sequence[EditRequest],
    groups: Sequence[str | int],
    count: int,
    alpha: float,
    seed: int,
) -> Dealt:
    """Equally many requests a node, each node with a mixture of groups of its own.

    As in Hsu et al. (arXiv 1909.06335): a node's mixture is q ~ Dirichlet(alpha p), p the shares of
    the groups in the data; the nodes draw from it in turns, without replacement. A node whose
    groups are used up draws from what is left.

    Args:
        requests: all requests.
        groups: the group of each.
        count: number of nodes.
        alpha: concentration; the smaller, the fewer groups a node has.
        seed: seed of the mixtures and draws.

    Raises:
        FedEditError: there are fewer requests than nodes.
    """
    require_enough(requests, count)
    generator = np.random.default_rng(seed)
    kinds, of, left = np.unique(np.array(groups), return_inverse=True, return_counts=True)
    waiting = [
        list(generator.permutation(np.flatnonzero(of == kind))) for kind in range(len(kinds))
    ]
    mixtures = generator.dirichlet(alpha * left / len(requests), size=count)
    dealt: Dealt = {name: [] for name in node_names(count)}
    for _ in range(len(requests) // count):
        for mixture, part in zip(mixtures, dealt.values(), strict=True):
            weights = np.where(left > 0, mixture, 0)
            weights = weights if weights.sum() > 0 else left
            kind = generator.choice(len(kinds), p=weights / weights.sum())
            left[kind] -= 1
            part.append(requests[waiting[kind].pop()])
    return dealt


def require_enough(requests: Sequence[EditRequest], count: int) -> None:
    """Check that every node can have a request.

    Raises:
        FedEditError: there are fewer requests than nodes.
    """
    if len(requests) < count:
        raise FedEditError(
            f"{len(requests)} requests cannot be dealt out to {count} nodes; use fewer nodes"
        )


def by_slot(requests: Sequence[EditRequest], num_slots: int, per_slot: int | None) -> Slots:
    """Deal a node's requests out to the time slots.

    Args:
        requests: the node's requests in their order.
        num_slots: number of time slots.
        per_slot: so many of them per slot in that order; with None each in the slot that it names,
            and in the first without one.

    Returns:
        One list per slot; what lies behind the last slot is left out.
    """
    if per_slot is not None:
        slots = [number // per_slot for number in range(len(requests))]
    else:
        slots = [(request.slot or 1) - 1 for request in requests]
    dealt: Slots = [[] for _ in range(num_slots)]
    for request, slot in zip(requests, slots, strict=True):
        if slot < num_slots:
            dealt[slot].append(request)
    return dealt
