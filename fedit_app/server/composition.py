"""The rounds in which the holders of contested keys learn one value for each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from flwr.app import Message, RecordDict

from fedit_app.config.run_config import RunConfig
from fedit_app.mkv import Form, Record, SealedMKV
from fedit_app.pool import MKVPool
from fedit_app.pool.superseded import supersede, superseded_by
from fedit_app.protocol.messages import COMPOSE, unpack_mkvs, unpack_values, with_values
from fedit_app.protocol.schema import ComposeAnswer, ComposeAsk
from fedit_app.server.contests import Contest, Told
from fedit_app.server.slot import Slot
from fedit_app.server.uploads import check_origin
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)


class Composition:
    """The rounds of a slot.

    Args:
        config: the run configuration.
        pool: where the composed MKVs go.
        fingerprint: the one that they have.
        slot: the slot, with its contested keys.
        form: what the run's MKVs look like.
    """

    def __init__(
        self, config: RunConfig, pool: MKVPool, fingerprint: str, slot: Slot, form: Form
    ) -> None:
        self._config, self._pool, self._fingerprint = config, pool, fingerprint
        self._slot, self._form = slot, form
        known = pool.fetch([id_ for contest in slot.contests for id_ in contest.ids[:1]])
        self._sealed = any(isinstance(mkv, SealedMKV) for mkv in known)

    def run(self) -> None:
        """Go on until every key is settled and its MKV delivered, or the rounds are over.

        After the last round in which holders take steps come one in which they look at its value,
        one in which settled keys are made, and one in which what was made is delivered.
        """
        grid, made = self._slot.grid, list[str]()
        for round_ in range(1, self._config.compose_rounds + 4):
            over = round_ > self._config.compose_rounds + 1
            keys = [c for c in self._slot.contests if c.open and (c.settled or not over)]
            if not keys and not made:
                break
            replies = grid.send_and_receive(self.messages(keys, made))
            made = self.close_round(keys, replies)
        for contest in self._slot.contests:
            rounds = min(contest.rounds, self._config.compose_rounds)
            for holder in contest.holders:
                grid.record.count(self._slot.number, holder, compose_rounds=rounds)
            logger.info(
                "slot %d: a key of %s: %s after %d rounds",
                self._slot.number,
                ", ".join(contest.holders) or "a node that failed",
                "one value says all facts" if contest.made else "no value says all facts",
                rounds,
            )

    def messages(self, keys: Sequence[Contest], made: Sequence[str]) -> list[Message]:
        """The keys for their holders, and new MKVs for the nodes that have what they replace.

        Args:
            keys: those that are not settled, or whose MKV is to be made.
            made: ids of the MKVs that were made in the last round.
        """
        supersedes = superseded_by(self._pool, made)
        mkvs = {mkv.id: mkv for mkv in self._pool.fetch(made)}
        messages = []
        for name, member in sorted(self._slot.grid.members.items()):
            asked = [contest.key() for contest in keys if name in contest.asked]
            new = [
                id_
                for id_ in made
                if id_ not in member.known and member.known.intersection(supersedes[id_])
            ]
            if not asked and not new:
                continue
            ask = ComposeAsk(
                slot=self._slot.number,
                keys=[key for key, _ in asked],
                supersedes={id_: supersedes[id_] for id_ in new},
            )
            content = ask.packed([mkvs[id_] for id_ in new])
            values = [value for _, found in asked for value in found]
            if values:
                with_values(content, np.stack(values))
            member.holds |= set(new)
            self._slot.grid.record.count(self._slot.number, name, offered=len(new))
            messages.append(member.message(COMPOSE, content))
        return messages

    def close_round(self, keys: Sequence[Contest], replies: Iterable[Message]) -> list[str]:
        """Note what the holders say, and put the MKVs of settled keys into the pool.

        Args:
            keys: those that were asked for.
            replies: the nodes' answers.

        Returns:
            Ids of the new MKVs.
        """
        grid, number = self._slot.grid, self._slot.number
        told: dict[str, dict[tuple[str, ...], Told]] = {}
        new: dict[str, Record] = {}
        for message in replies:
            name = grid.name_of(message)
            asked = [contest for contest in keys if name in contest.asked]
            try:
                answer = ComposeAnswer.read(message.content)
                found = self._told(message.content, answer, asked)
                new |= self._made(name, message.content, answer, asked)
            except FedEditError as error:
                grid.failed(name, number, "compose", str(error))
                continue
            told[name] = found
            grid.record.received(number, name, answer.received_from, answer.rejections)
            self._slot.note_conflicts(name, answer.conflicts)
        self._pool.append([new[id_] for id_ in sorted(new)])
        for contest in keys:
            if not contest.made:
                answers = {name: of[contest.ids] for name, of in told.items() if contest.ids in of}
                contest.close_round(answers, self._config.compose_rounds)
        return sorted(new)

    def _made(
        self, name: str, content: RecordDict, answer: ComposeAnswer, keys: Sequence[Contest]
    ) -> dict[str, Record]:
        """The MKVs of settled keys that a node was asked to make, noted in their contests.

        Raises:
            FedEditError: it has made others, or they are not what they have to be.
        """
        precision, most = self._config.mkv_precision, len(keys)
        mkvs = unpack_mkvs(content, self._fingerprint, precision, self._form, most)
        check_origin(name, self._slot.number, mkvs)
        self._pool.check(mkvs)
        pairs: list[tuple[Record, Contest]] = []
        for mkv in mkvs:
            older, taken = set(answer.supersedes.get(mkv.id, ())), [c for _, c in pairs]
            open_ = (c for c in keys if c.settled and not c.made and c not in taken)
            fitting = next((c for c in open_ if older.issuperset(c.ids)), None)
            if fitting is None:
                raise FedEditError(f"MKV {mkv.id} is not one that it was asked to make")
            pairs.append((mkv, fitting))
        record, member = self._slot.grid.record, self._slot.grid.members[name]
        for mkv, contest in pairs:
            contest.made = mkv.id
            supersede(self._pool, {mkv.id: contest.ids})
            member.wants.add(mkv.id)
            record.count(self._slot.number, name, uploaded=1)
            for holder in contest.holders:
                record.count(self._slot.number, holder, composed=1)
        return {mkv.id: mkv for mkv in mkvs}

    def _told(
        self, content: RecordDict, answer: ComposeAnswer, keys: Sequence[Contest]
    ) -> dict[tuple[str, ...], Told]:
        """What a node answers of the keys in which it takes part.

        Raises:
            FedEditError: there are not as many answers as were asked for, or values are damaged.
        """
        if len(answer.said) != len(keys):
            raise FedEditError(f"{len(keys)} keys asked for, {len(answer.said)} answered")
        pairs = zip(keys, answer.said, strict=True)
        taken = [(contest.ids, word == "holds") for contest, word in pairs if word != "declined"]
        if len(answer.leads) != len(taken):
            raise FedEditError(f"{len(taken)} keys not declined, {len(answer.leads)} leads")
        rows = unpack_values(content, len(taken), self._form.d_model, self._sealed)
        return {
            ids: Told(holds, lead, row)
            for (ids, holds), lead, row in zip(taken, answer.leads, rows, strict=True)
        }
