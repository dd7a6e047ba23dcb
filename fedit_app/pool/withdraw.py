"""An author takes its MKVs back: the pool deletes them, and knows from then on that it did."""

from __future__ import annotations

import logging
from collections.abc import Collection

from fedit_app.pool.pool import MKVPool
from fedit_app.pool.prune import Criteria, plan, prune

logger = logging.getLogger(__name__)


def withdraw(pool: MKVPool, node: str, ids: Collection[str]) -> None:
    """Take MKVs out of a pool for one of their authors, and note that it has withdrawn them.

    What another node has uploaded alike stays, as that node's; what nobody else has is deleted from
    the disk (see `prune`). An MKV of others alone is left as it is. One that the pool does not hold
    is noted all the same: other nodes may have it from an earlier pool.

    Args:
        pool: the pool; no other process may be using it.
        node: the node that withdraws.
        ids: of MKVs.
    """
    authors = pool.uploaders(ids)
    alien = {id_ for id_, nodes in authors.items() if node not in nodes}
    alien -= {id_ for id_, nodes in pool.withdrawals.nodes().items() if node in nodes}
    if alien:
        logger.warning(
            "node %r withdraws %d MKVs that others have computed, among them %s; they stay",
            node,
            len(alien),
            min(alien),
        )
    held = authors.keys() - {id_ for id_, nodes in authors.items() if node not in nodes}
    if held:
        prune(pool, plan(pool, Criteria(nodes=frozenset({node}), ids=frozenset(held))))
    pool.withdrawals.add(node, set(ids) - alien)


def withdrawn(pool: MKVPool) -> dict[str, list[str]]:
    """Id -> the nodes that have withdrawn it, of the MKVs that no author stands by any more."""
    nodes = pool.withdrawals.nodes()
    held = pool.facts(list(nodes))
    return {id_: names for id_, names in nodes.items() if id_ not in held}
