"""Who a node is to the others: what it signs with, and whose signatures it asks for.

Nodes of a simulation share one machine and one operator, so a signature would prove nothing there:
they neither sign nor check. A real node signs with the key by which the server knows it. Its
operator keeps a list of the keys that it trusts: to trust the first key that arrives would be to
trust the server, through which all keys would come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedit_app.config.policy import Policy
from fedit_app.config.run_config import ConfigValue
from fedit_app.mkv import MKV
from fedit_app.mkv.authorship import SigningKey, is_signed_by
from fedit_app.node.peers import read_peers


@dataclass(frozen=True)
class Identity:
    """What a node signs its MKVs with, and which signatures it accepts.

    Attributes:
        key: its own key; None: it does not sign.
        peers: node -> its public keys; None: signatures are not checked.
    """

    key: SigningKey | None = None
    peers: Mapping[str, frozenset[str]] | None = None

    def signed(self, mkv: MKV) -> MKV:
        """An own MKV with the node's signature, if it signs."""
        return mkv if self.key is None else self.key.sign(mkv)

    def accepts(self, mkv: MKV) -> bool:
        """Whether an MKV is signed by the node that it names, if signatures are checked."""
        return self.peers is None or is_signed_by(mkv, self.peers.get(mkv.node, ()))


def identity_of(name: str, node_config: Mapping[str, ConfigValue], policy: Policy) -> Identity:
    """The keys that a node's operator has configured.

    Args:
        name: the node's name.
        node_config: Flower's node configuration; `node-key` names the file of the private key.
        policy: the node's own; `peers` names the folder of the others' keys.

    Raises:
        FedEditError: a key cannot be read.
    """
    key = signing_key(node_config)
    if not policy.peers:
        return Identity(key)
    own = {name: frozenset({key.public})} if key else {}
    return Identity(key, read_peers(Path(policy.peers)) | own)


def signing_key(node_config: Mapping[str, ConfigValue]) -> SigningKey | None:
    """The key with which a node signs; None if its configuration names none.

    Args:
        node_config: Flower's node configuration; `node-key` names the file of the private key.

    Raises:
        FedEditError: the key cannot be read.
    """
    file = node_config.get("node-key")
    return SigningKey.read(Path(str(file)).expanduser()) if file else None
