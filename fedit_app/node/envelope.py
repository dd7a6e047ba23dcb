"""The form in which a node's MKVs, ids and lookup keys go to the server, and come back.

In a sealed run the server gets what it can rank and pass on, and nothing that it can read. An MKV
then has one id in the ledger and another in the pool: the envelope translates.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from fedit_app.config.folders import simulated_key_file
from fedit_app.config.node_config import is_simulated
from fedit_app.config.policy import Policy
from fedit_app.config.run_config import ConfigValue, RunConfig
from fedit_app.mkv import MKV, Form, Record
from fedit_app.mkv.federation_key import FederationKey
from fedit_app.mkv.fingerprint import fingerprint_of
from fedit_app.mkv.sealer import Sealer
from fedit_app.node.identity import Identity
from fedit_app.protocol.messages import FEDERATION_KEY, unpack_mkvs
from fedit_app.support.errors import FedEditError

logger = logging.getLogger(__name__)

SEAL, SIGNATURE = "seal", "signature"


@dataclass(frozen=True)
class Unpacked:
    """The MKVs of a message.

    Attributes:
        mkvs: those that can be used.
        rejections: reason -> how many cannot.
    """

    mkvs: list[MKV]
    rejections: dict[str, int] = field(default_factory=dict)


class Envelope:
    """Sends MKVs, ids and lookup keys as they are.

    Args:
        components: the parts of the fingerprint of the node's MKVs, see `Workbench`.
        precision: to which they are rounded.
        identity: what the node signs with, and whose signatures it asks for.
        form: what the run's MKVs look like.

    Attributes:
        components: what all nodes have to agree on; the server knows their MKVs by its hash.
        seals: whether the server gets things sealed.
    """

    seals = False

    def __init__(
        self, components: Mapping[str, str], precision: str, identity: Identity, form: Form
    ) -> None:
        self.components = dict(components)
        self._precision, self._identity, self._form = precision, identity, form

    def sealed(self, mkvs: Sequence[MKV]) -> Sequence[Record]:
        """MKVs of this node as they go out: signed, and sealed in a sealed run."""
        return self._sealed([self._identity.signed(mkv) for mkv in mkvs])

    def unpack(self, content: RecordDict) -> Unpacked:
        """The MKVs that the server sends.

        Raises:
            FedEditError: the message is damaged, or of another federation.
        """
        mkvs: list[MKV] = []
        rejections: Counter[str] = Counter()
        fingerprint = fingerprint_of(self.components)
        for record in unpack_mkvs(content, fingerprint, self._precision, self._form):
            try:
                mkv = self._opened(record)
            except FedEditError as error:
                logger.warning("rejected: %s", error)
                rejections[SEAL] += 1
                continue
            if self._identity.accepts(mkv):
                mkvs.append(mkv)
            else:
                logger.warning("rejected: MKV %s is not signed by node %s", mkv.id, mkv.node)
                rejections[SIGNATURE] += 1
        return Unpacked(mkvs, dict(rejections))

    def id_out(self, id_: str) -> str:
        """The server's id of an MKV of the ledger."""
        return id_

    def id_in(self, id_: str) -> str:
        """The ledger's id of an MKV of the server; the inverse of `id_out`."""
        return id_

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        """Lookup keys `(n, d_ff)` as the server gets them: `(n, m)`."""
        return keys.astype(np.float32)

    def value_out(self, change: np.ndarray, place: Sequence[object]) -> np.ndarray:
        """A value of a round of composition as the server gets it.

        Args:
            change: `(d_model,)` float16.
            place: run, slot, round, key and node to which it belongs.
        """
        return change

    def value_in(self, value: np.ndarray, place: Sequence[object]) -> np.ndarray:
        """The inverse of `value_out`.

        Raises:
            FedEditError: it does not open.
        """
        return value

    def _sealed(self, mkvs: Sequence[MKV]) -> Sequence[Record]:
        return mkvs

    def _opened(self, record: Record) -> MKV:
        if not isinstance(record, MKV):
            raise FedEditError(f"MKV {record.id} of node {record.node!r}: sealed, this run is not")
        return record


class SealedEnvelope(Envelope):
    """Seals what goes out and opens what comes in.

    Args:
        components: see `Envelope`, as the next three.
        precision: of the MKVs.
        identity: of the node.
        form: of the MKVs.
        key: the federation key.
    """

    seals = True

    def __init__(
        self,
        components: Mapping[str, str],
        precision: str,
        identity: Identity,
        form: Form,
        key: FederationKey,
    ) -> None:
        sealed = {FEDERATION_KEY: key.id, "sketch-width": str(form.sketch_width)}
        super().__init__({**components, **sealed}, precision, identity, form)
        outside, inside = fingerprint_of(self.components), fingerprint_of(components)
        self._sealer = Sealer(key, outside, inside, form.sketch_width)

    def id_out(self, id_: str) -> str:
        return self._sealer.seal_id(id_)

    def id_in(self, id_: str) -> str:
        return self._sealer.open_id(id_)

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        return self._sealer.lookup(keys)

    def value_out(self, change: np.ndarray, place: Sequence[object]) -> np.ndarray:
        return self._sealer.seal_value(change, place)

    def value_in(self, value: np.ndarray, place: Sequence[object]) -> np.ndarray:
        return self._sealer.open_value(value, place)

    def _sealed(self, mkvs: Sequence[MKV]) -> Sequence[Record]:
        return self._sealer.seal(mkvs)

    def _opened(self, record: Record) -> MKV:
        if isinstance(record, MKV):
            raise FedEditError(f"MKV {record.id} of node {record.node!r}: not sealed, this run is")
        mkv = self._sealer.open(record, self._form)
        if mkv.precision != self._precision:
            raise FedEditError(
                f"sealed MKV {record.id} of node {record.node!r}: precision {mkv.precision} found, "
                f"the run has {self._precision}"
            )
        return mkv


def federation_key(
    config: RunConfig, node_config: Mapping[str, ConfigValue], run_id: int, policy: Policy
) -> FederationKey | None:
    """The key with which a node seals in a run; None in one that is not sealed.

    The virtual nodes of a simulation make one in the run folder. A real node has it in a file, and
    its policy says whether it takes part in runs that are not sealed.

    Args:
        config: the run configuration.
        node_config: Flower's node configuration; `federation-key` names the file.
        run_id: Flower's run id.
        policy: the node's own.

    Raises:
        FedEditError: a real node has no key, or the run is not sealed and its policy forbids that.
    """
    if is_simulated(node_config):
        if config.sealed != "on":
            return None
        return FederationKey.shared_by_all_at(simulated_key_file(config, run_id))
    if config.sealed == "off":
        policy.require_readable("run config: sealed = off")
        return None
    if not node_config.get(FEDERATION_KEY):
        raise FedEditError(
            "node config: federation-key missing, and the run is sealed; get the key file from an "
            "organisation that has it, then `fedit node key take DIR FILE`"
        )
    return FederationKey.read(Path(str(node_config[FEDERATION_KEY])).expanduser())
