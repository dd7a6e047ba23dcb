"""What a slot has come to so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fedit_app.mkv import Record
from fedit_app.protocol.schema import ConflictIds
from fedit_app.server.contests import Contest
from fedit_app.server.grid import RunGrid


@dataclass
class Slot:
    """What a slot has come to so far: every stage adds to it.

    Attributes:
        number: the slot.
        grid: the members of the run.
        missing: node -> ids of earlier MKVs that it is asked to send again.
        told: node -> ids of the withdrawn MKVs that it is told of.
        own: node -> MKVs that fulfil its requests of this slot, once it has edited.
        offered: node -> ids of the MKVs of others that it is sent in the re-edit stage.
        conflicts: node -> pairs of MKVs of one key of which only one holds there.
        contested: node -> those of its pairs that can be composed.
        contests: the contested keys.
    """

    number: int
    grid: RunGrid
    missing: dict[str, list[str]] = field(default_factory=dict)
    told: dict[str, set[str]] = field(default_factory=dict)
    own: dict[str, list[Record]] = field(default_factory=dict)
    offered: dict[str, list[str]] = field(default_factory=dict)
    conflicts: dict[str, list[ConflictIds]] = field(default_factory=dict)
    contested: dict[str, list[ConflictIds]] = field(default_factory=dict)
    contests: list[Contest] = field(default_factory=list)

    def note_conflicts(self, name: str, pairs: Iterable[ConflictIds]) -> None:
        """Note conflicts at a node, each once."""
        known = self.conflicts.setdefault(name, [])
        known[:] = dict.fromkeys([*known, *pairs])
