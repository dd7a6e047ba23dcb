"""Partitions of a data set over nodes, and of a node's requests over time slots."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedit_app.facts.overlap import Slots
from fedit_app.facts.request import EditRequest
from fedit_app.support.errors import FedEditError

_EMBEDDED = 20
SIMILAR = 3
"""How many other relations count as similar to one."""

Dealt = dict[str, list[EditRequest]]
"""Node -> its requests, in the order of the nodes."""


def node_names(count: int, stem: str = "node") -> list[str]:
    """Names of nodes that sort in their order: node-1, ..., or node-01, ... for ten and more."""
    width = len(str(count))
    return [f"{stem}-{number:0{width}d}" for number in range(1, count + 1)]


def deal_at_random(requests: Sequence[EditRequest], count: int, seed: int) -> Dealt:
    """Split the shuffled requests into equal parts.

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
    """Give each node one relation, the most frequent first, as in FLEKE (arXiv 2502.15677).

    Args:
        requests: all requests, each with a relation.
        count: number of nodes, which are named after their relations.

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


def similar_relations(
    requests: Sequence[EditRequest], embed: Callable[[Sequence[str]], np.ndarray]
) -> dict[str, list[str]]:
    """Relation -> all others, the most similar first: by the cosine of their mean embeddings.

    Args:
        requests: all requests; the first 20 of each relation are embedded.
        embed: n texts -> (n, width).
    """
    by_relation: dict[str, list[str]] = {}
    for request in requests:
        texts = by_relation.setdefault(request.relation or "", [])
        if len(texts) < _EMBEDDED:
            texts.append(request.text)
    by_relation.pop("", None)
    names = sorted(by_relation)
    vectors = embed([text for name in names for text in by_relation[name]]).astype(np.float64)
    ends = np.cumsum([len(by_relation[name]) for name in names])[:-1]
    means = np.stack([part.mean(axis=0) for part in np.split(vectors, ends)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    order = np.argsort(-(means @ means.T), axis=1, kind="stable")
    return {name: [names[n] for n in order[i] if n != i] for i, name in enumerate(names)}


def with_similar(
    dealt: Dealt,
    requests: Sequence[EditRequest],
    similar: Mapping[str, Sequence[str]],
    share: float,
    per_slot: int,
    num_slots: int,
    seed: int,
) -> Dealt:
    """Put facts of similar relations among those of a relation, the same number in each slot.

    As the code of pFedSEdit samples a client's facts (github.com/zongkaiz/pFedSEdit): of the
    requests of a slot floor((1 - share) per_slot) are of the node's own relation, or as many as
    it has for every slot; the others are drawn from its `SIMILAR` most similar ones together. No
    fact is drawn twice for a node, where that code begins again once none is left.

    Args:
        dealt: relation -> its requests.
        requests: all requests.
        similar: relation -> the others, the most similar first.
        share: of each slot's requests.
        per_slot: requests of a slot.
        num_slots: number of slots.
        seed: of all draws.
    """
    generator = np.random.default_rng(seed)
    mixed: Dealt = {}
    for name, own in dealt.items():
        near = set(similar[name][:SIMILAR])
        others = [request for request in requests if request.relation in near]
        local = min(math.floor((1 - share) * per_slot + 1e-9), len(own) // num_slots)
        mine = [own[number] for number in generator.permutation(len(own))]
        theirs = [others[number] for number in generator.permutation(len(others))]
        foreign, mixed[name] = per_slot - local, []
        for slot in range(num_slots):
            batch = mine[slot * local : (slot + 1) * local]
            batch += theirs[slot * foreign : (slot + 1) * foreign]
            mixed[name] += [batch[number] for number in generator.permutation(len(batch))]
    return mixed


def deal_by_cluster(requests: Sequence[EditRequest], labels: Sequence[int]) -> Dealt:
    """Give each node one cluster, the largest first, as in FLEKE on zsRE.

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
    """Give each node the same number of requests, in a mixture of groups of its own.

    As in Hsu et al. (arXiv 1909.06335): a node's mixture is q ~ Dirichlet(alpha p), where p are
    the shares of the groups in the data. The nodes draw in turns, without replacement. A node
    whose groups are exhausted draws from the remaining groups by their size.

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
    """Check that there is a request for every node.

    Raises:
        FedEditError: there are fewer requests than nodes.
    """
    if len(requests) < count:
        raise FedEditError(
            f"partition: {len(requests)} requests are too few for {count} nodes; use fewer nodes"
        )


def by_slot(requests: Sequence[EditRequest], num_slots: int, per_slot: int | None) -> Slots:
    """Distribute a node's requests over the time slots.

    Args:
        requests: the node's requests in their order.
        num_slots: number of time slots.
        per_slot: number of requests per slot, in that order; None: each request is in the slot
            that it names, or in the first if it names none.

    Returns:
        One list per slot; requests of later slots are dropped.
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
