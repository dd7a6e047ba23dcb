"""The rounds in which the holders of contested keys learn one value for each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from flwr.app import Message, RecordDict

from fedit_app.config.run_config import RunConfig
from fedit_app.mkv import Form, Record, SealedMKV
from fedit_app.pool import MKVPool
from fedit_app.pool.superseded import supersede, superseded_by
from fedit_app.protocol.messages import COMPOSE, unpack_mkvs, unpack_values, with_values
from fedit_app.protocol.schema import ComposeAnswer, ComposeAsk, Said
from fedit_app.server.contests import Contest
from fedit_app.server.slot import Slot
from fedit_app.server.uploads import check_origin
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
            logger.info(
                "slot %d: a key of %s: %s after %d rounds",
                self._slot.number,
                ", ".join(contest.holders) or "a node that failed",
                "one value says all facts" if contest.made else "no value says all facts",
                min(contest.rounds, self._config.compose_rounds),
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
        said: dict[str, dict[tuple[str, ...], Said]] = {}
        values: dict[str, dict[tuple[str, ...], np.ndarray]] = {}
        new: dict[str, Record] = {}
        for message in replies:
            name = grid.name_of(message)
            asked = [contest for contest in keys if name in contest.asked]
            try:
                answer = ComposeAnswer.read(message.content)
                found = self._values_of(message.content, answer, asked)
                new |= self._made(name, message.content, answer, asked)
            except FedEditError as error:
                grid.failed(name, number, "compose", str(error))
                continue
            said[name], values[name] = found
            grid.record.received(number, name, answer.received_from, answer.rejections)
            self._slot.note_conflicts(name, answer.conflicts)
        self._pool.append([new[id_] for id_ in sorted(new)])
        for contest in keys:
            if not contest.made:
                contest.close_round(_of_key(said, contest), _of_key(values, contest))
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
                record.count(self._slot.number, holder, composed=1, compose_rounds=contest.rounds)
        return {mkv.id: mkv for mkv in mkvs}

    def _values_of(
        self, content: RecordDict, answer: ComposeAnswer, keys: Sequence[Contest]
    ) -> tuple[dict[tuple[str, ...], Said], dict[tuple[str, ...], np.ndarray]]:
        """What a node says of the keys that it was asked for, and the values that it returns.

        Raises:
            FedEditError: there are not as many as were asked for, or they are damaged.
        """
        if len(answer.said) != len(keys):
            raise FedEditError(f"{len(keys)} keys asked for, {len(answer.said)} answered")
        said = {contest.ids: word for contest, word in zip(keys, answer.said, strict=True)}
        taken = [ids for ids, word in said.items() if word != "declined"]
        rows = unpack_values(content, len(taken), self._form.d_model, self._sealed)
        return said, dict(zip(taken, rows, strict=True))


def _of_key(found: Mapping[str, Mapping[tuple[str, ...], T]], contest: Contest) -> dict[str, T]:
    return {name: of[contest.ids] for name, of in found.items() if contest.ids in of}
