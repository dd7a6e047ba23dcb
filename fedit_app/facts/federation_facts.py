"""The facts of the whole federation on which a node's model is evaluated."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from fedit_app.facts.request import EditRequest


def facts_for(
    node: str, requests_by_node: Mapping[str, Sequence[EditRequest]]
) -> list[EditRequest]:
    """The federation's facts on which one node is evaluated, each once.

    A fact that nodes edit with different targets counts at its owners only, with their own target.
    Two requests are about the same fact if the prompt of one, with its subject, is the prompt or a
    paraphrase of the other.

    Args:
        node: the node that is evaluated.
        requests_by_node: name -> the requests of every node.

    Returns:
        The node's own requests first, then the others' in the order of names.
    """
    wanted: dict[str, set[str]] = {}
    for requests in requests_by_node.values():
        for request in requests:
            for text in request.asked:
                wanted.setdefault(text, set()).add(request.target_new)
    facts: list[EditRequest] = []
    prompts: set[str] = set()
    asked: set[str] = set()
    for name in [node, *sorted(set(requests_by_node) - {node})]:
        for request in requests_by_node.get(name, ()):
            contested = any(len(wanted[text]) > 1 for text in request.asked)
            known = request.text in asked or not prompts.isdisjoint(request.asked)
            if known or (contested and name != node):
                continue
            facts.append(request)
            prompts.add(request.text)
            asked.update(request.asked)
    return facts


def facts_received(
    node: str,
    requests_by_node: Mapping[str, Sequence[EditRequest]],
    fulfilled: Mapping[str, Mapping[str, str]],
    held: Collection[str],
) -> list[EditRequest]:
    """The federation's facts that reached a node as the MKV of another node.

    Another node requests the fact, the MKV that fulfils it there is in this node's ledger, and this
    node does not request the fact itself.

    Args:
        node: the node that is evaluated.
        requests_by_node: name -> the requests of every node.
        fulfilled: name -> request id -> id of the MKV that fulfils it in that node's ledger.
        held: ids of the MKVs that apply in the ledger of `node`.

    Returns:
        A subset of `facts_for(node, requests_by_node)`, in its order.
    """
    arrived = {
        _said(request)
        for name, requests in requests_by_node.items()
        for request in requests
        if fulfilled.get(name, {}).get(request.id) in held
    }
    arrived -= {_said(request) for request in requests_by_node.get(node, ())}
    return [fact for fact in facts_for(node, requests_by_node) if _said(fact) in arrived]


def drawn(facts: Sequence[EditRequest], most: int) -> list[EditRequest]:
    """A sample of facts, which depends on nothing but the facts.

    A fact that is in the sample of some facts is in that of any part of them, so that nodes, slots
    and runs are compared on the same facts as far as they have them.

    Args:
        facts: from which it is drawn.
        most: how many at most; 0: all.

    Returns:
        The chosen ones in their order.
    """
    if not most or len(facts) <= most:
        return list(facts)

    def number(fact: EditRequest) -> bytes:
        return hashlib.sha256(json.dumps(fact.fact).encode()).digest()

    last = sorted(map(number, facts))[most - 1]
    return [fact for fact in facts if number(fact) <= last]


def that_must_stay(
    facts: Iterable[EditRequest], edited: Iterable[EditRequest]
) -> list[EditRequest]:
    """Facts whose subject prompts and implications depend on nothing else that is edited.

    Args:
        facts: the facts on which a model is evaluated.
        edited: every request of the run that is known.

    Returns:
        The same facts, without the subject prompts that are the prompt or a paraphrase of a
        request of the run, and without portability prompts where a request is about the fact's new
        target.
    """
    edited = list(edited)
    asked = {text for request in edited for text in request.asked}
    subjects = {request.subject for request in edited}

    def kept(fact: EditRequest) -> EditRequest:
        prompts = tuple(text for text in fact.subject_prompts if text not in asked)
        known = dataclasses.replace(fact, subject_prompts=prompts)
        if fact.target_new in subjects:
            return dataclasses.replace(known, portability_prompts=(), portability_targets=())
        return known

    return [
        kept(fact) if fact.subject_prompts or fact.portability_prompts else fact for fact in facts
    ]


def that_share_a_subject(
    facts: Iterable[EditRequest], everyones: Iterable[EditRequest]
) -> list[EditRequest]:
    """Facts that begin like another fact up to and including the subject.

    Such facts have the same key. The same fact of another node, in the same words or as a
    paraphrase, is not another one, whichever target it wants.

    Args:
        facts: the facts in question.
        everyones: all facts of the run that are known.
    """
    by_beginning: dict[str, list[EditRequest]] = {}
    for request in everyones:
        by_beginning.setdefault(request.beginning, []).append(request)

    def another(fact: EditRequest, request: EditRequest) -> bool:
        return fact.text not in request.asked and request.text not in fact.asked

    return [
        fact
        for fact in facts
        if any(another(fact, request) for request in by_beginning.get(fact.beginning, ()))
    ]


def apart_from(records: Iterable[EditRequest], facts: Iterable[EditRequest]) -> list[EditRequest]:
    """Records that have nothing to do with facts, to train on what is not measured.

    Their subjects are others, and none of their prompts is one of the facts'. Neighborhood prompts
    that are one are left out of a record.

    Args:
        records: the records.
        facts: every fact of the run.
    """
    facts = list(facts)
    subjects = {fact.subject for fact in facts}
    prompts = {
        text
        for fact in facts
        for text in (*fact.asked, *fact.neighborhood_prompts, *fact.subject_prompts)
    }

    def without(record: EditRequest) -> EditRequest:
        around, targets = record.neighborhood_prompts, record.neighborhood_targets
        kept = [number for number, text in enumerate(around) if text not in prompts]
        return dataclasses.replace(
            record,
            neighborhood_prompts=tuple(around[number] for number in kept),
            neighborhood_targets=tuple(targets[number] for number in kept if targets),
        )

    return [
        record if prompts.isdisjoint(record.neighborhood_prompts) else without(record)
        for record in records
        if record.subject not in subjects and prompts.isdisjoint(record.asked)
    ]


def _said(request: EditRequest) -> tuple[str, str]:
    return request.text, request.target_new
