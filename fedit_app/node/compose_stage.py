"""A node's part in composing: one value for a key whose facts several organisations hold.

A round begins at a value that every holder computes for itself: in the first round the mean of the
contested MKVs, then the combination of what the holders returned. The node says whether this value
says the targets of its own facts, and takes a few steps from it. Nothing of a key is kept between
rounds: the message has all that a round needs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedit_app.config.run_config import RunConfig
from fedit_app.editing.composition import combined, margin
from fedit_app.editing.workbench import Workbench
from fedit_app.facts.request import EditRequest
from fedit_app.ledger.conflicts import settle
from fedit_app.ledger.ledger import Ledger
from fedit_app.mkv import MKV
from fedit_app.mkv.same_key import SameFact, key_cosines
from fedit_app.protocol.schema import MOST_LEAD, Said

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contested:
    """A contested key in a round.

    Attributes:
        ids: of the MKVs that contest it, rising.
        round: how many rounds have shaped its value.
        changes: node -> v - h0 that it returned in the last of these.
        settled: whether all holders have said that the value holds.
    """

    ids: tuple[str, ...]
    round: int
    changes: Mapping[str, np.ndarray]
    settled: bool = False


@dataclass
class ComposeOutcome:
    """What a node did in a round.

    Attributes:
        said, leads: see `schema.ComposeAnswer`.
        changes: for each key that was not declined v - h0 after the node's steps, (d_model,).
        made: MKVs of settled keys.
        supersedes: id of each of these -> ids of those in whose place it holds.
    """

    said: list[Said] = field(default_factory=list)
    leads: list[float] = field(default_factory=list)
    changes: list[np.ndarray] = field(default_factory=list)
    made: list[MKV] = field(default_factory=list)
    supersedes: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """The node's part of a key: its facts, and the value with which the round begins."""

    key: Contested
    facts: list[EditRequest]
    h0: np.ndarray
    v_star: np.ndarray


@dataclass(frozen=True)
class _Step:
    """A node's round of a key.

    Attributes:
        holds: whether the value with which the round began says the node's facts.
        lead: by how much it does, patched in, in nats, to a tenth.
        change: (d_model,) v - h0 after the node's steps.
    """

    holds: bool
    lead: float
    change: np.ndarray


class ComposeStage:
    """A node's rounds of composition.

    Args:
        name: the node's name.
        bench: the model and its tools.
        config: the run configuration.
        requests: the node's own, of all slots.
    """

    def __init__(
        self, name: str, bench: Workbench, config: RunConfig, requests: Sequence[EditRequest]
    ) -> None:
        self._name, self._bench, self._config = name, bench, config
        self._texts = {request.id: request for request in requests}

    def run(self, ledger: Ledger, slot: int, keys: Sequence[Contested]) -> ComposeOutcome:
        """Do a round: look at each key's value, take steps from it, make the MKVs of settled ones.

        Args:
            ledger: the node's, as it is on the disk.
            slot: the time slot.
            keys: the contested keys of which the node is a holder.
        """
        outcome = ComposeOutcome()
        again = [self._made_before(ledger, key) if key.settled else None for key in keys]
        parts = [
            None if mkv else self._part(ledger, key) for key, mkv in zip(keys, again, strict=True)
        ]
        taken = [part for part in parts if part is not None]
        steps = iter(self._steps(ledger, slot, taken))
        finished: list[_Part] = []
        for part, mkv in zip(parts, again, strict=True):
            if mkv is not None:
                outcome.said.append("holds")
                outcome.leads.append(0.0)  # it held before it was made
                outcome.changes.append(mkv.delta)
                outcome.made.append(mkv)
            elif part is None:
                outcome.said.append("declined")
            else:
                step = next(steps)
                outcome.said.append("holds" if step.holds else "not yet")
                outcome.leads.append(step.lead)
                outcome.changes.append(step.change)
                if step.holds and part.key.settled:
                    finished.append(part)
        outcome.made += self._make(ledger, slot, finished)
        outcome.supersedes = {mkv.id: ledger.entries[mkv.id].supersedes for mkv in outcome.made}
        return outcome

    def _made_before(self, ledger: Ledger, key: Contested) -> MKV | None:
        """The node's own MKV in the place of a key's, for a message that comes again."""
        ids = set(key.ids)
        own = (e for e in ledger.entries.values() if e.mkv.node == self._name)
        return next((entry.mkv for entry in own if ids <= set(entry.supersedes)), None)

    def _part(self, ledger: Ledger, key: Contested) -> _Part | None:
        """The node's part of a key; None if it has no such key, or no facts of it."""
        if not all(id_ in ledger.entries for id_ in key.ids):
            return None
        entries = [ledger.entries[id_] for id_ in key.ids]
        own = [id_ for entry in entries for id_ in entry.requests]
        if not own or not all(id_ in self._texts for id_ in own):
            return None
        mkvs = [entry.mkv for entry in entries]
        keys = np.stack([mkv.lookup_key for mkv in mkvs])
        if not (key_cosines(keys, mkvs) >= self._config.same_key_threshold).all():
            return None
        changes = [change for _, change in sorted(key.changes.items())]
        v_star = combined(
            changes or [mkv.delta for mkv in mkvs],
            mkvs[0].h0,
            self._bench.settings.clamp,
            self._config.combination if changes else "mean",
            self._bench.precision,
        )
        facts = {self._texts[id_].fact: self._texts[id_] for id_ in own}
        return _Part(key, list(facts.values()), mkvs[0].h0, v_star)

    def _steps(self, ledger: Ledger, slot: int, parts: Sequence[_Part]) -> list[_Step]:
        """For every part what its value says here, and where the node's steps lead."""
        if not parts:
            return []
        found: dict[int, _Step] = {}
        written = self._leads_written(ledger, slot, parts)
        kinds = sorted({(part.key.round, part.key.settled) for part in parts})
        for kind in kinds:
            chosen = [i for i, p in enumerate(parts) if (p.key.round, p.key.settled) == kind]
            round_, settled = kind
            only_looks = settled or round_ >= self._config.compose_rounds
            steps = self._bench.compose(
                [parts[i].facts for i in chosen],
                np.stack([parts[i].v_star - parts[i].h0 for i in chosen]),
                0 if only_looks else self._config.compose_steps,
                round_,
            )
            # Of a settled key the lead may differ in its last digits from that of the round before.
            least = 0.0 if settled else margin(round_, self._config.compose_rounds)
            patched = steps.lead.double().cpu().numpy()
            lead = np.where(np.isnan(written[chosen]), patched, written[chosen])
            holds = ((patched > 0) & (lead > least)).tolist()
            told = patched.clip(-MOST_LEAD, MOST_LEAD).round(1).tolist()
            change = steps.change.float().cpu().numpy()
            found |= zip(chosen, map(_Step, holds, told, change), strict=True)
        return [found[i] for i in range(len(parts))]

    def _leads_written(self, ledger: Ledger, slot: int, parts: Sequence[_Part]) -> np.ndarray:
        """By how much the model says the own facts of each part, with all values written into it.

        What holds when it is patched in may not be said by the edited model, where the layers below
        the last one have passed on a part of the change.

        Returns:
            (n,) leads; NaN where the model with the node's own value does not say its facts either,
            so that no value can be asked to.
        """
        facts = [part.facts for part in parts]
        trial = self._written(ledger, slot, parts)[0]
        found = self._bench.leads(facts, trial)
        return np.where(self._bench.leads(facts, ledger) > 0, found, np.nan)

    def _written(
        self, ledger: Ledger, slot: int, parts: Sequence[_Part]
    ) -> tuple[Ledger, list[MKV]]:
        """A ledger in memory with values in the place of the contested ones, and their MKVs."""
        trial = ledger.without({id_ for part in parts for id_ in part.key.ids})
        made = self._bench.write(
            [part.facts for part in parts],
            np.array([part.v_star for part in parts]),
            np.array([part.h0 for part in parts]),
            trial,
            self._name,
            slot,
        )
        trial.accept(made, slot)
        return trial, made

    def _make(self, ledger: Ledger, slot: int, parts: Sequence[_Part]) -> list[MKV]:
        """The MKVs of settled keys, which supersede those that contested them."""
        if not parts:
            return []
        _, made = self._written(ledger, slot, parts)
        pairs = list(zip(made, parts, strict=True))
        own = {
            mkv.id: [one for id_ in part.key.ids for one in ledger.entries[id_].requests]
            for mkv, part in pairs
        }
        with ledger.step("compose", slot):
            ledger.release({one for ids in own.values() for one in ids})
            ledger.accept(made, slot, own, {mkv.id: part.key.ids for mkv, part in pairs})
            settle(
                ledger,
                [mkv.id for mkv in made],
                self._config.conflict_policy,
                SameFact(same_key=self._config.same_key_threshold),
            )
        logger.info(
            "node %s, slot %d: %d values composed with other nodes", self._name, slot, len(made)
        )
        return made
