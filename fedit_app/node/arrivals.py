"""MKVs of others on their way into the ledger: each check leaves some of them out, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedit_app.config.policy import Policy
from fedit_app.editing.workbench import Workbench
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV
from fedit_app.node.acceptance import sift_origins
from fedit_app.node.quarantine import quarantine

UNTRUSTED = "untrusted node"
ROLLED_BACK = "rolled back"


@dataclass
class Arrivals:
    """The MKVs of one message.

    Attributes:
        candidates: those that no check has left out so far, in the order of the message.
        rejected: id -> the reason, of the others.
        quarantined: how many failed the screening.
    """

    candidates: list[MKV]
    rejected: dict[str, str] = field(default_factory=dict)
    quarantined: int = 0

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Leave out the candidates that have a reason: id -> reason."""
        out = {mkv.id: reasons[mkv.id] for mkv in self.candidates if mkv.id in reasons}
        self.rejected |= out
        self.candidates = [mkv for mkv in self.candidates if mkv.id not in out]

    def keep(self, kept: Iterable[MKV], reason: str) -> None:
        """Leave out all candidates but some."""
        ids = {mkv.id for mkv in kept}
        self.leave_out({mkv.id: reason for mkv in self.candidates if mkv.id not in ids})

    def new_to(self, ledger: Ledger) -> list[MKV]:
        """The candidates that a ledger does not hold."""
        return [mkv for mkv in self.candidates if mkv.id not in ledger.entries]

    def held_by(self, ledger: Ledger) -> list[MKV]:
        """The candidates that a ledger holds."""
        return [mkv for mkv in self.candidates if mkv.id in ledger.entries]


def admit(offered: Sequence[MKV], bench: Workbench, policy: Policy, ledger: Ledger) -> Arrivals:
    """The checks of either stage: is the node trusted, was it rolled back, can it be honest?

    They come before MKVs are compared with anything. What the ledger holds is not screened again;
    what fails is listed in the ledger's folder.

    Args:
        offered: MKVs of the workbench's fingerprint.
        bench: the model and its tools.
        policy: the node's own.
        ledger: the node's.
    """
    arrivals = Arrivals(list(offered))
    arrivals.keep(sift_origins(offered, policy.trusted_nodes), UNTRUSTED)
    arrivals.leave_out(dict.fromkeys(ledger.refused, ROLLED_BACK))
    new = arrivals.new_to(ledger)
    faults = bench.screen.faults(new, policy.screening) if new else {}
    quarantine(ledger.folder, new, faults)
    arrivals.leave_out({id_: fault.reason for id_, fault in faults.items()})
    arrivals.quarantined = len(faults)
    return arrivals
