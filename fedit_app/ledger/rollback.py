"""Taking MKVs out of a ledger by hand, and what that changes for its node."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fedit_app.config.run_config import RunConfig
from fedit_app.ledger.ledger import Ledger
from fedit_app.ledger.request_texts import Texts, read_replaced
from fedit_app.ledger.undo import take_out

_REASON = "rolled back"


@dataclass(frozen=True)
class Rollback:
    """What taking MKVs out of a ledger changes.

    Attributes:
        removed: ids of the MKVs; none of them is accepted again until it is allowed.
        after: the ledger without them, in memory.
        restored: ids of the MKVs that these overruled, and that hold again.
        withdrawn: those among the removed that the node itself has computed: the other nodes take
            them out in the next run in which the node takes part.
        returned: own requests that these fulfil again.
        set_aside: own requests that stay unfulfilled, as their MKV is withdrawn.
        reopened: own requests that the next run fulfils again.
    """

    removed: list[str]
    after: Ledger
    restored: list[str]
    returned: list[str]
    withdrawn: list[str]
    set_aside: list[str]
    reopened: list[str]


def plan_rollback(ledger: Ledger, ids: Collection[str], config: RunConfig, node: str) -> Rollback:
    """What `roll_back` would do; the ledger stays as it is.

    Args:
        ledger: the ledger.
        ids: MKVs of it.
        config: the run configuration: how conflicts are settled.
        node: the name of the ledger's node.
    """
    after = ledger.without(())
    take_out(after, ids, ledger.history(), config, _REASON, node, _replaced(ledger))
    entries, fulfilled = ledger.entries, after.fulfilled()
    restored = [
        id_
        for id_, entry in after.entries.items()
        if entries[id_].overruled_by and not entry.overruled_by
    ]
    withdrawn = [id_ for id_ in ids if after.refused[id_].withdrawn]
    lost = {request for id_ in ids for request in entries[id_].requests}
    return Rollback(
        removed=sorted(ids),
        after=after,
        restored=sorted(restored),
        withdrawn=sorted(withdrawn),
        returned=sorted({r for id_ in restored for r in after.entries[id_].requests}),
        set_aside=sorted(
            {r for id_ in withdrawn for r in after.refused[id_].requests} - fulfilled.keys()
        ),
        reopened=sorted(lost - fulfilled.keys() - after.set_aside),
    )


def roll_back(ledger: Ledger, ids: Collection[str], config: RunConfig, node: str) -> None:
    """Take MKVs out: the weights are then those of a ledger that never had them.

    They are refused from then on. Those that the node has computed itself are withdrawn: the other
    nodes take them out in the next run.

    Args:
        ledger: the ledger.
        ids: MKVs of it.
        config: the run configuration: how conflicts are settled.
        node: the name of the ledger's node.
    """
    history = ledger.history()
    with ledger.step("rollback"):
        take_out(ledger, ids, history, config, _REASON, node, _replaced(ledger))


def _replaced(ledger: Ledger) -> dict[str, list[str]]:
    """Own requests that come back with an MKV: those of one model, whose texts are kept."""
    found = read_replaced(ledger.folder) if ledger.folder else {}
    return Texts(replaced=found).replaced_ids


def allow_again(ledger: Ledger, ids: Sequence[str]) -> None:
    """Let MKVs that were taken out come back with the next run.

    Args:
        ledger: the ledger.
        ids: refused MKVs.
    """
    with ledger.step("rollback taken back"):
        ledger.allow(ids)
